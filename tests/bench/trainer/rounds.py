"""Cells of workload and model, each side in turn, repetition after repetition."""

import dataclasses
import pathlib
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence

from tests.bench.trainer import batch, course, models, workloads

from toolbox import say

MINUTE = 40.0
"""Seconds that a peer's steps should take at most, where more than two fit in; start and end make it a minute."""

STEPS = 12
"""Counted steps at most."""

Train = Callable[[pathlib.Path, pathlib.Path, batch.Batches], course.Course]
"""A side: trains a model folder, in an empty folder, on the batches. Raises say.Problem."""


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
    """A side that failed in a cell, and what it said."""

    workload: str
    model: str
    side: str
    problem: str


def cells(wanted_workloads: Sequence[str], wanted_models: Sequence[str]) -> list[Cell]:
    """All workloads on the small model and some on the large one; of those what is wanted, or just that."""
    return [
        Cell(workload, model)
        for model in models.TITLES
        for workload in workloads.ALL
        if model in (wanted_models or models.TITLES)
        and (workload.name in wanted_workloads if wanted_workloads else model == models.SMALL or workload.large)
    ]


def steps(rate: float, tokens: float) -> int:
    """Counted steps of a cell for a peer that trains on `rate` tokens per second; `tokens`: of one step."""
    return max(1, min(STEPS, int(MINUTE * rate / tokens) - 1))


def run(
    cell: Cell,
    model: pathlib.Path,
    given: batch.Batches,
    sides: Mapping[str, Train],
    repetitions: int,
    done: Callable[[Record | Missing], None],
) -> None:
    """All repetitions of a cell; each result goes to `done` as soon as it is there. A side that fails is left out."""
    names, failed = list(sides), set()
    for repetition in range(repetitions):
        # Each round begins with another side, so that none always comes after the same.
        turn = repetition % len(names)
        for name in [*names[turn:], *names[:turn]]:
            if name in failed:
                continue
            try:
                result = once(sides[name], model, given)
            except say.Problem as problem:
                failed.add(name)
                say.line(f"    {name}: {problem}")
                done(Missing(cell.workload.name, cell.model, name, _last_words(problem)))
                continue
            say.line(
                f"    {repetition + 1}/{repetitions} {name:18} {result.rate:7.0f} tokens/s  {result.peak >> 20:6} MiB  "
                f"loss {result.final_loss:.4f}  first step after {result.first_step:.1f} s"
            )
            done(Record(cell.workload.name, cell.model, name, repetition, result))


def _last_words(problem: say.Problem) -> str:
    """The last line, without the folders of this machine."""
    return re.sub(r"/\S*/", "", str(problem).strip().splitlines()[-1].strip())


def once(side: Train, model: pathlib.Path, given: batch.Batches) -> course.Course:
    """One run, in a folder of its own that goes away."""
    with tempfile.TemporaryDirectory(prefix="bench-trainer-") as work:
        return side(model, pathlib.Path(work), given)
