"""The search for TRL's best settings: variants, measured as the benchmark measures, with `make bench-trainer ARGS=--search`.

Its table is part of the page. What `peers.TRL` takes is decided by a person who reads it.
"""

import dataclasses
import json
import pathlib
from typing import Any

from tests.bench.trainer import course, peers, workloads

FILE = "trainer-search.json"

WORKLOADS = ("short", "shared-system")

_BFLOAT16: dict[str, Any] = {"dtype": "bfloat16", "gradient_checkpointing": False}


def _micro(size: int, **settings: Any) -> dict[str, Any]:
    return _BFLOAT16 | {"per_device_train_batch_size": size} | settings


def _flat(size: int) -> dict[str, Any]:
    return _micro(size, padding_free=True, max_length=None)


VARIANTS: dict[str, dict[str, Any]] = {
    "defaults: float32 base, checkpointing, micro-batch 8": {},
    "without checkpointing": {"gradient_checkpointing": False},
    "bfloat16 base, micro-batch 1": _micro(1),
    "bfloat16 base, micro-batch 2": _micro(2),
    "bfloat16 base, micro-batch 4": _micro(4),
    "bfloat16 base, micro-batch 8": _micro(8),
    "bfloat16 base, micro-batch 16": _micro(16),
    "without autocast, micro-batch 4": _micro(4, bf16=False),
    "padding-free, micro-batch 4": _flat(4),
    "padding-free, micro-batch 16": _flat(16),
    "one thread, micro-batch 4": _micro(4, threads=1),
}
"""Beside what the recipe fixes. Packing is not among them: it draws other examples into a step. Padding-free is the same
computation (documents laid end to end, each attending to itself) on the step's own examples. Nor is torch.compile: its second
step was not done after seven minutes of processor time, since batches of other lengths are compiled again."""


@dataclasses.dataclass(frozen=True)
class Found:
    """A variant on a workload; medians of the repetitions, the highest peak."""

    variant: str
    workload: str
    tokens_per_second: float
    peak_mib: int
    final_loss: float


def candidates() -> list[peers.Peer]:
    return [
        dataclasses.replace(peers.TRL, name=name, settings=settings, long={}) for name, settings in VARIANTS.items()
    ]


def chosen(one: Found) -> bool:
    """Whether it is what `peers.TRL` takes for that workload."""
    texts = workloads.BY_NAME[one.workload]
    tokens = texts.system + texts.turns * (texts.prompt + texts.answer)
    return VARIANTS.get(one.variant) == peers.TRL.chosen(tokens)


def found(variant: str, workload: str, run: course.Course) -> Found:
    return Found(variant, workload, round(run.rate, 1), run.peak >> 20, round(run.final_loss, 4))


def write(all_found: list[Found], folder: pathlib.Path) -> None:
    lines = ",\n ".join(json.dumps(dataclasses.asdict(one)) for one in all_found)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(f"[\n {lines}\n]\n")


def read(folder: pathlib.Path) -> list[Found]:
    """What was found; nothing where nobody searched."""
    path = folder / FILE
    return [Found(**one) for one in json.loads(path.read_text())] if path.exists() else []
