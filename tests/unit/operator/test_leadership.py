"""Leading by a Lease: who lost it stops before others may begin, and who stops gives it back."""

import asyncio
from typing import Any

import pytest
from kubernetes.aio.client.exceptions import ApiException

from finetune_operator import cluster


class Lock:
    """A Lease in memory, of an API server that may be away."""

    holder: str | None = None
    away = False

    def __init__(self, name: str, namespace: str, identity: str, api: Any) -> None:
        self.name, self.namespace, self.identity = name, namespace, identity

    async def get(self, name: str, namespace: str) -> tuple[bool, Any]:
        return (False, ApiException(status=0)) if Lock.away else (True, None)

    async def update(self, name: str, namespace: str, record: Any) -> bool:
        if Lock.away or Lock.holder not in {None, self.identity}:
            return False
        Lock.holder = self.identity
        return True


class Work:
    """Notes when it is at work, and takes a moment to stop."""

    def __init__(self) -> None:
        self.begun, self.stopped = asyncio.Event(), False

    async def __call__(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            self.stopped = True


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> cluster.Cluster:
    Lock.holder, Lock.away = None, False
    monkeypatch.setattr(cluster, "_PatientLock", Lock)
    for name, seconds in {"LEASE_SECONDS": 3, "RENEW_SECONDS": 1.5, "RETRY_SECONDS": 1}.items():
        monkeypatch.setattr(cluster, name, seconds)
    made = cluster.Cluster(None)

    async def release(namespace: str, name: str, identity: str) -> None:
        if Lock.holder == identity:
            Lock.holder = None

    monkeypatch.setattr(made, "_release", release)
    return made


async def test_who_is_told_to_stop_ends_the_work_and_then_gives_the_lease_back(api: cluster.Cluster) -> None:
    work = Work()
    leading = asyncio.create_task(api.lead("ns", "lease", "me", work))
    await asyncio.wait_for(work.begun.wait(), 5)
    assert Lock.holder == "me"
    leading.cancel()
    await asyncio.gather(leading, return_exceptions=True)
    assert work.stopped
    assert Lock.holder is None


async def test_who_cannot_renew_ends_the_work(api: cluster.Cluster) -> None:
    work = Work()
    leading = asyncio.create_task(api.lead("ns", "lease", "me", work))
    await asyncio.wait_for(work.begun.wait(), 5)
    Lock.away = True
    await asyncio.wait_for(leading, 5)
    assert work.stopped


async def test_a_short_outage_ends_nothing(api: cluster.Cluster) -> None:
    work = Work()
    leading = asyncio.create_task(api.lead("ns", "lease", "me", work))
    await asyncio.wait_for(work.begun.wait(), 5)
    Lock.away = True
    await asyncio.sleep(1.2)  # one renewal fails
    Lock.away = False
    await asyncio.sleep(2)
    assert not leading.done()
    leading.cancel()
    await asyncio.gather(leading, return_exceptions=True)


async def test_while_another_leads_nothing_is_worked_on(api: cluster.Cluster) -> None:
    Lock.holder = "other"
    work = Work()
    leading = asyncio.create_task(api.lead("ns", "lease", "me", work))
    await asyncio.sleep(0.3)
    assert not work.begun.is_set()
    Lock.holder = None
    await asyncio.wait_for(work.begun.wait(), 5)
    leading.cancel()
    await asyncio.gather(leading, return_exceptions=True)


async def test_work_that_fails_is_told_and_the_lease_given_back(api: cluster.Cluster) -> None:
    async def broken() -> None:
        raise ValueError("defect")

    with pytest.raises(ValueError, match="defect"):
        await asyncio.wait_for(api.lead("ns", "lease", "me", broken), 5)
    assert Lock.holder is None


def test_a_leader_stops_before_its_lease_is_over() -> None:
    longest = 2 * cluster.RETRY_SECONDS + cluster.RENEW_SECONDS + 2 * cluster.TRY_SECONDS
    assert longest < cluster.LEASE_SECONDS
