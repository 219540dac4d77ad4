"""Cells of a few seconds: one workload, one engine; tokens of the data per second, peak memory, and the estimate of it."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tests.bench.gpu import models

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
    """0: out of memory."""
    share_of_matmul_rate: float
    peak: int
    """Bytes; 0 on a CPU, where all cells share one process."""
    estimated: int
    """Bytes, of training as a whole."""
    seconds_to_first_step: float


def cells(where: torch.device, rate: float, seconds: float, *, shrunk: bool) -> Iterator[Cell]:
    """The trainer's choice of an engine, and the standard path; `rate`: the device's matrix products in FLOP/s."""
    for name in models.SHAPES:
        for work in WORKLOADS:
            config = models.config_of(name, shrunk=shrunk)
            begun = time.monotonic()
            tuned = models.adapted(config, where, quantised=work.quantised)
            head = model.head(tuned.get_base_model())
            rows = work.rows(config.vocab_size, 0.05 if shrunk else 1.0)
            for engine in (passes.of(tuned, head, where), passes.Plain(tuned, head, where)):
                try:
                    yield measure(name, work, rows, engine, tuned, where, rate, seconds, begun)
                except torch.OutOfMemoryError:
                    yield Cell(name, work.name, type(engine).__name__, 0.0, 0.0, model.peak(where), 0, 0.0)
                begun = time.monotonic()
            del tuned, head, engine
            if where.type == "cuda":
                torch.cuda.empty_cache()


def measure(
    name: str,
    work: Workload,
    rows: list[prefix_tree.TokenRow],
    engine: passes.Engine,
    tuned: Any,
    where: torch.device,
    rate: float,
    seconds: float,
    begun: float,
) -> Cell:
    goal, weights = objective.Supervised(), lora.parameters(tuned)
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-4, weight_decay=0.0, fused=True)
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)

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
    tokens = sum(len(row.ids) for row in rows) * steps / (time.monotonic() - started)
    method = job.Method.QLORA if work.quantised else job.Method.LORA
    case = _case(tuned, method, rows)
    linear = case.shape.numbers.layers * sum(one.weights for one in case.shape.linears(job.LoRA()))
    return Cell(
        model=name,
        workload=work.name,
        engine=type(engine).__name__,
        tokens_per_second=round(tokens, 1),
        share_of_matmul_rate=round(
            4 * linear * tokens / rate, 3
        ),  # a frozen weight: two products forward, two backward
        peak=model.peak(where) if where.type == "cuda" else 0,
        estimated=memory.memory(case, sum(len(row.ids) for row in rows), checkpointing=False).total,
        seconds_to_first_step=round(first, 2),
    )


def _case(tuned: Any, method: job.Method, rows: list[prefix_tree.TokenRow]) -> workload.Workload:
    shape = architecture.of(tuned.get_base_model().config.to_dict())
    assert shape is not None
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
