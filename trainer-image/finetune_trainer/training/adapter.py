"""The adapter as files in PEFT's layout, checked before the upload against what vLLM refuses or silently ignores."""

import json
import pathlib
import re
from typing import Any

import safetensors.torch
import torch

from finetune_api import reasons, status
from finetune_trainer.engine import lora
from finetune_trainer.process import errors
from finetune_trainer.store import folders, storage

WEIGHTS, CONFIG, TEMPLATE = "adapter_model.safetensors", "adapter_config.json", "chat_template.jinja"

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM serves."""

KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")

MUST: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "init_lora_weights": (True, False, "gaussian"),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
}
"""Settings of adapter_config.json, and the values with which vLLM computes the same as PEFT."""

MULTIMODAL = "ForConditionalGeneration"


def write(
    folder: pathlib.Path, tuned: Any, tensors: dict[str, torch.Tensor], template: str | None, dtype: torch.dtype
) -> None:
    """PEFT's two files, and the chat template of the training.

    Weights are in the precision that the adapter was computed in, so that serving does not round them again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name.replace(f".{lora.ADAPTER}.", "."): tensor.to(dtype).contiguous() for name, tensor in tensors.items()
    }
    safetensors.torch.save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    config = tuned.peft_config[lora.ADAPTER].to_dict()
    config |= {"inference_mode": True, "target_modules": sorted(config["target_modules"])}
    text = json.dumps({key: value for key, value in config.items() if _plain(value)}, indent=1, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n")
    if template:
        (folder / TEMPLATE).write_text(template)


def _plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def check(folder: pathlib.Path, base_name: str, model: Any = None) -> None:
    """Raises Failure(AdapterIncompatible), naming everything that vLLM would refuse or not apply."""
    config = json.loads((folder / CONFIG).read_text())
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    problems = [
        f"{key} is {config[key]!r}" for key, values in MUST.items() if key in config and config[key] not in values
    ]
    if config.get("r") not in RANKS:
        problems.append(f"the rank {config.get('r')} is not one of {', '.join(map(str, RANKS))}")
    if config.get("base_model_name_or_path") != base_name:
        problems.append(f"it names the base {config.get('base_model_name_or_path')!r}, expected {base_name!r}")
    problems += _weights(weights, config.get("r"), model)
    if problems:
        raise errors.Failure(
            reasons.Reason.ADAPTER_INCOMPATIBLE, "vLLM would not serve this adapter: " + "; ".join(problems[:10])
        )


def _weights(weights: dict[str, torch.Tensor], rank: Any, model: Any) -> list[str]:
    problems, modules = [], None
    if model is not None:
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        modules = {name.replace(".base_layer", "") for name, _ in inner.named_modules()}
        head = inner.get_output_embeddings()
        names = {name for name, module in inner.named_modules() if module is head}
    if not weights:
        problems.append("it has no weights")
    for key, tensor in weights.items():
        found = KEY.match(key)
        if not found or (modules is not None and found["module"] not in modules):
            problems.append(f"{key} matches no layer of the base model")
        elif found["module"].rpartition(".")[2] in ("lm_head", "embed_tokens") or (model and found["module"] in names):
            problems.append(f"{key} changes the embedding or the output head")
        elif tensor.shape[0 if found["side"] == "A" else 1] != rank:
            problems.append(f"{key} has the shape {tuple(tensor.shape)}, expected rank {rank}")
        if not torch.isfinite(tensor).all():
            problems.append(f"{key} holds values that are not finite")
    if weights and not any(tensor.any() for key, tensor in weights.items() if ".lora_B." in key):
        problems.append("all of its B matrices are zero: it has no effect")
    return problems


def load(folder: pathlib.Path, tuned: Any) -> None:
    """An adapter's weights into a model that `lora.add` made."""
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    with torch.no_grad():
        for name, weight in lora.parameters(tuned).items():
            weight.copy_(weights[name.replace(f".{lora.ADAPTER}.", ".")])


def described(uri: str, manifest: folders.Manifest, rank: int) -> status.Adapter:
    """The adapter for the status."""
    template = any(file.path == TEMPLATE for file in manifest.files)
    return status.Adapter(uri=uri, sha256=manifest.sha256, bytes=manifest.bytes, rank=rank, chat_template=template)


def upload(store: storage.Storage, folder: pathlib.Path, uri: str, rank: int, extra: dict[str, Any]) -> status.Adapter:
    """Uploads the folder; `extra` goes into its manifest, so that a later attempt can return this one's result."""
    return described(uri, folders.save(store, folder, uri, extra), rank)
