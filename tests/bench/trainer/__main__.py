"""`python -m tests.bench.trainer`: see --help, and docs/benchmarks/trainer.md for what was measured last."""

import argparse
import importlib.metadata
import pathlib
import sys
import time

# hack/ has what the development tools share; it is no package that could be installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "hack"))

from tests.bench.trainer import (
    batch,
    environment,
    lengths,
    machine,
    models,
    ours,
    peers,
    report,
    results,
    rounds,
    workloads,
)

from toolbox import cache, say

COMMITTED = cache.REPOSITORY / "docs" / "benchmarks"
PARTIAL = cache.REPOSITORY / "out" / "benchmarks"

PACKAGES = ("torch", "transformers", "peft", "accelerate")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="make bench-trainer",
        description="Measures the trainer against its peers: all of it into docs/benchmarks, a part of it (any of the first "
        'flags) into out/benchmarks. Give flags as ARGS="...".',
    )
    made.add_argument("--workload", action="append", choices=list(workloads.BY_NAME), help="only this; may be repeated")
    made.add_argument("--peer", action="append", choices=list(peers.BY_NAME), help="only against this; may be repeated")
    made.add_argument("--model", action="append", choices=list(models.TITLES), help="only this; may be repeated")
    made.add_argument("--repetitions", type=int, help="of each cell (3)")
    made.add_argument("--steps", type=int, help="counted optimizer steps of each cell, instead of about a minute's")
    made.add_argument("--output", type=pathlib.Path, help="folder of the results")
    made.add_argument("--render", action="store_true", help="only write the page and the rows again, from the runs")
    made.add_argument("--check", action="store_true", help="only check that page and rows are those of the runs")
    return made


def main() -> int:
    options = parser().parse_args()
    partial = any((options.workload, options.peer, options.model, options.repetitions, options.steps))
    folder = options.output or (PARTIAL if partial else COMMITTED)
    if options.render or options.check:
        return again(folder, check=options.check)
    found = measure(options, folder)
    say.result(report.render(found))
    return 1 if not found.records else 0


def measure(options: argparse.Namespace, folder: pathlib.Path) -> results.Results:
    """All cells that are wanted; the results are written after each."""
    begun = time.monotonic()
    chosen = [peer for peer in peers.ALL if not options.peer or peer.name in options.peer]
    cells = rounds.cells(options.workload or [], options.model or [])
    folders = {name: models.prepare(name) for name in dict.fromkeys(cell.model for cell in cells)}
    for peer in chosen:
        environment.python(peer.package)
    say.line("  the machine's matrix products")
    found = results.Results(
        machine.describe(),
        versions(chosen),
        {name: models.shape(path) for name, path in folders.items()},
        " ".join(["make bench-trainer", *([f'ARGS="{" ".join(sys.argv[1:])}"'] if sys.argv[1:] else [])]),
    )
    rates: dict[str, float] = {}
    for number, cell in enumerate(cells):
        taking_part = [peer for peer in chosen if peer.takes(cell.workload, cell.model) or options.peer]
        if not taking_part:
            continue
        counter = lengths.load(folders[cell.model])
        count = options.steps or _steps(cell, folders[cell.model], taking_part, counter, rates)
        given = batch.make(cell.workload, count, counter)
        tokens = sum(given.tokens())
        say.line(
            f"  {number + 1}/{len(cells)} {cell.workload.name} on {cell.model}: {count} counted steps, {tokens} tokens a run"
            f"  [{(time.monotonic() - begun) / 60:.1f} min]"
        )
        rounds.run(cell, folders[cell.model], given, taking_part, options.repetitions or 3, found.add)
        results.write(found, report.render(found), folder)
    say.line(f"  results in {folder} after {(time.monotonic() - begun) / 60:.1f} min")
    return found


def _steps(
    cell: rounds.Cell,
    model: pathlib.Path,
    chosen: list[peers.Peer],
    counter: lengths.Counter,
    rates: dict[str, float],
) -> int:
    """The cell's counted steps; the first cell of each model measures how fast a peer is there."""
    if cell.model not in rates:
        say.line(f"  how many steps fit into a minute on {cell.model}: one run of {chosen[0].name}")
        rates[cell.model] = rounds.probe(model, chosen[0], counter)
    return rounds.steps(rates[cell.model], batch.make(cell.workload, 1, counter).tokens()[-1])


def versions(chosen: list[peers.Peer]) -> dict[str, dict[str, str]]:
    mine = {name: importlib.metadata.version(name) for name in PACKAGES}
    packages = dict.fromkeys(peer.package for peer in chosen)
    return {ours.NAME: mine} | {name: environment.versions(name, (name, *PACKAGES)) for name in packages}


def again(folder: pathlib.Path, *, check: bool) -> int:
    """The page and the rows from the runs: written again, or compared with what is there."""
    if check and not (folder / results.RUNS).exists():
        return 0
    found = results.read(folder)
    if not check:
        results.write(found, report.render(found), folder)
        return 0
    wanted = {results.REPORT: report.render(found), results.ROWS: results.text(found)}
    stale = [name for name, text in wanted.items() if (folder / name).read_text() != text]
    for name in stale:
        say.line(f"bench-trainer: {folder / name} is not what its runs give: make bench-trainer ARGS=--render")
    return 1 if stale else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except say.Problem as problem:
        say.line(f"bench-trainer: {problem}")
        sys.exit(1)
    except KeyboardInterrupt:
        say.line("bench-trainer: interrupted; the cells that were done are written")
        sys.exit(130)
