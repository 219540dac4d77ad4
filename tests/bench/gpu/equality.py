"""The trainer's own passes against autograd through transformers, loss and gradients, on this very device."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tests.trainer import decoders

from finetune_api import job
from finetune_trainer.engine import decoder, lora, loss, model, passes, prefix_tree
from finetune_trainer.training import objective

BOUND = {torch.float32: 1e-3, torch.bfloat16: 1e-1}
"""Difference of loss and gradients, of their norm, that rounding explains."""


@dataclasses.dataclass(frozen=True)
class Check:
    name: str
    difference: float
    bound: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.bound


def checks(where: torch.device) -> Iterator[Check]:
    """Every family, with its windows, over shared prefixes; both precisions and both objectives."""
    for family, config in decoders.FAMILIES.items():
        for dtype in BOUND:
            yield check(f"{family}, {str(dtype).removeprefix('torch.')}", config(), dtype, where, job.Objective.SFT)
    yield check("llama 3, DPO, float32", decoders.FAMILIES["llama 3"](), torch.float32, where, job.Objective.DPO)


def check(name: str, config: Any, dtype: torch.dtype, where: torch.device, kind: job.Objective) -> Check:
    tuned = decoders.made(config).to(where)
    base = tuned.get_base_model()
    for weight in base.parameters():
        if not weight.requires_grad:
            weight.data = weight.data.to(dtype)
    head = loss.head_of(base)
    goal = objective.of(job.Training(objective=kind))
    standard = learned(goal, passes.Plain(tuned, head, where), tuned)
    own = learned(goal, passes.Fast(decoder.Decoder(model.decoder(tuned), where), head, where), tuned)
    difference = float((own - standard).norm() / standard.norm())
    return Check(name, difference, BOUND[dtype])


def learned(goal: objective.Objective, engine: passes.Engine, tuned: Any) -> torch.Tensor:
    """The adapter's gradients, one after the other, and the loss."""
    weights = lora.parameters(tuned).values()
    for weight in weights:
        weight.grad = None
    value = goal.learn(engine, rows(), max(1, goal.units(rows())))
    gradients = [weight.grad.reshape(-1).float().cpu() for weight in weights if weight.grad is not None]
    return torch.cat([*gradients, torch.tensor([value])])


def rows() -> list[prefix_tree.TokenRow]:
    """Eight that begin alike in pairs; each crosses the windows."""
    random = np.random.default_rng(0)
    made = []
    for _ in range(4):
        begin = random.integers(1, 380, 40)
        for size in random.integers(10, 50, 2):
            ids = np.concatenate([begin, random.integers(1, 380, size)])
            made.append(prefix_tree.TokenRow(ids, np.arange(len(ids)) > 35))
    return made
