"""The fleet's pool: one pod that serves the jobs of one kind, and what it answers for their models."""

import time
import urllib.error
from typing import Any

from chaos import api
from support import site as sites

NAME = "chaos"
CONTEXT = 256
"""Tokens."""
CHAT = f"/api/v1/{{}}/services/{NAME}:8000/proxy/v1/chat/completions"
QUESTION = [
    {"role": "system", "content": "Answer with one colour."},
    {"role": "user", "content": "The router number 3 shines grey. Which colour?"},
]


def manifest(site: sites.Site, namespace: str) -> dict[str, Any]:
    store = {"endpoint": site.store.endpoint, "region": site.store.region, "credentialsSecret": sites.SECRET}
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "ServingPool",
        "metadata": {"name": NAME, "namespace": namespace},
        "spec": {
            "baseModel": {"name": sites.MODEL},
            "resources": {"gpus": 0, "requests": {"cpu": "250m", "memory": "3Gi"}},
            "storage": store,
            "adapters": {"maxRank": 8, "onGpu": 4, "inMemory": 8},
            "contextLength": CONTEXT,
        },
    }


def answer(server: api.Api, model: str, patience: float) -> str:
    """What clients get for a model, once gateway and engine are back."""
    end, status, found = time.monotonic() + patience, 0, None
    while status != 200 and time.monotonic() < end:
        status, found = _ask(server, model)
    return str(found["choices"][0]["message"]["content"]) if found else f"no answer, the last one was HTTP {status}"


def gone(server: api.Api, model: str, patience: float) -> bool:
    """Whether the pool has forgotten a model."""
    end, status = time.monotonic() + patience, 0
    while status != 404 and time.monotonic() < end:
        status, _ = _ask(server, model)
    return status == 404


def _ask(server: api.Api, model: str) -> tuple[int, Any]:
    """Status and document; a moment later where the status is not 200."""
    body = {"model": model, "messages": QUESTION, "max_tokens": 8, "temperature": 0}
    try:
        return 200, server.request("POST", CHAT, body, timeout=60)
    except urllib.error.HTTPError as error:
        status = error.code
    except (OSError, ValueError):
        status = 0
    time.sleep(1)
    return status, None
