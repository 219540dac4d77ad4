"""Leading by a Lease: who lost it stops before others may begin, who stops gives it back, and no clock decides."""

import asyncio
import copy
import time
from typing import Any

import pytest

from finetune_operator import clock, cluster, lease


class Server:
    """One Lease of an API server that may be away; one for each replica's connection, of the same `stored`."""

    def __init__(self, stored: dict[str, Any]) -> None:
        self.stored, self.clock, self.away = stored, clock.Clock(), False
        self.may_write = lambda: True
        self.asked = 0

    async def looks(self) -> None:
        """Until the replica of this connection has asked a few times more: every try that had begun is over."""
        enough = self.asked + 5
        while self.asked < enough:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)

    async def request(self, method: str, path: str, query: Any = None, body: Any = None, content: str = "") -> Any:
        await asyncio.sleep(0)
        self.asked += 1
        if self.away:
            raise OSError("no route to host")
        found = self.stored.get("lease")
        if method == "GET":
            if found is None:
                raise cluster.Failure(404, "not found")
            return copy.deepcopy(found)
        if found is not None and body["metadata"].get("resourceVersion") != found["metadata"]["resourceVersion"]:
            raise cluster.Failure(409, "the object has been modified")
        spec = {**(found or {}).get("spec", {}), **body["spec"]} if method == "PATCH" else body["spec"]
        version = int(found["metadata"]["resourceVersion"]) + 1 if found else 1
        self.stored["lease"] = {"metadata": {"resourceVersion": str(version)}, "spec": copy.deepcopy(spec)}
        return self.stored["lease"]

    @property
    def holder(self) -> str | None:
        return self.stored.get("lease", {}).get("spec", {}).get("holderIdentity")


class Work:
    """Notes when it is at work, and takes a moment to stop."""

    def __init__(self) -> None:
        self.begun, self.stopped = asyncio.Event(), False

    async def __call__(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.02)
            self.stopped = True


class Replica:
    """A replica that takes part. `late` is added to its monotonic clock: leases pass when a test says so, on any machine."""

    def __init__(self, server: Server, name: str) -> None:
        self.server, self.work, self.late = server, Work(), 0.0
        self.lease = lease.Lease(server, "ns", "lease", name, lambda: time.monotonic() + self.late)  # type: ignore[arg-type]
        self.task = asyncio.create_task(self.lease.lead(self.work))

    async def leads(self) -> None:
        await asyncio.wait_for(self.work.begun.wait(), 5)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"SECONDS": 600, "RENEW_SECONDS": 400, "RETRY_SECONDS": 0.02, "TRY_SECONDS": 60}.items():
        monkeypatch.setattr(lease, name, seconds)


async def test_a_leader_that_has_to_stop_ends_its_work_and_then_releases_the_lease() -> None:
    one = Replica(Server({}), "one")
    await one.leads()
    assert one.server.holder == "one"
    await one.stop()
    assert one.work.stopped
    assert one.server.holder is None


async def test_who_cannot_renew_ends_the_work() -> None:
    one = Replica(Server({}), "one")
    await one.leads()
    one.server.away = True
    one.late = 401
    await asyncio.wait_for(one.task, 5)
    assert one.work.stopped


async def test_a_short_outage_ends_nothing() -> None:
    one = Replica(Server({}), "one")
    await one.leads()
    one.server.away = True
    one.late = 300
    await one.server.looks()  # some renewals fail
    one.server.away = False
    await one.server.looks()
    one.late = 600
    await one.server.looks()
    assert not one.task.done(), "it was renewed in between"
    await one.stop()


async def test_the_other_begins_when_the_leader_stops_and_not_before() -> None:
    stored: dict[str, Any] = {}
    one = Replica(Server(stored), "one")
    await one.leads()
    two = Replica(Server(stored), "two")
    for _ in range(4):  # much longer than the lease: it is renewed
        one.late, two.late = one.late + 300, two.late + 300
        await one.server.looks()
        await two.server.looks()
    assert not two.work.begun.is_set()
    await one.stop()
    await two.leads()
    await two.stop()


async def test_the_other_begins_after_a_lease_without_renewals_when_the_leader_has_stopped() -> None:
    stored: dict[str, Any] = {}
    one = Replica(Server(stored), "one")
    await one.leads()
    two = Replica(Server(stored), "two")
    one.server.away = True
    await one.server.looks()
    await two.server.looks()
    one.late = two.late = 401
    await asyncio.wait_for(one.task, 5)
    assert not two.work.begun.is_set(), "two replicas might lead at once"
    two.late = 601
    await two.leads()
    await two.stop()


async def test_a_process_that_stood_still_for_longer_than_its_lease_writes_nothing_more() -> None:
    one = Replica(Server({}), "one")
    await one.leads()
    assert one.server.may_write()
    one.late = 401  # as after SIGSTOP: time has passed, and no task has run yet
    assert not one.server.may_write()
    await asyncio.wait_for(one.task, 5)
    assert one.work.stopped


async def test_who_may_not_write_sends_no_change() -> None:
    api = cluster.Cluster(None)
    api.may_write = lambda: False
    for change in (
        api.apply({"kind": "Job", "metadata": {"name": "a", "namespace": "ns"}}, force=True),
        api.delete("Job", "ns", "a"),
        api.patch_status("ns", "a", "1", {}),
    ):
        with pytest.raises(cluster.Lapsed):
            await change
    assert issubclass(cluster.Lapsed, cluster.OUTAGES), "it is retried like any outage, should we lead again"


async def test_times_written_in_the_lease_decide_nothing() -> None:
    long_ago = {"holderIdentity": "one", "leaseDurationSeconds": 600, "renewTime": "2001-01-01T00:00:00.000000Z"}
    server = Server({"lease": {"metadata": {"resourceVersion": "1"}, "spec": long_ago}})
    two = Replica(server, "two")
    await two.server.looks()
    assert not two.work.begun.is_set(), "it has not seen yet that nobody renews"
    two.late = 601
    await two.leads()
    await two.stop()


async def test_work_that_fails_raises_its_error_and_the_lease_is_released() -> None:
    async def broken() -> None:
        raise ValueError("defect")

    server = Server({})
    with pytest.raises(ValueError, match="defect"):
        await asyncio.wait_for(lease.Lease(server, "ns", "lease", "me").lead(broken), 5)  # type: ignore[arg-type]
    assert server.holder is None


def test_a_leader_stops_before_its_lease_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert lease.RENEW_SECONDS + lease.TRY_SECONDS < lease.SECONDS
