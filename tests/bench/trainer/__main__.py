"""`python -m tests.bench.trainer`: see --help, and docs/benchmarks/trainer.md for what was measured last."""

import argparse
import functools
import importlib.metadata
import pathlib
import sys
import time
from collections.abc import Sequence

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
    search,
    work,
    workloads,
)

from toolbox import cache, say

COMMITTED = cache.REPOSITORY / "docs" / "benchmarks"
PARTIAL = cache.REPOSITORY / "out" / "benchmarks"

REPETITIONS = 3

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
    made.add_argument("--repetitions", type=int, help=f"of each cell ({REPETITIONS})")
    made.add_argument("--steps", type=int, help="counted optimizer steps of each cell, instead of about a minute's")
    made.add_argument("--output", type=pathlib.Path, help="folder of the results")
    made.add_argument("--search", action="store_true", help="only measure variants of TRL's settings")
    made.add_argument("--render", action="store_true", help="only write the page and the rows again, from the runs")
    made.add_argument("--check", action="store_true", help="only check that page and rows are those of the runs")
    return made


def main() -> int:
    options = parser().parse_args()
    partial = any((options.workload, options.peer, options.model, options.repetitions, options.steps))
    folder = options.output or (PARTIAL if partial else COMMITTED)
    if options.render or options.check:
        return again(folder, check=options.check)
    if options.search:
        search_settings(options, folder)
        return 0
    found = measure(options, folder)
    say.result(report.render(found, search.read(folder)))
    return 0 if found.records and not found.missing else 1


def measure(options: argparse.Namespace, folder: pathlib.Path) -> results.Results:
    """All cells that are wanted; the results are written after each."""
    begun = time.monotonic()
    chosen = [peers.BY_NAME[name] for name in options.peer] if options.peer else peers.ALL
    cells = rounds.cells(options.workload or [], options.model or [])
    folders = {name: models.prepare(name) for name in dict.fromkeys(cell.model for cell in cells)}
    for package in packages(chosen):
        environment.python(package)
    say.line("  the machine's matrix products")
    found = results.Results(
        machine.describe(),
        versions(chosen),
        {name: work.weights(models.shape(path)) for name, path in folders.items()},
        " ".join(["make bench-trainer", *([f'ARGS="{" ".join(sys.argv[1:])}"'] if sys.argv[1:] else [])]),
    )
    rates: dict[str, float] = {}
    for number, cell in enumerate(cells):
        taking_part = [peer for peer in chosen if options.peer or peer.takes(cell.workload, cell.model)]
        model = folders[cell.model]
        counter = lengths.load(model)
        count = options.steps or _steps(cell, model, taking_part[0], counter, rates)
        given = batch.make(cell.workload, count, counter)
        say.line(
            f"  {number + 1}/{len(cells)} {cell.workload.name} on {cell.model}: {count} counted steps, "
            f"{sum(given.tokens())} tokens a run  [{(time.monotonic() - begun) / 60:.1f} min]"
        )
        rounds.run(cell, model, given, sides(taking_part), options.repetitions or REPETITIONS, found.add)
        results.write(found, report.render(found, search.read(folder)), folder)
    say.line(f"  results in {folder} after {(time.monotonic() - begun) / 60:.1f} min")
    return found


def sides(chosen: Sequence[peers.Peer]) -> dict[str, rounds.Train]:
    """Ours first."""
    theirs: dict[str, rounds.Train] = {peer.name: functools.partial(peers.train, peer) for peer in chosen}
    return {ours.NAME: ours.train} | theirs


def _steps(
    cell: rounds.Cell, model: pathlib.Path, peer: peers.Peer, counter: lengths.Counter, rates: dict[str, float]
) -> int:
    """The cell's counted steps; the first cell of each model measures how fast the peer is there."""
    if cell.model not in rates:
        say.line(f"  how many steps fit into a minute on {cell.model}: one run of {peer.name}")
        given = batch.make(workloads.ALL[0], 1, counter)
        rates[cell.model] = rounds.once(functools.partial(peers.train, peer), model, given).rate
    return rounds.steps(rates[cell.model], batch.make(cell.workload, 1, counter).tokens()[-1])


def search_settings(options: argparse.Namespace, folder: pathlib.Path) -> None:
    """Every variant of TRL's settings on some workloads; written after each run."""
    model = models.prepare(models.SMALL)
    counter = lengths.load(model)
    all_found: list[search.Found] = []
    for name in options.workload or search.WORKLOADS:
        given = batch.make(workloads.BY_NAME[name], options.steps or 1, counter)
        cell = rounds.Cell(workloads.BY_NAME[name], models.SMALL)
        say.line(f"  {name}: {len(search.VARIANTS)} variants of TRL's settings")

        def done(one: rounds.Record | rounds.Missing, name: str = name) -> None:
            if isinstance(one, rounds.Record):
                all_found.append(search.found(one.side, name, one.course))
                search.write(all_found, folder)

        variants = {peer.name: functools.partial(peers.train, peer) for peer in search.candidates()}
        rounds.run(cell, model, given, variants, 1, done)


def versions(chosen: Sequence[peers.Peer]) -> dict[str, dict[str, str]]:
    mine = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {ours.NAME: mine} | {name: environment.versions(name, (name, *PACKAGES)) for name in packages(chosen)}


def packages(chosen: Sequence[peers.Peer]) -> list[str]:
    """Those of which peers need an environment."""
    return list(dict.fromkeys(peer.package for peer in chosen if peer.package is not None))


def again(folder: pathlib.Path, *, check: bool) -> int:
    """The page and the rows from the runs: written again, or compared with what is there."""
    if check and not (folder / results.RUNS).exists():
        return 0
    found = results.read(folder)
    if not check:
        results.write(found, report.render(found, search.read(folder)), folder)
        return 0
    wanted = {results.REPORT: report.render(found, search.read(folder)), results.ROWS: results.text(found)}
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
