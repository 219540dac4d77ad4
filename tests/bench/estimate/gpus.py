"""The estimate for GPUs against peaks of live fake tensors: the catalogue's models on one GPU of 24, 48 and 80 GiB."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from tests.bench.estimate import fake
from tests.trainer import test_fake_gpu, test_parallelism

from finetune_trainer.planning import memory, parallelism

SIZES = (24, 48, 80)
"""GiB"""

LEARNED = 0.5
"""Share of the tokens."""


@dataclasses.dataclass(frozen=True)
class Peak:
    """Bytes of tensors: of the estimate, all but CUDA's context and fragmentation."""

    model: str
    gib: int
    method: str
    tokens: int
    checkpointing: bool
    estimate: int
    live: int
    total: int
    """The whole estimate."""

    @property
    def error(self) -> float:
        return self.estimate / self.live - 1


def plan(model: str, gib: int) -> parallelism.Plan | None:
    """LoRA where it fits, else QLoRA, else nothing."""
    for method in ("LoRA", "QLoRA"):
        case = test_parallelism.case_of(model, method, 1)
        case = dataclasses.replace(case, examples=dataclasses.replace(case.examples, learned=LEARNED))
        made = parallelism.choose(case, gib << 30)
        if made.fits:
            return made
    return None


def measure(model: str, gib: int) -> Peak | None:
    """None where the model does not fit."""
    made = plan(model, gib)
    if made is None:
        return None
    setup = made.setup
    live = fake.peak(test_fake_gpu.config_of(model), made.case, setup.tokens, checkpointing=setup.checkpointing)
    total = setup.memory.total
    tensors = total - setup.memory.of(memory.Purpose.OVERHEAD)
    method = made.case.training.method.value
    return Peak(model, gib, method, setup.tokens, setup.checkpointing, tensors, live, total)


def stored(path: pathlib.Path) -> list[Peak]:
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return [Peak(**one) for one in found]


def write(path: pathlib.Path, peaks: Sequence[Peak]) -> None:
    path.write_text(json.dumps([dataclasses.asdict(one) for one in peaks], indent=1) + "\n")


def report(peaks: Sequence[Peak]) -> list[str]:
    if not peaks:
        return []
    errors = [one.error for one in peaks]
    rows = [
        f"| {one.model} | {one.gib} | {one.method} | {one.tokens:,} | {'yes' if one.checkpointing else 'no'} | "
        f"{_gib(one.estimate)} | {_gib(one.live)} | {one.error:+.1%} | {_gib(one.total)} |"
        for one in peaks
    ]
    return [
        "## GPUs",
        "",
        "No GPU was at hand. A step of training with fake tensors, which have shapes and devices and no numbers, in the real "
        "shapes of the catalogue's models: the peak of the bytes that live at once, against what the estimate counts as tensors. "
        "FlexAttention's kernel and bitsandbytes' are replaced by ones that make the same tensors. Rows of 2,048 tokens, half of "
        "them learned, rank 16; the micro-batch is the one that the estimate chooses for one GPU of this size. `total` also "
        "has CUDA's context and a tenth for fragmentation, which fake tensors do not show. Layers that are sharded over several "
        "GPUs, and the standard path, are estimated and were not measured so. While a process loads its part of such layers it "
        "holds less than in training: its part, what is not sharded, and one weight (`tests/trainer/test_own_part.py`). "
        "Written by `make bench-estimate ARGS=--gpus`.",
        "",
        "| model | GPU, GiB | method | micro-batch, tokens | checkpointing | estimated, GiB | live, GiB | error | total, GiB |",
        "|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"Errors reach from {min(errors):+.1%} to {max(errors):+.1%}.",
        "",
    ]


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
