"""Round after round: a random fault at a random moment of the fleet, and what became of every job that lived through it."""

import contextlib
import dataclasses
import json
import random
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from chaos import api, clock, faults, fleet, watch
from localcluster import report
from support import policies
from support import site as sites
from toolbox import say

GAPS = (1.0, 9.0)
"""Seconds between the end of a fault and the next one, at least and at most."""
WARM = 10.0
"""Seconds of the fleet before the first fault."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Options. `seed` and a round's number seed its random choices; no round starts after `minutes`."""

    run: str
    seed: int
    rounds: int
    size: int
    kinds: tuple[str, ...]
    faults: tuple[str, ...]
    minutes: float = 24 * 60
    policy: str = ""
    """Of POLICIES, in force in the fleet's namespace, also in the calm."""


POLICIES: dict[str, Callable[[sites.Site], list[dict[str, Any]]]] = {
    "mirror": lambda site: policies.rewrite_images(fleet.NAMESPACE, "localhost:", "127.0.0.1:"),
    "native-sidecar": lambda site: policies.inject_sidecar(fleet.NAMESPACE, site.images["trainer"], native=True),
    "classic-sidecar": lambda site: policies.inject_sidecar(fleet.NAMESPACE, site.images["trainer"], native=False),
}
"""Admission policies as real clusters have them; the local registry has two names, so that a mirror can be played."""
WORDS = {
    "none": "No object is changed on admission",
    "mirror": "The images of Jobs and Deployments get another registry",
    "native-sidecar": "Every pod of a job gets an init container that stays",
    "classic-sidecar": "Every pod of a job gets one more container, which ends only when it is stopped",
}
"""What each does, as the page says it."""


@dataclasses.dataclass
class Round:
    """One fault. `at` and `seconds`: since the first round's beginning, and its length. `jobs`: name -> phase when it struck."""

    run: str
    round: int
    seed: str
    fault: str
    words: str
    at: float
    seconds: float
    jobs: dict[str, str]
    violations: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Result:
    rounds: list[Round]
    lives: list[fleet.Life]
    left: tuple[str, ...]

    @property
    def violations(self) -> list[str]:
        shown = [str(violation) for life in self.lives for violation in life.violations]
        return [*shown, *(f"an orphan: {child}" for child in self.left)]


@contextlib.contextmanager
def ready(
    site: sites.Site, prefix: str, policy: str = "", *, clocks: bool = True
) -> Iterator[tuple[faults.World, fleet.Fleet]]:
    """The fleet on a site, watched. clocks: with the operator's clock movable where that is possible."""
    data = fleet.prepare(site)
    local = report.running(sites.NAME) if site.local else None
    audit = Path(local.summary()["auditLog"]) if local else None  # type: ignore[arg-type]
    with contextlib.ExitStack() as stack:
        if policy:
            stack.enter_context(policies.in_force(site.kube, POLICIES[policy](site)))
        host = stack.enter_context(site.kube.proxy(quiet=True))
        if local and clocks:
            stack.enter_context(clock.movable(site.kube))
        server = api.Api(host, fleet.NAMESPACE)
        seen = stack.enter_context(watch.Watch(server, audit))
        yield faults.World(server, seen, local), fleet.Fleet(site, server, seen, data, prefix)


def run(world: faults.World, jobs: fleet.Fleet, wanted: Plan, over: Callable[[Round], None]) -> Result:
    """All rounds. `over` is called with each round once every job that lived through it has ended."""
    say.line(f"  seed {wanted.seed}: a calm first, one job of each kind")
    jobs.calm(wanted.kinds)
    for kind, outcome in jobs.expected.items():
        say.line(f"    {kind}: {outcome.end}, revision {outcome.revision}, weights {outcome.weights[:12] or 'none'}")
    jobs.start(wanted.size, wanted.kinds)
    time.sleep(WARM)
    began, done, notified = time.monotonic(), list[Round](), set[int]()
    turn = faults.order(random.Random(wanted.seed), wanted.faults)
    for number in range(1, wanted.rounds + 1):
        if time.monotonic() - began > wanted.minutes * 60:
            say.line(f"  {wanted.minutes:g} minutes are over")
            break
        done.append(strike(world, jobs, wanted, number, turn, began))
        jobs.check()
        world.seen.check()
        tell(done, jobs, notified, over)
    jobs.finish()
    tell(done, jobs, notified, over)
    return Result(done, jobs.lives, jobs.children())


def strike(
    world: faults.World, jobs: fleet.Fleet, wanted: Plan, number: int, turn: Iterator[str], began: float
) -> Round:
    """One round, once there is something to strike."""
    seed = f"{wanted.seed}-{number}"
    dice = random.Random(seed)
    time.sleep(dice.uniform(*GAPS))
    while True:
        fault, living, start = next(turn), jobs.alive(), time.monotonic()
        try:
            struck = faults.FAULTS[fault](world, dice)
        except (faults.NotNow, LookupError, ProcessLookupError):
            continue
        except urllib.error.HTTPError as error:
            if error.code not in {404, 409, 429}:
                raise
            continue
        break
    for name in [struck.job] if struck.job else living | jobs.alive() if struck.delays else []:
        jobs.struck(name, struck.words, killed=struck.kills)
    seconds = time.monotonic() - start
    words = struck.words + (f" of {struck.job}" if struck.job else "")
    say.line(f"  round {number} of {wanted.rounds} (seed {seed}): {fault}: {words}; {len(living)} jobs live")
    return Round(wanted.run, number, seed, fault, words, round(start - began, 1), round(seconds, 1), living)


def tell(done: list[Round], jobs: fleet.Fleet, notified: set[int], over: Callable[[Round], None]) -> None:
    """Rounds whose jobs have all ended are over: what was wrong with any of them is wrong with the round."""
    lives = {life.job: life for life in list(jobs.lives)}
    for one in done:
        if one.round in notified or not set(one.jobs) <= set(lives):
            continue
        one.violations = [str(violation) for name in one.jobs for violation in lives[name].violations]
        notified.add(one.round)
        over(one)


def line(kind: str, fields: dict[str, Any]) -> str:
    """A line of the results file."""
    return json.dumps({"is": kind, **fields}) + "\n"
