"""Where an adapter would learn, from config.json alone: transformers builds the model without weights, on torch's meta device.

preflight, for families that `architecture.FAST` does not list -> here
"""

import dataclasses
import pathlib
import re
from typing import Any

import torch

from finetune_api import job
from finetune_trainer.engine import lora
from finetune_trainer.process import errors, log

TOWER = re.compile(r"(?:^|[._])(?:vision|visual|image|img|audio|speech)(?:[._]|$)")
"""Parts of a module's name by which it reads something else than text."""


@dataclasses.dataclass(frozen=True)
class Layers:
    """The layers that an adapter adapts."""

    names: tuple[str, ...]
    """Without their parents': q_proj, up_proj, ..."""
    towers: tuple[str, ...] = ()
    """Whole names of those that read images or sound."""
    experts: int | None = None
    """Experts of a layer that stay as they are; None: the model has none."""


def find(folder: pathlib.Path, modules: job.Modules) -> Layers | None:
    """The layers of the model in a folder; None where this environment cannot build the model. Raises Failure(MODEL_INVALID)
    where there are none."""
    try:
        model = _built(folder)
    except Exception as error:  # a family may need packages that only its images or sound need
        log.warning("the model's layers are not known before training", problem=errors.describe(error))
        return None
    names = lora.targets(model, modules)
    adapted = [name for name, module in lora.linears(model) if name.rpartition(".")[2] in names]
    return Layers(tuple(names), tuple(name for name in adapted if TOWER.search(name)), _experts(model))


def _built(folder: pathlib.Path) -> Any:
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _experts(model: Any) -> int | None:
    """Experts whose weights are one parameter [experts, ...] and no linear layers."""
    sizes = [
        weight.shape[0]
        for name, module in model.named_modules()
        if "expert" in name.rpartition(".")[2].lower()
        for weight in module.parameters(recurse=False)
        if weight.dim() == 3
    ]
    return max(sizes, default=None)
