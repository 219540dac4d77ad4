"""What was measured, as files: every run in trainer-runs.json, one row for each comparison in trainer.json."""

import dataclasses
import json
import os
import pathlib
import statistics
from typing import Any

from tests.bench.trainer import course, machine, ours, rounds, work

ROWS, RUNS, REPORT = "trainer.json", "trainer-runs.json", "trainer.md"


@dataclasses.dataclass(frozen=True)
class Results:
    """A run of the benchmark, as far as it has come."""

    machine: machine.Machine
    versions: dict[str, dict[str, str]]
    """Of each side's packages."""
    weights: dict[str, work.Weights]
    """Of each base model."""
    command: str
    records: list[rounds.Record] = dataclasses.field(default_factory=list)
    missing: list[rounds.Missing] = dataclasses.field(default_factory=list)

    def add(self, found: "rounds.Record | rounds.Missing") -> None:
        if isinstance(found, rounds.Record):
            self.records.append(found)
        else:
            self.missing.append(found)


@dataclasses.dataclass(frozen=True)
class Row:
    """Ours against one peer, on one workload and model: medians of the repetitions; peaks are the highest."""

    workload: str
    model: str
    ours_tokens_per_second: float
    peer: str
    peer_tokens_per_second: float
    ratio: float
    """The median of the ratios of runs of the same repetition."""
    ours_peak_mib: int
    peer_peak_mib: int
    ours_final_loss: float
    peer_final_loss: float
    share_of_matmul_rate: float
    """Of ours; see `work.Weights.needed`."""


def rows(results: Results) -> list[Row]:
    """One row for each peer of each cell that has a repetition of both sides, in the order of measuring."""
    found: dict[tuple[str, str, str], None] = {}
    for record in results.records:
        if record.side != ours.NAME:
            found[record.model, record.workload, record.side] = None
    made = (_row(results, *key) for key in found)
    return [row for row in made if row is not None]


def pairs(results: Results, model: str, workload: str, peer: str) -> list[tuple[course.Course, course.Course]]:
    """Ours and the peer's, of the same repetitions."""
    by_side: dict[str, dict[int, course.Course]] = {ours.NAME: {}, peer: {}}
    for record in results.records:
        if (record.model, record.workload) == (model, workload) and record.side in by_side:
            by_side[record.side][record.repetition] = record.course
    mine, theirs = by_side[ours.NAME], by_side[peer]
    return [(mine[number], theirs[number]) for number in sorted(mine.keys() & theirs.keys())]


def _row(results: Results, model: str, workload: str, peer: str) -> Row | None:
    both = pairs(results, model, workload, peer)
    if not both:
        return None
    mine, theirs = zip(*both, strict=True)
    rate = statistics.median(one.rate for one in mine)
    first = mine[0]
    counted = slice(course.UNCOUNTED, None)
    tokens, labelled = sum(first.tokens[counted]), sum(first.labelled[counted])
    operations = results.weights[model].needed(tokens, labelled) / tokens * rate
    return Row(
        workload=workload,
        model=model,
        ours_tokens_per_second=round(rate, 1),
        peer=peer,
        peer_tokens_per_second=round(statistics.median(one.rate for one in theirs), 1),
        ratio=round(statistics.median(one.rate / other.rate for one, other in both), 2),
        ours_peak_mib=max(one.peak for one in mine) >> 20,
        peer_peak_mib=max(one.peak for one in theirs) >> 20,
        ours_final_loss=round(statistics.median(one.final_loss for one in mine), 4),
        peer_final_loss=round(statistics.median(one.final_loss for one in theirs), 4),
        share_of_matmul_rate=round(operations / (results.machine.gflops * 1e9), 3),
    )


def write(results: Results, report: str, folder: pathlib.Path) -> None:
    """The three files. Each appears whole or stays as it was."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / RUNS, _lines(dataclasses.asdict(results)))
    _replace(folder / ROWS, text(results))
    _replace(folder / REPORT, report)


def text(results: Results) -> str:
    """trainer.json."""
    return json.dumps([dataclasses.asdict(row) for row in rows(results)], indent=1) + "\n"


def _lines(document: dict[str, Any]) -> str:
    """JSON with one line for each run, so that a change can be read."""
    parts = []
    for key, value in document.items():
        message = json.dumps(value)
        if isinstance(value, list) and value:
            message = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        parts.append(f' "{key}": {message}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def read(folder: pathlib.Path) -> Results:
    """What `write` wrote."""
    found = json.loads((folder / RUNS).read_text())
    found["machine"] = machine.Machine(**found["machine"])
    found["weights"] = {name: work.Weights(**one) for name, one in found["weights"].items()}
    found["records"] = [rounds.Record(**one | {"course": course.Course(**one["course"])}) for one in found["records"]]
    found["missing"] = [rounds.Missing(**one) for one in found["missing"]]
    return Results(**found)


def _replace(path: pathlib.Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text)
    scratch.replace(path)
