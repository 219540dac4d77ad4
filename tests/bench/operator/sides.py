"""Who is measured: one scenario, one side, from a fresh control plane to its figures."""

import asyncio
import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from tests.bench.operator import (
    audit,
    drive,
    floor,
    jobset,
    measure,
    ours,
    peer,
    place,
    recording,
    revision,
    scenarios,
    usage,
)
from tests.bench.operator.scenarios import Scenario

from support import controlplane
from toolbox import say


@dataclasses.dataclass(frozen=True)
class Run:
    """What one command measures with. `deadline`: of the steady clock; `former`: the code that ours is compared with."""

    deadline: float
    former: revision.Code | None


def of_ours(scenario: Scenario, run: Run) -> measure.Findings:
    return _of_code(scenarios.OURS, scenario, run, revision.working_tree())


def of_former(scenario: Scenario, run: Run) -> measure.Findings:
    assert run.former is not None
    return _of_code(scenarios.FORMER, scenario, run, run.former)


def _of_code(side: str, scenario: Scenario, run: Run, code: revision.Code) -> measure.Findings:
    found = measure.Findings(side, scenario)
    with (
        place.control_plane(code.crds) as plane,
        place.logs(plane, found.remarks) as folder,
        ours.operator(plane, folder, code) as operator,
    ):
        operator.leading(operator.start())
        asyncio.run(_jobs(plane, folder, operator, code, found, run.deadline))
        _errors(operator, found)
    return found


def of_floor(scenario: Scenario, run: Run) -> measure.Findings:
    """The operator begins one job, ends, and the bare client does the same for all others."""
    found, code = measure.Findings(scenarios.FLOOR, scenario), revision.working_tree()
    with (
        place.control_plane(code.crds) as plane,
        place.logs(plane, found.remarks) as folder,
        ours.operator(plane, folder, code) as operator,
    ):
        writes = asyncio.run(_recorded(plane, folder, operator, run.deadline))
        say.line(f"    the floor writes for each job: {', '.join(one.what for one in writes)}")
        with floor.client(operator, writes, folder) as pid:
            asyncio.run(_begun_alone(plane, ours.SIDE, ours.PATH, _fine_tune_jobs(scenario), [pid], found, run))
    return found


def of_peer(scenario: Scenario, run: Run) -> measure.Findings:
    found = measure.Findings(scenarios.PEER, scenario)
    with (
        place.control_plane() as plane,
        place.logs(plane, found.remarks) as folder,
        peer.controller(plane, folder) as pid,
    ):
        asyncio.run(_begun_alone(plane, peer.SIDE, peer.PATH, _train_jobs(scenario), [pid], found, run))
    return found


def of_peer_with_jobset(scenario: Scenario, run: Run) -> measure.Findings:
    found = measure.Findings(scenarios.PEER_JOBSET, scenario)
    with (
        place.control_plane() as plane,
        place.logs(plane, found.remarks) as folder,
        peer.controller(plane, folder) as trainer,
        jobset.controller(plane, folder) as sets,
    ):
        pids, manifests = [trainer, sets], _train_jobs(scenario)
        asyncio.run(_begun_alone(plane, jobset.SIDE, peer.PATH, manifests, pids, found, run))
    return found


def _fine_tune_jobs(scenario: Scenario) -> list[dict[str, Any]]:
    return [ours.manifest(f"b-{number:05d}", scenario.serves) for number in range(scenario.jobs)]


def _train_jobs(scenario: Scenario) -> list[dict[str, Any]]:
    return [peer.manifest(f"b-{number:05d}") for number in range(scenario.jobs)]


async def _recorded(
    plane: controlplane.ControlPlane, folder: pathlib.Path, operator: ours.Operator, deadline: float
) -> list[recording.Write]:
    async with drive.Drive(plane, ours.SIDE, ours.PATH, deadline).open() as driver:
        return await floor.record(driver, operator, folder)


async def _begun_alone(
    plane: controlplane.ControlPlane,
    side: audit.Side,
    path: str,
    manifests: list[dict[str, Any]],
    pids: Sequence[int],
    found: measure.Findings,
    run: Run,
) -> None:
    """Until each job has begun, and no further."""
    async with drive.Drive(plane, side, path, run.deadline).open() as driver:
        await measure.begin(driver, found.scenario, plane, manifests, pids, found)


async def _jobs(
    plane: controlplane.ControlPlane,
    folder: pathlib.Path,
    operator: ours.Operator,
    code: revision.Code,
    found: measure.Findings,
    deadline: float,
) -> None:
    """Whatever the scenario wants of an operator of ours."""
    scenario, pid = found.scenario, operator.replicas[0].process.pid
    final = "Ready" if scenario.serves else "Complete"
    async with (
        drive.Drive(plane, ours.SIDE, ours.PATH, deadline).open() as driver,
        contextlib.AsyncExitStack() as stack,
    ):
        if scenario.rests:
            await measure.finished(driver, plane, folder, operator, code, found)
            return
        before = usage.of(pid)
        if scenario.played:
            stack.enter_context(place.nodes(plane, folder, code.played))
            await stack.enter_async_context(driver.watching(final))
        await measure.begin(driver, scenario, plane, _fine_tune_jobs(scenario), [pid], found)
        if not scenario.lives:
            return
        if not scenario.played:
            stack.enter_context(place.nodes(plane, folder, code.played))
            await stack.enter_async_context(driver.watching(final))
        await measure.live(driver, scenario, pid, before, found)


def _errors(operator: ours.Operator, found: measure.Findings) -> None:
    """What the operator complained about: a benchmark of errors would be none."""
    for replica in operator.replicas:
        bad = [line["message"] for line in replica.log_lines() if line.get("level") not in {"INFO", "DEBUG"}]
        lost = [text for text in bad if "lease" in text or "no longer leader" in text]
        if rest := [text for text in bad if text not in lost]:
            found.remark(f"{len(rest)} warnings of {replica.name}, the first: {rest[0][:300]}")


SIDES: dict[str, Callable[[Scenario, Run], measure.Findings]] = {
    scenarios.FLOOR: of_floor,
    scenarios.OURS: of_ours,
    scenarios.FORMER: of_former,
    scenarios.PEER: of_peer,
    scenarios.PEER_JOBSET: of_peer_with_jobset,
}
