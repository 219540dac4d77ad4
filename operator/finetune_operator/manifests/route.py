"""An HTTPRoute: a host at the platform's Gateway, for /v1 alone; of a job with servers of its own, or of a pool (`inference`)."""

from collections.abc import Sequence
from typing import Any

from finetune_api import run
from finetune_operator import settings
from finetune_operator.manifests import meta
from finetune_operator.observe import parents

KIND, GROUP = "HTTPRoute", "gateway.networking.k8s.io"


def build(
    parent: parents.Parent, chart: settings.Settings, host: str, weights: Sequence[tuple[str, int]]
) -> meta.Manifest:
    """`weights`: the Service of each release, and its percent of the requests. Fields are written that the API server would add,
    too: the object is compared with this."""
    backends = [
        {"group": "", "kind": "Service", "name": name, "port": run.SERVER_PORT, "weight": weight}
        for name, weight in weights
    ]
    return to(backends, meta.owned(parent, parent.name, meta.labels(parent, chart.labels)), chart, host)


def to(
    backends: Sequence[dict[str, Any]], metadata: dict[str, Any], chart: settings.Settings, host: str
) -> meta.Manifest:
    """The HTTPRoute to these backends."""
    gateway = chart.gateway_api.gateway
    section = {"sectionName": gateway.section_name} if gateway.section_name else {}
    return {
        "apiVersion": f"{GROUP}/v1",
        "kind": KIND,
        "metadata": metadata,
        "spec": {
            "parentRefs": [
                {"group": GROUP, "kind": "Gateway", "namespace": gateway.namespace, "name": gateway.name, **section}
            ],
            "hostnames": [host],
            "rules": [
                {"matches": [{"path": {"type": "PathPrefix", "value": "/v1"}}], "backendRefs": list(backends)},
            ],
        },
    }
