"""A ServingPool as objects of Gateway API's inference extension: an InferencePool of its pods and an HTTPRoute to it; and llm-d's
InferenceModelRewrite, from a model's name to the adapters that answer."""

from typing import Any

from finetune_api import run, serving, servingpool
from finetune_operator import settings
from finetune_operator.manifests import meta, pool, route
from finetune_operator.observe import pools

POOL, GROUP = "InferencePool", "inference.networking.k8s.io"
REWRITE, LLM_D = "InferenceModelRewrite", "llm-d.ai"


def build(
    parent: pools.Parent, wanted: servingpool.Route, index: serving.Index, chart: settings.Settings, *, rewrites: bool
) -> list[meta.Manifest]:
    """All objects, without their digests. The endpoint picker picks a pod, and the gateway in it answers. Fields are written
    that the API server would add, too: the objects are compared with these."""
    backend = {"group": GROUP, "kind": POOL, "name": parent.name, "weight": 1}
    about = pool.metadata(parent, chart, parent.name)
    return [
        _pool(parent, wanted.endpoint_picker, about),
        route.to([backend], about, chart, wanted.host),
        *([_rewrites(parent, index, about)] if rewrites else []),
    ]


def _pool(parent: pools.Parent, picker: servingpool.EndpointPicker, about: dict[str, Any]) -> meta.Manifest:
    return {
        "apiVersion": f"{GROUP}/v1",
        "kind": POOL,
        "metadata": about,
        "spec": {
            "selector": {"matchLabels": pool.selector(parent)},
            "targetPorts": [{"number": run.SERVER_PORT}],
            "appProtocol": "http",
            "endpointPickerRef": {
                "group": "",
                "kind": "Service",
                "name": picker.service,
                "port": {"number": picker.port},
                "failureMode": picker.failure_mode,
            },
        },
    }


def _rewrites(parent: pools.Parent, index: serving.Index, about: dict[str, Any]) -> meta.Manifest:
    """An adapter's name is that under which the engine has it, by which an endpoint picker finds the pods that have it in use."""
    return {
        "apiVersion": f"{LLM_D}/v1alpha2",
        "kind": REWRITE,
        "metadata": about,
        "spec": {
            "poolRef": {"group": GROUP, "kind": POOL, "name": parent.name},
            "rules": [
                {
                    "matches": [{"model": {"type": "Exact", "value": model.name}}],
                    "targets": [
                        {"modelRewrite": one.sha256, "weight": one.weight} for one in model.routes if one.weight
                    ],
                }
                for model in index.models
            ],
        },
    }
