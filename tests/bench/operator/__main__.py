"""The operator at scale, and beside Kubeflow Trainer: `python -m tests.bench.operator` writes docs/benchmarks/operator.*.

--scenario NAME, --side NAME    a part, in place of what the table has of it
--jobs N       a smaller run, into out/benchmarks
--minutes N    after so many no scenario goes on (25)
--render       writes the page again from operator-runs.json
--check        only compares page and rows with operator-runs.json
"""

import argparse
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

from tests.bench.operator import measure, ours, peer, place, report, scenarios

from localcluster import binaries
from support import machine
from toolbox import cache, say

COMMITTED = cache.REPOSITORY / "docs" / "benchmarks"
PARTIAL = cache.REPOSITORY / "out" / "benchmarks"
MINUTES = 25.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", action="append", choices=list(scenarios.BY_NAME))
    parser.add_argument("--side", action="append", choices=list(measure.SIDES))
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
    began = time.monotonic()
    say.line(
        f"  {len(options.scenario or scenarios.ALL)} scenarios, up to {options.minutes:g} minutes; results in {folder}"
    )
    binaries.ensure((*binaries.CONTROL_PLANE, *place.PROGRAMS))
    sides = options.side or list(measure.SIDES)
    if peer.NAME in sides:
        peer.program()
    results = report.Results(machine.facts(), versions(), ours.NAME, peer.NAME)
    if (folder / report.RUNS).exists():
        before = report.read(folder)
        # Figures of another machine or other versions have no place beside these.
        results = before if (before.machine, before.versions) == (results.machine, results.versions) else results
    for scenario in (scenarios.BY_NAME[name] for name in options.scenario or scenarios.BY_NAME):
        if options.jobs:
            scenario = dataclasses.replace(scenario, jobs=min(options.jobs, scenario.jobs))
        for side in sides:
            if side == peer.NAME and not scenario.peer:
                continue
            started = time.monotonic()
            if started - began > options.minutes * 60:
                results.remark(scenario.name, side, f"not run, {options.minutes:g} minutes were over")
            else:
                try:
                    found = measure.SIDES[side](scenario, began + options.minutes * 60)
                    results.put(scenario.name, side, found.all, found.remarks, (time.monotonic() - started) / 60)
                except (AssertionError, OSError, say.Problem) as error:
                    say.line(f"      it failed: {error}")
                    results.remark(scenario.name, side, f"it failed: {str(error)[-300:]}")
            report.write(results, folder)
    return results


def versions() -> dict[str, str]:
    return {
        "Kubernetes": binaries.version("k8s.io/kubernetes"),
        "KWOK": binaries.version("sigs.k8s.io/kwok"),
        peer.NAME: peer.version(),
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
