"""Cells of a few seconds: one workload, one engine; tokens of the data per second, peak memory, and the estimate of it."""

import dataclasses
import gc
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tests.bench.gpu import models, peers

from finetune_api import job
from finetune_trainer.engine import lora, model, passes, prefix_tree
from finetune_trainer.planning import architecture, memory, workload
from finetune_trainer.training import objective


@dataclasses.dataclass(frozen=True)
class Workload:
    """Rows of one micro-batch."""

    name: str
    count: int
    length: int
    """Tokens of a row after what all share."""
    shared: int = 0
    quantised: bool = False

    def rows(self, vocabulary: int, scale: float) -> list[prefix_tree.TokenRow]:
        random = np.random.default_rng(0)
        sizes = [max(4, round(size * scale)) for size in (self.shared, self.length)]
        begin = random.integers(1, vocabulary, sizes[0] if self.shared else 0)
        made = []
        for _ in range(self.count):
            ids = np.concatenate([begin, random.integers(1, vocabulary, sizes[1])])
            made.append(prefix_tree.TokenRow(ids, np.arange(len(ids)) >= len(begin)))
        return made


WORKLOADS = (
    Workload("a: 4,096 tokens packed", 1, 4096),
    Workload("b: rows of 200 tokens", 20, 200),
    Workload("c: a shared prompt of 430 tokens", 16, 85, shared=430),
    Workload("d: QLoRA, 2,000 tokens", 1, 2000, quantised=True),
)


@dataclasses.dataclass(frozen=True)
class Cell:
    model: str
    workload: str
    engine: str
    tokens_per_second: float
    """0: it has a fault."""
    share_of_matmul_rate: float
    peak: int
    """Bytes; 0 on a CPU, where all cells share one process."""
    estimated: int
    """Bytes, of training as a whole."""
    seconds_to_first_step: float
    """From nothing: the model, the engine with its proof, and the step."""
    checkpointing: bool = False
    """Whether the estimate requires gradient checkpointing on this device."""
    fault: str = ""
    """Why there are no figures."""
    allowed: bool = True
    """Whether the fault is none of ours: too little memory."""


def cells(where: torch.device, rate: float, seconds: float, *, shrunk: bool) -> Iterator[Cell]:
    """The trainer's own passes, the standard path, and TRL, each with a model of its own; `rate`: the device's matrix products in
    FLOP/s. What one ends with is its cell's fault, and the next one begins."""
    for name in models.SHAPES:
        for work in WORKLOADS:
            config = models.config_of(name, shrunk=shrunk)
            rows = work.rows(config.vocab_size, 0.05 if shrunk else 1.0)
            for way in ("Fast", "Plain", *peers.names(where)):
                _free(where)
                try:
                    cell = measure(name, work, rows, way, config, where, rate, seconds)
                except torch.OutOfMemoryError:
                    cell = Cell(name, work.name, way, 0.0, 0.0, _peak(where), 0, 0.0, fault="out of memory")
                except Exception as problem:
                    fault = f"{type(problem).__name__}: {problem}"[:300]
                    ours = way in ("Fast", "Plain")
                    cell = Cell(name, work.name, way, 0.0, 0.0, _peak(where), 0, 0.0, fault=fault, allowed=not ours)
                yield cell
    _free(where)


def _free(where: torch.device) -> None:
    gc.collect()
    if where.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(where)


def _peak(where: torch.device) -> int:
    return model.peak(where) if where.type == "cuda" else 0


def measure(
    name: str,
    work: Workload,
    rows: list[prefix_tree.TokenRow],
    way: str,
    config: Any,
    where: torch.device,
    rate: float,
    seconds: float,
) -> Cell:
    case = dataclasses.replace(_case(config, work, rows), chosen=way == "Fast")
    tokens, checkpointing = sum(len(row.ids) for row in rows), False
    if where.type == "cuda":
        capacity = torch.cuda.get_device_properties(where).total_memory
        checkpointing = memory.memory(case, tokens, checkpointing=False).total > memory.SHARE["cuda"] * capacity
    if way in ("Fast", "Plain"):
        speed, first = _ours(work, rows, way, config, where, seconds, checkpointing=checkpointing)
    else:
        speed, first = peers.measure(way, config, rows, work.quantised, where, seconds, checkpointing=checkpointing)
    return Cell(
        model=name,
        workload=work.name,
        engine=way,
        tokens_per_second=round(speed, 1),
        share_of_matmul_rate=round(_work(case) * speed / rate, 3),
        peak=_peak(where),
        estimated=memory.memory(case, tokens, checkpointing=checkpointing).total,
        seconds_to_first_step=round(first, 2),
        checkpointing=checkpointing,
    )


def _ours(
    work: Workload,
    rows: list[prefix_tree.TokenRow],
    way: str,
    config: Any,
    where: torch.device,
    seconds: float,
    *,
    checkpointing: bool,
) -> tuple[float, float]:
    """Tokens per second after the first step, and seconds from nothing to its end. Raises RuntimeError where the trainer's own
    passes do not prove themselves: it would use the standard path."""
    begun = time.monotonic()
    tuned = models.adapted(config, where, quantised=work.quantised)
    head = model.head(tuned.get_base_model())
    engine: passes.Engine = passes.of(tuned, head, where) if way == "Fast" else passes.Plain(tuned, head, where)
    if way == "Fast" and not engine.shares:
        raise RuntimeError(f"own passes do not prove themselves here; training goes {engine.note}")
    if checkpointing:
        engine.checkpoint()
    goal, weights = objective.Supervised(), lora.parameters(tuned)
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-4, weight_decay=0.0, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        goal.learn(engine, rows, goal.units(rows))
        optimizer.step()
        engine.refresh()
        if where.type == "cuda":
            torch.cuda.synchronize(where)

    step()
    first = time.monotonic() - begun
    started, steps = time.monotonic(), 0
    while steps == 0 or time.monotonic() - started < seconds:
        step()
        steps += 1
    return sum(len(row.ids) for row in rows) * steps / (time.monotonic() - started), first


def _work(case: workload.Workload) -> int:
    """FLOP of a token: a frozen weight takes part in two products forward and two backward."""
    return 4 * case.shape.numbers.layers * sum(one.weights for one in case.shape.linears(job.LoRA()))


def _case(config: Any, work: Workload, rows: list[prefix_tree.TokenRow]) -> workload.Workload:
    shape = architecture.of(config.to_dict())
    assert shape is not None
    method = job.Method.QLORA if work.quantised else job.Method.LORA
    training = job.Training(method=method, lora=job.LoRA(rank=16, alpha=32))
    longest = max(len(row.ids) for row in rows)
    return workload.Workload(
        shape, training, workload.Examples.of_one_kind(longest, len(rows)), workload.Device("cuda")
    )


def matmul_rate(where: torch.device, size: int) -> float:
    """FLOP/s of bfloat16 matrix products on the device, the best of three."""
    a, b = (torch.randn(size, size, device=where, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(3):
        begun = time.monotonic()
        for _ in range(8):
            a @ b
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        best = max(best, 8 * 2 * size**3 / (time.monotonic() - begun))
    return best
