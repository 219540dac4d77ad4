"""Clocks that jump below the operator: no second leader, no deadline that ends, nothing in the status from another day."""

import datetime
import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import kubernetes.client
import pytest

from finetune_operator import lease
from finetune_operator.observe import label
from flow import world
from support import controlplane, faketime, installed, manifests
from support.installed import eventually

pytestmark = pytest.mark.cluster
DAY = 86_400


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clock")


@pytest.fixture(scope="module")
def pair(
    control_plane: controlplane.ControlPlane, place: Path
) -> Iterator[tuple[installed.Replica, installed.Replica]]:
    """The leader and the one that stands by, each with a clock of its own (see `move`)."""
    rights = installed.install(control_plane, place)
    replicas = [
        installed.start(
            name, place, *rights, faketime.environment(str(faketime.library()), str(place / f"{name}.clock"))
        )
        for name in ("clock-0", "clock-1")
    ]
    try:
        leader = eventually(lambda: next((one for one in replicas if one.leads()), None), 60)
        yield leader, next(one for one in replicas if one is not leader)
    finally:
        for replica in replicas:
            replica.end()


@pytest.fixture
def scene(control_plane: controlplane.ControlPlane) -> Iterator[installed.Stage]:
    control_plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifests.ENTRY))
    name = f"test-{uuid.uuid4().hex[:8]}"
    with control_plane.client() as client:
        kubernetes.client.CoreV1Api(client).create_namespace({"metadata": {"name": name}})
        yield installed.Stage(client, name, lambda labels: world.World._usual(labels[label.STAGE], labels).message)


def move(place: Path, replica: installed.Replica, seconds: int) -> None:
    faketime.set_clock(place / f"{replica.name}.clock", seconds)


def leads(replica: installed.Replica) -> bool:
    """Whether it says so; a busy machine may take a moment to answer."""
    shown: tuple[float] = eventually(lambda: (replica.metric("finetune_leader"),), 30)
    return shown[0] == 1


def reads(replica: installed.Replica) -> datetime.datetime:
    """The time that a replica gave its last log line."""
    return datetime.datetime.fromisoformat(replica.log_lines()[-1]["time"])


def test_a_clock_that_jumps_makes_no_second_leader(
    place: Path, pair: tuple[installed.Replica, installed.Replica]
) -> None:
    leader, other = pair
    for jump in (3_600, -3_600, DAY, 0):
        move(place, other, jump)
        end = time.monotonic() + 2 * lease.RETRY_SECONDS + 1
        while time.monotonic() < end:
            assert not leads(other), f"a jump of {jump} s made the one that stood by a leader beside the other"
            assert leads(leader)
            time.sleep(0.1)


def test_a_clock_that_jumps_ends_no_job_and_leaves_no_trace_in_its_status(
    place: Path, pair: tuple[installed.Replica, installed.Replica], scene: installed.Stage
) -> None:
    leader, _ = pair
    scene.apply(world.finetunejob(**{"spec.activeDeadlineSeconds": 600}))
    eventually(lambda: scene.pods(**{label.STAGE: "preflight"}))
    today = datetime.datetime.now(datetime.UTC)
    move(place, leader, 3 * DAY)
    time.sleep(1.5)  # the library looks once a second
    scene.edit(world.NAME, {"metadata": {"annotations": {"look": "again"}}})
    time.sleep(1.5)
    assert scene.phase(world.NAME) == "Preflight", "its deadline is ten minutes away, and not three days ago"
    scene.edit(world.NAME, {"spec": {"suspend": True}})
    eventually(lambda: scene.phase(world.NAME) == "Suspended")
    assert (reads(leader) - today).days in {2, 3}, "the clock was not moved: this test would prove nothing"
    scene.edit(world.NAME, {"spec": {"suspend": False}})
    scene.play(world.NAME, "Training", 45)
    state = scene.job(world.NAME)["status"]
    times = [c["lastTransitionTime"] for c in state["conditions"]] + [state["startTime"]]
    late = [time for time in times if abs((datetime.datetime.fromisoformat(time) - today).total_seconds()) > 120]
    assert not late, f"times of another day: {late}"
    move(place, leader, 0)
    scene.play(world.NAME, "Ready", 45)
    assert leads(leader), "it led all the time"
