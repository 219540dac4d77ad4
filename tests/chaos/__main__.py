"""Faults injected into a fleet of jobs on the local node: `python -m tests.chaos` writes docs/benchmarks/chaos.md.

--rounds N     faults to inject (200)
--minutes N    no new rounds after this many minutes; reference jobs before and running jobs afterwards take longer
--seed N       of all random choices; absent: a new one each time, which is printed
--fault NAME   only this one; may be given several times
--kind NAME    only jobs of this kind; may be given several times
--policy NAME  an admission policy in force all the while: mirror, native-sidecar or classic-sidecar
--size N       concurrent jobs (6)
--short        the four lightest kinds of jobs, no servers
--output DIR   where results go; a part (--fault, --kind, --short, --policy) goes to out/benchmarks
--render       writes the page again from chaos-rounds.jsonl
--check        only compares the page with chaos-rounds.jsonl

Results of rounds are appended to chaos-rounds.jsonl as they end, so several runs add up, and an interrupted run counts
as far as it got.
"""

import argparse
import pathlib
import random
import signal
import sys
import tempfile
import time

# hack/ and tests/ have code shared by development tools and tests; they are not installable packages.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "hack"))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from chaos import faults, fleet, report, rounds
from support import site as sites
from toolbox import cache, say
from trainer import tiny

COMMITTED = cache.REPOSITORY / "docs" / "benchmarks"
PARTIAL = cache.REPOSITORY / "out" / "benchmarks"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=24 * 60)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--fault", action="append", choices=list(faults.FAULTS))
    parser.add_argument("--kind", action="append", choices=list(fleet.KINDS))
    parser.add_argument("--policy", choices=list(rounds.POLICIES), default="")
    parser.add_argument("--size", type=int, default=6)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    folder = options.output or (
        PARTIAL if options.fault or options.kind or options.short or options.policy else COMMITTED
    )
    if options.check or options.render:
        return report.again(folder, check=options.check)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # everything that was started ends with us
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    kinds = tuple(options.kind or (fleet.SHORT if options.short else fleet.MIX))
    name = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    chosen = tuple(options.fault or (fault for fault in faults.FAULTS if fault != faults.POOLS or "pooled" in kinds))
    wanted = rounds.Plan(name, seed, options.rounds, options.size, kinds, chosen, options.minutes, options.policy)
    return 1 if strike(wanted, folder) else 0


def strike(wanted: rounds.Plan, folder: pathlib.Path) -> list[str]:
    """A whole run; what it found wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    say.line(f"  {wanted.rounds} rounds, seed {wanted.seed}, {wanted.size} jobs at a time; results in {folder}")
    with tempfile.TemporaryDirectory() as model, (folder / report.ROUNDS).open("a", buffering=1) as results:
        tiny.make_tiny_model(pathlib.Path(model))
        with sites.running(pathlib.Path(model)) as site, rounds.ready(site, "", wanted.policy) as (world, jobs):
            began = time.monotonic()
            results.write(report.header(wanted))
            try:
                result = rounds.run(world, jobs, wanted, lambda one: report.append(results, one))
            finally:
                report.append_lives(results, wanted.run, jobs.lives)
            report.finish(results, wanted, time.monotonic() - began, result.left)
    report.write(folder)
    for violation in result.violations:
        say.line(f"  VIOLATED: {violation}")
    say.line(f"  {len(result.rounds)} rounds, {len(result.lives)} jobs, {len(result.violations)} violations")
    return result.violations


if __name__ == "__main__":
    try:
        sys.exit(main())
    except say.Problem as problem:
        say.line(f"chaos: {problem}")
        sys.exit(1)
    except KeyboardInterrupt:
        say.line("chaos: interrupted; all that it had started is ended")
        sys.exit(130)
