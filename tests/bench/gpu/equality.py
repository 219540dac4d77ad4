"""The trainer's own passes against autograd through transformers, loss and gradients, on this very device."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tests.bench.gpu import models
from tests.trainer import decoders

from finetune_api import job
from finetune_trainer.engine import decoder, lora, loss, model, passes, prefix_tree
from finetune_trainer.training import checkpoint, objective

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
    llama = decoders.FAMILIES["llama 3"]
    yield check("llama 3, DPO, float32", llama(), torch.float32, where, job.Objective.DPO)
    yield check("llama 3, QLoRA", llama(), torch.bfloat16, where, job.Objective.SFT, quantised=True)
    yield Check("llama 3, resumed after two of four steps", resumed(llama(), where), 0.0)


def check(
    name: str,
    config: Any,
    dtype: torch.dtype,
    where: torch.device,
    kind: job.Objective,
    *,
    quantised: bool = False,
) -> Check:
    if quantised:
        tuned = models.adapted(config, where, quantised=True)
        for weight in lora.parameters(tuned).values():
            torch.nn.init.normal_(weight, std=0.1)
    else:
        tuned = decoders.made(config).to(where)
    base = tuned.get_base_model()
    for weight in base.parameters():
        if not weight.requires_grad and weight.is_floating_point():
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


def resumed(config: Any, where: torch.device) -> float:
    """The largest difference of an adapter after four steps, and after two, a checkpoint and two more."""
    whole, _ = _steps(config, where, 4)
    _, half = _steps(config, where, 2)
    again, _ = _steps(config, where, 2, half)
    return max(float((whole[name] - again[name]).abs().max()) for name in whole)


def _steps(
    config: Any, where: torch.device, count: int, snapshot: checkpoint.Snapshot | None = None
) -> tuple[checkpoint.Tensors, checkpoint.Snapshot]:
    """The adapter after some steps of a training, and its checkpoint."""
    tuned = decoders.made(config).to(where)
    weights, goal = lora.parameters(tuned), objective.Supervised()
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-2, weight_decay=0.0, fused=True)
    engine = passes.of(tuned, loss.head_of(tuned.get_base_model()), where)
    if snapshot is not None:
        checkpoint.restore(snapshot, weights, optimizer)
        engine.refresh()
    for _ in range(count):
        optimizer.zero_grad(set_to_none=True)
        goal.learn(engine, rows(), goal.units(rows()))
        optimizer.step()
        engine.refresh()
    taken = checkpoint.capture(weights, optimizer, checkpoint.State(), checkpoint.randomness(), None)
    return taken.adapter, taken


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
