"""The search for a peer's best settings: variants of TRL's, each measured as the benchmark measures.

`make bench-trainer ARGS=--search` measures them all and writes docs/benchmarks/trl-settings.md; which of them `peers.TRL`
takes is decided by a person who reads it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from tests.bench.trainer import batch, course, peers, workloads

WORKLOADS = ("short", "shared-system")

_BFLOAT16: dict[str, Any] = {"dtype": "bfloat16", "gradient_checkpointing": False}


def _micro(size: int, **settings: Any) -> dict[str, Any]:
    return _BFLOAT16 | {"per_device_train_batch_size": size} | settings


def _flat(size: int, **settings: Any) -> dict[str, Any]:
    return _micro(size, padding_free=True, max_length=None, **settings)


VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no checkpointing": {"gradient_checkpointing": False},
    "bfloat16 base, micro-batch 1": _micro(1),
    "bfloat16 base, micro-batch 2": _micro(2),
    "bfloat16 base, micro-batch 4": _micro(4),
    "bfloat16 base, micro-batch 8": _micro(8),
    "bfloat16 base, micro-batch 16": _micro(16),
    "the same without autocast, micro-batch 4": _micro(4, bf16=False),
    "padding-free, micro-batch 4": _flat(4),
    "padding-free, micro-batch 16": _flat(16),
    "torch.compile, micro-batch 4": _micro(4, torch_compile=True),
    "one thread, micro-batch 4": _micro(4, threads=1),
}
"""Beside what the recipe fixes. Packing is not among them: it draws other examples into a step. Padding-free is the same
computation (documents laid end to end, each attending to itself) on the step's own examples."""


@dataclasses.dataclass(frozen=True)
class Found:
    """A variant on a workload."""

    variant: str
    workload: str
    course: course.Course


def candidates() -> list[peers.Peer]:
    return [dataclasses.replace(peers.TRL, name=name, settings=settings) for name, settings in VARIANTS.items()]
