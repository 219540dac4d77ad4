"""Services: one of the job, which clients use, and one of each release, by which a candidate is verified."""

from finetune_api import run
from finetune_operator import observe, settings
from finetune_operator.manifests import meta


def build(parent: observe.Parent, chart: settings.Settings, name: str, release: str) -> meta.Manifest:
    """A Service `name` before the pods of `release`."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta.owned(parent, name, meta.labels(parent, chart.labels)),
        "spec": {
            "selector": {observe.UID: parent.uid, observe.RELEASE: release},
            "ports": [{"name": "http", "port": run.SERVER_PORT, "targetPort": run.SERVER_PORT, "protocol": "TCP"}],
        },
    }


def endpoint(parent: observe.Parent, name: str) -> str:
    return f"http://{name}.{parent.namespace}.svc:{run.SERVER_PORT}"
