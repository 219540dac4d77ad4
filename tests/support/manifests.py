"""Manifests of the tests: the smallest valid ones, and a way to change a value deep inside."""

import copy
import re
from pathlib import Path
from typing import Any

import yaml

import finetune_api

REPOSITORY = Path(__file__).resolve().parents[2]
REMOVED = object()
"""As a value of `changed`: the field is taken away."""

MINIMAL: dict[str, Any] = {
    "apiVersion": finetune_api.API_VERSION,
    "kind": "FineTuneJob",
    "metadata": {"name": "support-tone"},
    "spec": {
        "baseModel": {"name": "qwen2.5-7b-instruct"},
        "dataset": {"train": ["s3://acme/support/train.jsonl"]},
        "storage": {"output": "s3://acme/finetune"},
    },
}
ENTRY: dict[str, Any] = {
    "apiVersion": finetune_api.API_VERSION,
    "kind": "BaseModel",
    "metadata": {"name": "qwen2.5-7b-instruct"},
    "spec": {
        "source": "hf://Qwen/Qwen2.5-7B-Instruct",
        "architecture": {
            "layers": 28,
            "hiddenSize": 3584,
            "intermediateSize": 18944,
            "attentionHeads": 28,
            "keyValueHeads": 4,
            "headDim": 128,
            "vocabularySize": 152064,
            "maxPositions": 32768,
        },
    },
}


def every_field() -> dict[str, Any]:
    """The example that sets every field of a FineTuneJob."""
    return yaml.safe_load((REPOSITORY / "examples" / "every-field.yaml").read_text())


def changed(manifest: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy with values set at dotted paths: `changed(MINIMAL, **{"spec.training.epochs": 0})`."""
    manifest = copy.deepcopy(manifest)
    for path, value in changes.items():
        *parents, last = re.findall(r"[^.\[\]]+", path)
        node: Any = manifest
        for key in parents:
            node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
        if value is REMOVED:
            del node[last]
        elif isinstance(node, list):
            node[int(last)] = value
        else:
            node[last] = value
    return manifest
