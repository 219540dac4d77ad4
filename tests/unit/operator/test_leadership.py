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

    async def request(self, method: str, path: str, query: Any = None, body: Any = None, content: str = "") -> Any:
        await asyncio.sleep(0)
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
    """A replica that takes part."""

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
    for name, seconds in {"SECONDS": 1, "RENEW_SECONDS": 0.6, "RETRY_SECONDS": 0.1, "TRY_SECONDS": 0.1}.items():
        monkeypatch.setattr(lease, name, seconds)


async def test_who_is_told_to_stop_ends_the_work_and_then_gives_the_lease_back() -> None:
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
    await asyncio.wait_for(one.task, 5)
    assert one.work.stopped


async def test_a_short_outage_ends_nothing() -> None:
    one = Replica(Server({}), "one")
    await one.leads()
    one.server.away = True
    await asyncio.sleep(0.3)  # some renewals fail
    one.server.away = False
    await asyncio.sleep(1)
    assert not one.task.done()
    await one.stop()


async def test_the_other_begins_when_the_leader_stops_and_not_before() -> None:
    stored: dict[str, Any] = {}
    one = Replica(Server(stored), "one")
    await one.leads()
    two = Replica(Server(stored), "two")
    await asyncio.sleep(1.5)  # longer than the lease: it is renewed
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
    await two.leads()
    assert one.work.stopped, "two replicas led at once"
    await two.stop()


async def test_a_process_that_stood_still_for_longer_than_its_lease_writes_nothing_more() -> None:
    one = Replica(Server({}), "one")
    await one.leads()
    assert one.server.may_write()
    one.late = 60  # as after SIGSTOP: the clock has gone on, and no task has run yet
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
    long_ago = {"holderIdentity": "one", "leaseDurationSeconds": 1, "renewTime": "2001-01-01T00:00:00.000000Z"}
    server = Server({"lease": {"metadata": {"resourceVersion": "1"}, "spec": long_ago}})
    two = Replica(server, "two")
    await asyncio.sleep(0.5)
    assert not two.work.begun.is_set(), "it has not seen yet that nobody renews"
    await two.leads()
    await two.stop()


async def test_work_that_fails_is_told_and_the_lease_given_back() -> None:
    async def broken() -> None:
        raise ValueError("defect")

    server = Server({})
    with pytest.raises(ValueError, match="defect"):
        await asyncio.wait_for(lease.Lease(server, "ns", "lease", "me").lead(broken), 5)  # type: ignore[arg-type]
    assert server.holder is None


def test_a_leader_stops_before_its_lease_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert lease.RENEW_SECONDS + lease.TRY_SECONDS < lease.SECONDS
