"""The operator at scale, beside a floor, its former self and Kubeflow Trainer: writes docs/benchmarks/operator.*.

--scenario NAME, --side NAME    a part, in place of what the table has of it
--before REV   the revision of the operator that is the side `former`: the last tag, and without one there is no such side
--jobs N       a smaller run, into out/benchmarks
--minutes N    no scenario runs longer than this (25)
--render       writes the page again from operator-runs.json
--check        only compares page and rows with operator-runs.json
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import pathlib
import platform
import signal
import sys
import time

# hack/ and tests/ have what development tools and tests share; they are no packages that could be installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "hack"))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "tests"))

from tests.bench.operator import jobset, peer, place, report, revision, scenarios, sides

from localcluster import binaries
from support import machine
from toolbox import cache, say

COMMITTED = cache.REPOSITORY / "docs" / "benchmarks"
PARTIAL = cache.REPOSITORY / "out" / "benchmarks"
MINUTES = 25.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", action="append", choices=list(scenarios.BY_NAME))
    parser.add_argument("--side", action="append", choices=list(scenarios.SIDES))
    parser.add_argument("--before", metavar="REV")
    parser.add_argument("--jobs", type=int, help="at most so many jobs in a scenario")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # everything that was started ends with us
    folder = options.output or (PARTIAL if options.jobs else COMMITTED)
    if options.check or options.render:
        return again(folder, check=options.check)
    say.result(report.page(run(options, folder)))
    return 0


def again(folder: pathlib.Path, *, check: bool) -> int:
    """Page and rows from what was measured: written again, or compared with what is there."""
    if check and not (folder / report.RUNS).exists():
        return 0
    results = report.read(folder)
    if not check:
        report.write(results, folder)
        return 0
    for name, text in ((report.PAGE, report.page(results)), (report.DATA, report.data(results))):
        if (folder / name).read_text() != text:
            say.line(f"{folder / name} is not what was measured: make bench-operator ARGS=--render")
            return 1
    return 0


def run(options: argparse.Namespace, folder: pathlib.Path) -> report.Results:
    """Every scenario, for each side that has it; the results are written after each."""
    wanted = [scenarios.BY_NAME[name] for name in options.scenario or scenarios.BY_NAME]
    former = options.before or revision.last_release()
    chosen = [side for side in options.side or scenarios.SIDES if side != scenarios.FORMER or former]
    say.line(f"  {len(wanted)} scenarios, up to {options.minutes:g} minutes; results in {folder}")
    if former is None:
        say.line("  no tag to compare with: a former revision is measured with --before REV")
    _programs(chosen)
    results = _results(folder, former)
    deadline = time.monotonic() + options.minutes * 60
    with contextlib.ExitStack() as stack:
        old = None
        if former and scenarios.FORMER in chosen and any(scenarios.FORMER in one.sides for one in wanted):
            old = stack.enter_context(revision.at(former))
        for scenario in wanted:
            if options.jobs:
                scenario = dataclasses.replace(scenario, jobs=min(options.jobs, scenario.jobs))
            for side in [one for one in chosen if one in scenario.sides]:
                _measure(scenario, side, sides.Run(deadline, old), results)
                report.write(results, folder)
    return results


def _measure(scenario: scenarios.Scenario, side: str, given: sides.Run, results: report.Results) -> None:
    """One scenario, one side, into the results, whatever comes of it."""
    started = time.monotonic()
    try:
        if started > given.deadline:
            raise say.Problem("not run, the time was over")
        if scenario.part is not None:
            scenario = scenario.at(results.floor())
        found = sides.SIDES[side](scenario, given)
        results.put(scenario.name, side, found.all, found.remarks, (time.monotonic() - started) / 60)
    except (AssertionError, OSError, say.Problem) as error:
        say.line(f"      {scenario.name}, {side}: {error}")
        results.remark(scenario.name, side, f"no figures: {str(error)[-300:]}")


def _programs(chosen: list[str]) -> None:
    """All that is built once is built before the clock runs."""
    binaries.ensure((*binaries.CONTROL_PLANE, *place.PROGRAMS))
    if {scenarios.PEER, scenarios.PEER_JOBSET} & set(chosen):
        peer.program()
    if scenarios.PEER_JOBSET in chosen:
        jobset.program()


def _results(folder: pathlib.Path, former: str | None) -> report.Results:
    """What is known already of this machine and these versions: figures of others have no place beside the new ones."""
    fresh = report.Results(machine.facts(), versions(), revision.commit(former) if former else "")
    if not (folder / report.RUNS).exists():
        return fresh
    known = report.read(folder)
    alike = (known.machine, known.versions, known.former) == (fresh.machine, fresh.versions, fresh.former)
    return known if alike else fresh


def versions() -> dict[str, str]:
    return {
        "Kubernetes": binaries.version("k8s.io/kubernetes"),
        "KWOK": binaries.version("sigs.k8s.io/kwok"),
        scenarios.PEER: peer.version(),
        "JobSet": jobset.version(),
        "kopf": importlib.metadata.version("kopf"),
        "kubernetes (client)": importlib.metadata.version("kubernetes"),
        "Python": platform.python_version(),
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except say.Problem as problem:
        say.line(f"bench-operator: {problem}")
        sys.exit(1)
    except KeyboardInterrupt:
        say.line("bench-operator: interrupted; all that it had started is ended")
        sys.exit(130)
