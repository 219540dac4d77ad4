"""The trainer's own passes against autograd through transformers, loss and gradients, on this very device.

The reference is autograd in float32 with the same weights; in bfloat16 own passes may differ from it by twice what autograd does.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from tests.bench.gpu import models
from tests.trainer import decoders

from finetune_api import job
from finetune_trainer.engine import decoder, lora, loss, model, passes, prefix_tree
from finetune_trainer.training import checkpoint, objective

EXACT = 1e-3
"""Difference of loss and gradients, of their norm, that rounding in float32 explains."""

TIMES = 2.0
"""In bfloat16: of the difference that autograd has there."""


@dataclasses.dataclass(frozen=True)
class Check:
    name: str
    difference: float
    bound: float
    fault: str = ""
    """The exception that ended it."""

    @property
    def passed(self) -> bool:
        return not self.fault and self.difference <= self.bound


def checks(where: torch.device) -> Iterator[Check]:
    """Every family, with its windows, over shared prefixes; both precisions and both objectives."""
    for family, config in decoders.FAMILIES.items():
        for dtype in (torch.float32, torch.bfloat16):
            name = f"{family}, {str(dtype).removeprefix('torch.')}"
            yield tried(name, lambda: check(name, config(), dtype, where, job.Objective.SFT))  # noqa: B023
    llama = decoders.FAMILIES["llama 3"]
    name = "llama 3, DPO, float32"
    yield tried(name, lambda: check(name, llama(), torch.float32, where, job.Objective.DPO))
    name = "llama 3, QLoRA"
    yield tried(name, lambda: check(name, llama(), torch.bfloat16, where, job.Objective.SFT, quantised=True))
    name = "llama 3, resumed after two of four steps"
    yield tried(name, lambda: Check(name, resumed(llama(), where), 0.0))


def tried(name: str, run: Callable[[], Check]) -> Check:
    """The check, or what ended it: the next one begins in any case."""
    try:
        return run()
    except Exception as problem:
        return Check(name, float("nan"), 0.0, f"{type(problem).__name__}: {problem}"[:300])


def check(
    name: str,
    config: Any,
    dtype: torch.dtype,
    where: torch.device,
    kind: job.Objective,
    *,
    quantised: bool = False,
) -> Check:
    goal = objective.of(job.Training(objective=kind))

    def plain(tuned: Any) -> torch.Tensor:
        return learned(goal, passes.Plain(tuned, loss.head_of(tuned.get_base_model()), where), tuned)

    exact = plain(_made(config, torch.float32, where, quantised=quantised))
    rounded = plain(_made(config, dtype, where, quantised=quantised))
    tuned = _made(config, dtype, where, quantised=quantised)
    inner = decoder.Decoder(model.decoder(tuned), where)
    own = learned(goal, passes.Fast(inner, loss.head_of(tuned.get_base_model()), where), tuned)
    difference, usual = (float((one - exact).norm() / exact.norm()) for one in (own, rounded))
    return Check(name, difference, EXACT if dtype is torch.float32 else TIMES * usual)


def _made(config: Any, dtype: torch.dtype, where: torch.device, *, quantised: bool) -> Any:
    """The same weights each time, rounded to bfloat16, in this precision."""
    if quantised:
        tuned = models.adapted(config, where, quantised=True)
        for weight in lora.parameters(tuned).values():
            torch.nn.init.normal_(weight, std=0.1)
    else:
        tuned = decoders.made(config).to(where)
    base = tuned.get_base_model()
    for weight in base.parameters():
        if not weight.requires_grad and weight.is_floating_point():
            weight.data = weight.data.bfloat16().to(dtype)
    for layer in base.modules():
        if hasattr(layer, "compute_dtype"):
            layer.compute_dtype = dtype
    return tuned


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
