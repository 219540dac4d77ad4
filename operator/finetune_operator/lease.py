"""Leader election: the leader is the holder of a Lease, which it renews every few seconds.

Whether a lease has expired is decided by the local monotonic clock and by whether the Lease has changed, never by the times
in it, which are for people. So clocks may differ, and may jump (docs/adr/0028-the-api-servers-clock.md).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from finetune_operator import cluster

LOG = logging.getLogger(__name__)
SECONDS = 15.0
"""Others may take the Lease after they have seen no renewal for this long."""
RENEW_SECONDS = 10.0
"""A leader is leader for this long after it sent its last renewal: it stops well before others start."""
RETRY_SECONDS, TRY_SECONDS = 2.0, 2.0


class Lease:
    """One replica's part in the election. `identity` must be different in every process."""

    def __init__(
        self,
        api: cluster.Cluster,
        namespace: str,
        name: str,
        identity: str,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api, self._identity, self._monotonic = api, identity, monotonic
        self._namespace, self._name = namespace, name
        self._seen: tuple[str, float] = ("", 0.0)
        """The Lease's last version, and when it was first seen."""
        self._until = 0.0

    def held(self) -> bool:
        """Whether this replica is certainly leader, even if the process was stopped for an hour and has just resumed."""
        return self._monotonic() < self._until

    async def lead(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `work` while holding the Lease; return when it ends or the Lease is lost (then `work` is cancelled)."""
        await self._acquire()
        self._api.may_write = self.held
        working = asyncio.create_task(work())
        renewing = asyncio.create_task(self._renew())
        try:
            done, _ = await asyncio.wait({working, renewing}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (working, renewing):
                task.cancel()
            # Another replica may start only when nothing of this one is running any more.
            await asyncio.gather(working, renewing, return_exceptions=True)
            await self._release()

    async def _acquire(self) -> None:
        while True:
            if await self._try(TRY_SECONDS) == self._identity:
                return
            await asyncio.sleep(RETRY_SECONDS)

    async def _renew(self) -> None:
        """Returns when the Lease is lost."""
        while (left := self._until - self._monotonic()) > 0:
            await asyncio.sleep(min(RETRY_SECONDS, left))
            holder = await self._try(min(TRY_SECONDS, max(0.0, self._until - self._monotonic())))
            if holder not in {None, self._identity}:
                break
        self._until = 0.0
        LOG.error("the lease %s/%s could not be renewed in time or has another holder", self._namespace, self._name)

    async def _try(self, seconds: float) -> str | None:
        """Take the Lease, or renew it. Returns its holder; None if that is unknown."""
        try:
            async with asyncio.timeout(seconds):
                return await self._take()
        except cluster.Failure as failure:
            if failure.status != 409:  # the other replica was faster
                LOG.warning("the lease %s/%s was refused: %s", self._namespace, self._name, failure)
        except cluster.OUTAGES as outage:
            LOG.warning(
                "the lease %s/%s cannot be read or renewed: %s", self._namespace, self._name, str(outage) or "no answer"
            )
        return None

    async def _take(self) -> str:
        sent = self._monotonic()
        path = cluster.path_of("Lease", self._namespace, self._name)
        found = await self._read(path)
        spec, version = found.get("spec") or {}, found["metadata"].get("resourceVersion", "")
        holder = spec.get("holderIdentity") or self._identity
        if version != self._seen[0]:
            self._seen = (version, self._monotonic())
        over = self._monotonic() > self._seen[1] + float(spec.get("leaseDurationSeconds") or SECONDS)
        if holder != self._identity and not over:
            return str(holder)
        again = spec.get("holderIdentity") == self._identity
        now = self._api.clock.now().isoformat(timespec="microseconds").replace("+00:00", "Z")
        found["spec"] = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(SECONDS),
            "acquireTime": spec.get("acquireTime", now) if again else now,
            "renewTime": now,
            "leaseTransitions": int(spec.get("leaseTransitions") or 0) + (0 if again else 1),
        }
        if version:
            await self._api.request("PUT", path, body=found)
        else:
            await self._api.request("POST", cluster.path_of("Lease", self._namespace), body=found)
        self._until = sent + RENEW_SECONDS
        return self._identity

    async def _read(self, path: str) -> cluster.Raw:
        try:
            return await self._api.request("GET", path)
        except cluster.Failure as failure:
            if failure.status != 404:
                raise
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace},
        }

    async def _release(self) -> None:
        """Release the Lease, so that the other replica need not wait until it expires."""
        self._until = 0.0
        path = cluster.path_of("Lease", self._namespace, self._name)
        try:
            found = await self._api.request("GET", path)
            if (found.get("spec") or {}).get("holderIdentity") == self._identity:
                body = {
                    "metadata": {"resourceVersion": found["metadata"]["resourceVersion"]},
                    "spec": {"holderIdentity": None},
                }
                await self._api.request("PATCH", path, body=body, content="application/merge-patch+json")
        except (cluster.Failure, *cluster.OUTAGES):
            pass
