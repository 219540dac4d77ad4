"""The run: cells of workload and model, each side in turn, repetition after repetition."""

import dataclasses
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence

from tests.bench.trainer import batch, course, lengths, models, ours, peers, workloads

from toolbox import say

MINUTE = 50.0
"""Seconds that a peer's counted steps should take at most, where more than one step fits in."""

STEPS = 12
"""Counted steps at most."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is measured together: one workload on one model by all sides."""

    workload: workloads.Workload
    model: str


@dataclasses.dataclass(frozen=True)
class Record:
    """One side's run of a cell."""

    workload: str
    model: str
    side: str
    """A peer's name, or that of the product's command."""
    repetition: int
    course: course.Course


@dataclasses.dataclass(frozen=True)
class Missing:
    """A run that failed, and what it said."""

    workload: str
    model: str
    side: str
    problem: str


def cells(wanted_workloads: Sequence[str], wanted_models: Sequence[str]) -> list[Cell]:
    """All workloads on the small model, those of LARGE_WORKLOADS on the large one; or just the wanted of them."""
    return [
        Cell(workload, model)
        for model in (models.SMALL, models.LARGE)
        for workload in workloads.ALL
        if model in (wanted_models or models.TITLES)
        and (workload.name in wanted_workloads if wanted_workloads else model == models.SMALL or workload.large)
    ]


def steps(rate: float, tokens: float) -> int:
    """Counted steps of a cell for a peer that trains on `rate` tokens per second; `tokens`: of one step."""
    return max(1, min(STEPS, int(MINUTE * rate / tokens)))


def probe(model: pathlib.Path, slowest: peers.Peer, counter: lengths.Counter) -> float:
    """Tokens per second of a peer, roughly: one step of the first workload."""
    return _train(slowest.name, model, batch.make(workloads.ALL[0], 1, counter)).rate


def run(
    cell: Cell,
    model: pathlib.Path,
    given: batch.Batches,
    chosen: Sequence[peers.Peer],
    repetitions: int,
    done: Callable[[Record | Missing], None],
) -> None:
    """All repetitions of a cell; each result goes to `done` as soon as it is there. A side that fails is left out."""
    sides = [ours.NAME, *(peer.name for peer in chosen)]
    failed: set[str] = set()
    for repetition in range(repetitions):
        # Each round begins with another side, so that none always comes after the same.
        turn = repetition % len(sides)
        for side in [*sides[turn:], *sides[:turn]]:
            if side in failed:
                continue
            try:
                result = _train(side, model, given)
            except say.Problem as problem:
                failed.add(side)
                say.line(f"    {side}: {problem}")
                done(Missing(cell.workload.name, cell.model, side, str(problem).splitlines()[-1].strip()))
                continue
            say.line(
                f"    {repetition + 1}/{repetitions} {side:18} {result.rate:7.0f} tokens/s  {result.peak >> 20:6} MiB  "
                f"loss {result.final_loss:.4f}  first step after {result.first_step:.1f} s"
            )
            done(Record(cell.workload.name, cell.model, side, repetition, result))


def _train(side: str, model: pathlib.Path, given: batch.Batches) -> course.Course:
    work = pathlib.Path(tempfile.mkdtemp(prefix="bench-trainer-"))
    try:
        if side == ours.NAME:
            return ours.train(model, work, given)
        return peers.train(peers.BY_NAME[side], model, work, given)
    finally:
        shutil.rmtree(work, ignore_errors=True)
