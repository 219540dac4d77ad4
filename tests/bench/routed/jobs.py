"""The job with servers of its own, and the pool, that the controller leads to."""

import base64
from typing import Any

from bench.routed import controller
from support import site as sites
from support.site import NAMESPACE, Site
from trainer import tiny

NAME, KEY = "tone", "key-of-the-clients"
HOST = f"{NAME}.{controller.DOMAIN}"
STEPS = [{"weight": 20, "pause": "40s"}, {"weight": 50, "pause": "30s"}]
REQUESTS = 40
SERVER = {"gpus": 0, "requests": {"cpu": "250m", "memory": "3Gi"}}

POOL, POOLED, MODEL = "shared", "pooled", "mail"
POOL_HOST = f"{POOL}.{controller.DOMAIN}"
MINE, OTHERS = "key-of-this-namespace", "key-of-another-namespace"


def secret(name: str, **entries: str) -> dict[str, Any]:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in entries.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": NAMESPACE}, "data": data}


def good(count: int) -> list[dict[str, Any]]:
    """Short answers that end."""
    return tiny.examples(count)


def bad() -> list[dict[str, Any]]:
    """Answers that do not end before the limit of tokens that clients set."""
    rows = tiny.examples(60)
    for row in rows:
        row["messages"][-1]["content"] = "it is great! " * 12
    return rows


def routed(site: Site, data: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    deployment = {
        "pool": "Dedicated",
        "servedModelName": NAME,
        "resources": SERVER,
        "extraArgs": ["--max-model-len=256"],
        "apiKeySecret": f"{NAME}-key",
        "route": {"host": HOST},
        "rollout": {"steps": STEPS, "minimumRequests": REQUESTS},
    }
    return _spec(site, f"{NAME}/{data}", rows, deployment)


def pooled(site: Site) -> dict[str, Any]:
    return _spec(site, POOLED, tiny.examples(60), {"pool": POOL, "servedModelName": MODEL})


def _spec(site: Site, data: str, rows: list[dict[str, Any]], deployment: dict[str, Any]) -> dict[str, Any]:
    base = site.spec(site.upload_rows(f"{data}.jsonl", rows))
    return base | {
        "intent": {"advice": "Ignore"},
        "training": base["training"] | {"maxSteps": 24, "maxSequenceLength": 256},
        "evaluation": {"maximumExamples": 4, "generation": {"maxNewTokens": 4}, "gates": []},
        "deployment": deployment,
    }


def pool(site: Site) -> list[dict[str, Any]]:
    """The pool with its Ingress, and an HTTPRoute to its Service as its owner would write one."""
    spec = {
        "baseModel": {"name": sites.MODEL},
        "resources": SERVER,
        "storage": {
            "endpoint": site.store.endpoint,
            "region": site.store.region,
            "credentialsSecret": sites.SECRET,
        },
        "adapters": {"maxRank": 8, "onGpu": 2, "inMemory": 4},
        "contextLength": 256,
        "keysSecret": "shared-keys",
        "allowedNamespaces": [NAMESPACE, "elsewhere"],
        "ingress": {
            "host": controller.INGRESS_HOST,
            "className": controller.NAME,
            "tlsSecretName": controller.INGRESS_SECRET,
        },
    }
    where = {"name": POOL, "namespace": NAMESPACE}
    rule = {
        "matches": [{"path": {"type": "PathPrefix", "value": "/v1"}}],
        "backendRefs": [{"name": POOL, "port": 8000}],
    }
    route = {
        "parentRefs": [{"name": "public", "namespace": controller.SPACE}],
        "hostnames": [POOL_HOST],
        "rules": [rule],
    }
    return [
        secret("shared-keys", **{NAMESPACE: MINE, "elsewhere": OTHERS}),
        {"apiVersion": "finetune.dev/v1alpha1", "kind": "ServingPool", "metadata": where, "spec": spec},
        {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": where, "spec": route},
    ]
