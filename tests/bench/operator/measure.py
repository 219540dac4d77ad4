"""The phases of a scenario, and the figures of each: jobs begin, live, rest."""

import asyncio
import collections
import itertools
import os
import pathlib
import signal
import time
from collections.abc import Sequence
from typing import Any

from tests.bench.operator import drive, ours, place, report, revision, scenarios, usage
from tests.bench.operator.scenarios import Figure, Scenario

from support import controlplane
from toolbox import say

Raw = dict[str, Any]
QUIET = 0.25
"""Of a core: below it, for three seconds, a process is at rest."""
LEFTOVERS = 3.0
"""Seconds after the last job, in which late requests are still counted."""


class Findings:
    """The figures of one side in one scenario, told as they come."""

    def __init__(self, side: str, scenario: Scenario) -> None:
        self.side, self.scenario = side, scenario
        self.all: list[report.Found] = []
        self.remarks: list[str] = []

    def add(self, figure: Figure, value: float) -> None:
        self.all.append(report.Found(self.scenario.name, self.scenario.jobs, figure.name, self.side, value))
        say.line(f"      {figure.name}: {value:.{figure.digits}f} {figure.unit}")

    def remark(self, text: str) -> None:
        self.remarks.append(text)
        say.line(f"      {text}")


def percentile(values: Sequence[float], part: float) -> float:
    """Of a hundred, the nearest rank; nan of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part / 100))] if ordered else float("nan")


async def finished(
    driver: drive.Drive,
    plane: controlplane.ControlPlane,
    folder: pathlib.Path,
    operator: ours.Operator,
    code: revision.Code,
    found: Findings,
) -> None:
    """One job lives, while nobody leads it is copied, and then an operator finds them all."""
    scenario = found.scenario
    copies = [f"c-{number:05d}" for number in range(scenario.jobs)]
    say.line(f"    {scenario.title} ({found.side})")
    with place.nodes(plane, folder, code.played):
        async with driver.watching("Complete"):
            await driver.create(ours.manifest("b-00000", serves=False))
            lived = await driver.until("jobs are finished, to be copied", lambda: len(driver.seen.finished), 1, 60)
            assert lived, driver.seen.phases
    await asyncio.to_thread(operator.replicas[0].end)
    making = asyncio.create_task(driver.copy_all("b-00000", copies))
    await driver.until("jobs are there", lambda: len(driver.ledger.created) - 1, scenario.jobs, scenario.seconds)
    await making
    await asyncio.to_thread(operator.leading, operator.start())
    async with driver.watching("Complete"):
        await _rest(driver, operator, found)
        if begun := [name for name in copies if driver.seen.phases.get(name) != "Complete"]:
            found.remark(f"{len(begun)} finished jobs are so no more, the first: {begun[0]}")


async def begin(
    driver: drive.Drive,
    scenario: Scenario,
    plane: controlplane.ControlPlane,
    manifests: list[Raw],
    pids: Sequence[int],
    found: Findings,
) -> None:
    """Until each job has its first child."""
    others = place.programs(plane) | {"driver": os.getpid()}
    server = others.pop("kube-apiserver")
    driver.read()
    ledger = driver.ledger
    asked, wrote = ledger.requests, ledger.writes(f"{ledger.side.jobs}/status")
    before, server_before, others_before = usage.of(*pids), usage.of(server), usage.of(*others.values())
    machine_before = usage.machine()
    say.line(f"    {scenario.title} ({found.side})")
    making = asyncio.create_task(driver.create_all(manifests, scenario.rate))

    def begun_by_now() -> int:
        if making.done():
            making.result()
        return len(ledger.begun)

    done = await driver.until("jobs have begun", begun_by_now, scenario.jobs, scenario.seconds)
    busy, elsewhere = usage.of(*pids), usage.machine() - machine_before
    elsewhere -= sum(
        usage.of(*now).cpu - then.cpu
        for now, then in ((pids, before), ([server], server_before), (others.values(), others_before))
    )
    if not done:
        found.remark(f"only {len(ledger.begun)} of {scenario.jobs} jobs had begun after {scenario.seconds:.0f} s")
        making.cancel()
    await asyncio.gather(making, return_exceptions=True)
    if not scenario.played:
        await asyncio.sleep(LEFTOVERS)
    after, waits, begun = usage.of(*pids), ledger.waits(), max(len(ledger.begun), 1)
    lasted = max(ledger.begun.values(), default=0.0) - min(ledger.created.values(), default=0.0)
    if scenario.rate is None:
        found.add(scenarios.RATE, len(waits) / lasted)
    else:
        found.add(
            scenarios.CREATED, len(ledger.created) / (max(ledger.created.values()) - min(ledger.created.values()))
        )
    found.add(scenarios.WAIT_50, percentile(waits, 50))
    found.add(scenarios.WAIT_99, percentile(waits, 99))
    if not scenario.played:
        found.add(scenarios.REQUESTS, (ledger.requests - asked) / begun)
        found.add(scenarios.STATUS, (ledger.writes(f"{ledger.side.jobs}/status") - wrote) / begun)
        found.add(scenarios.MEMORY, after.peak / 1e6)
        found.add(scenarios.CPU, (after.cpu - before.cpu) / begun * 1000)
        found.add(scenarios.CPU_SERVER, (usage.of(server).cpu - server_before.cpu) / begun * 1000)
        found.add(scenarios.CPU_OTHERS, (usage.of(*others.values()).cpu - others_before.cpu) / begun * 1000)
        found.add(scenarios.CPU_ALL, _cpu(found))
        found.add(scenarios.BUSY, usage.share(before, busy) * 100)
        found.add(scenarios.ELSEWHERE, max(0.0, elsewhere) / (busy.at - before.at) * 100)


def _cpu(found: Findings) -> float:
    parts = {scenarios.CPU.name, scenarios.CPU_SERVER.name, scenarios.CPU_OTHERS.name}
    return sum(one.value for one in found.all if one.figure in parts)


async def live(driver: drive.Drive, scenario: Scenario, pid: int, before: usage.Usage, found: Findings) -> None:
    """Until each job is finished."""
    ledger, seen, started = driver.ledger, driver.seen, time.time()
    end = "are served" if scenario.serves else "are finished"
    patience = 60 + scenario.jobs / 2
    done = await driver.until(f"jobs {end}", lambda: len(seen.finished), scenario.jobs, patience)
    await asyncio.sleep(LEFTOVERS)
    driver.read()
    after, finished = usage.of(pid), len(seen.finished)
    if ledger.refused:
        found.remark(f"refused requests: {dict(ledger.refused)}")
    if not done:
        phases = sorted(collections.Counter(seen.phases.values()).items())
        found.remark(
            f"only {finished} of {scenario.jobs} jobs {end} after {patience:.0f} s, so nothing is said of whole lives; "
            f"phases: {dict(phases)}"
        )
        return
    if not scenario.played:
        found.add(scenarios.LIVES, finished / (max(seen.finished.values()) - started))
    for figures, ends in (
        ((scenarios.POD_50, scenarios.POD_99), ledger.pods_ended),
        ((scenarios.JOB_50, scenarios.JOB_99), ledger.jobs_ended),
    ):
        late = seen.after(ends)
        found.add(figures[0], percentile(late, 50))
        found.add(figures[1], percentile(late, 99))
    found.add(scenarios.LIFE_REQUESTS, ledger.requests / finished)
    found.add(scenarios.LIFE_WRITES, ledger.writes("finetunejobs/status") / finished)
    found.add(scenarios.LIFE_EVENTS, ledger.writes("events") / finished)
    found.add(scenarios.LIFE_CHILDREN, ledger.children / finished)
    found.add(scenarios.LIFE_CPU, (after.cpu - before.cpu) / finished * 1000)
    found.add(scenarios.LIFE_MEMORY, after.peak / 1e6)


async def _rest(driver: drive.Drive, operator: ours.Operator, found: Findings) -> None:
    """With all jobs finished: rest, then a restart, a handover to a replica that stands by, and its loss."""
    first = operator.replicas[-1]
    await _quiet(driver, first.process.pid)
    before = usage.of(first.process.pid)
    await asyncio.sleep(report.REST)
    after = usage.of(first.process.pid)
    found.add(scenarios.REST_MEMORY, after.memory / 1e6)
    found.add(scenarios.REST_CPU, usage.share(before, after) * 100)
    await asyncio.to_thread(first.end)
    await driver.create(ours.manifest("r-00000", serves=False))
    began = time.time()
    second = operator.start()
    found.add(scenarios.RESTART, await _begun(driver, "r-00000") - began)
    await _quiet(driver, second.process.pid)
    found.add(scenarios.RESTART_ALL, time.time() - began - 3)
    found.add(scenarios.RESTART_MEMORY, usage.of(second.process.pid).memory / 1e6)
    leader, number = second, 0
    for figure, how in ((scenarios.HANDOVER, signal.SIGTERM), (scenarios.FAILOVER, signal.SIGKILL)):
        standby = await asyncio.to_thread(operator.standing_by, operator.start())
        await asyncio.sleep(2)
        began, number = time.time(), number + 1
        leader.process.send_signal(how)
        await driver.create(ours.manifest(f"r-{number:05d}", serves=False))
        found.add(figure, await _begun(driver, f"r-{number:05d}") - began)
        await asyncio.to_thread(leader.end)
        leader = standby
        await _quiet(driver, leader.process.pid)


async def _begun(driver: drive.Drive, name: str) -> float:
    await driver.until(f"jobs have begun: {name}", lambda: int(name in driver.ledger.begun), 1, 180)
    return driver.ledger.begun.get(name, float("nan"))


async def _quiet(driver: drive.Drive, pid: int) -> None:
    """Until the process has been at rest for three seconds."""
    readings = [usage.of(pid)]

    def at_rest() -> int:
        now = usage.of(pid)
        if now.at - readings[-1].at >= 1:
            readings.append(now)
        return int(len(readings) > 3 and all(usage.share(*pair) < QUIET for pair in itertools.pairwise(readings[-4:])))

    await driver.until("process is at rest", at_rest, 1, 120)
