"""The two ConfigMaps of a revision: the run file that its pods read, and the progress that its trainer writes."""

import json

from finetune_api import run
from finetune_operator import settings
from finetune_operator.manifests import meta
from finetune_operator.observe import label, parents


def run_file(parent: parents.Parent, chart: settings.Settings, content: run.Run) -> meta.Manifest:
    labels = meta.labels(parent, chart.labels, **{label.REVISION: content.revision})
    return meta.hashed(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": meta.owned(parent, meta.run_config(parent, content.revision), labels),
            "data": {"run.json": json.dumps(content.wire(), indent=1)},
        }
    )


def progress(parent: parents.Parent, chart: settings.Settings, revision: str) -> meta.Manifest:
    """Empty: the trainer fills it, and server-side apply leaves alone what we do not name."""
    labels = meta.labels(parent, chart.labels, **{label.REVISION: revision})
    return meta.hashed(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": meta.owned(parent, meta.progress_config(parent, revision), labels),
        }
    )
