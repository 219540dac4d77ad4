"""Makes jobs at a rate, as an administrator, and follows what becomes of them: by the audit log, and by a watch of the jobs."""

import asyncio
import collections
import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import kubernetes.aio.config
from tests.bench.operator import audit, place

from finetune_operator import cluster
from support import controlplane
from toolbox import say

AT_ONCE = 32
"""Requests of the driver that are under way at a time."""
REPORT_EVERY = 10.0
"""Seconds between two lines of progress."""
STAGES = {"preflight": "PreflightPassed", "train": "Trained", "eval": "Evaluated"}
"""What the names of stage Jobs say after the revision -> the condition that their success makes true."""


@dataclasses.dataclass
class Seen:
    """What a client that watches FineTuneJobs saw. Times are seconds since the epoch."""

    finished: dict[str, float] = dataclasses.field(default_factory=dict)
    true: dict[tuple[str, str], float] = dataclasses.field(default_factory=dict)
    """(job, condition) -> when it was first seen to be true."""
    phases: dict[str, str] = dataclasses.field(default_factory=dict)

    def take(self, raw: dict[str, Any], final: str) -> None:
        now, name, state = time.time(), raw["metadata"]["name"], raw.get("status") or {}
        self.phases[name] = state.get("phase", "")
        for condition in state.get("conditions", []):
            if condition["status"] == "True":
                self.true.setdefault((name, condition["type"]), now)
        if state.get("phase") == final:
            self.finished.setdefault(name, now)

    def after(self, ends: dict[str, float]) -> list[float]:
        """Seconds from the ends of stage Jobs (or of their pods), by their names, until the job's status told of them."""
        found = []
        for name, end in ends.items():
            job, rest = name[: len("b-00000")], name[len("b-00000") :]
            stage = next((condition for part, condition in STAGES.items() if f"-{part}" in rest), None)
            if stage is not None and (job, stage) in self.true:
                found.append(self.true[job, stage] - end)
        return found


class Drive:
    """One scenario's driver. `path`: where jobs are created."""

    def __init__(self, plane: controlplane.ControlPlane, side: audit.Side, path: str, deadline: float) -> None:
        self._plane, self._path, self._deadline = plane, path, deadline
        self.ledger = audit.Ledger(side)
        self.seen = Seen()
        self._log = audit.Follower(pathlib.Path(plane.facts["auditLog"]))
        self._api: cluster.Cluster | None = None

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator["Drive"]:
        client = await kubernetes.aio.config.new_client_from_config(config_file=str(self._plane.kubeconfig))
        self._api = cluster.Cluster(client)
        self._log.read()  # what was asked before is no job's
        reading = asyncio.create_task(self._read())
        try:
            yield self
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            self._log.close()
            await self._api.close()

    async def _read(self) -> None:
        while True:
            self.read()
            await asyncio.sleep(0.25)

    def read(self) -> None:
        for one in self._log.read():
            self.ledger.add(one)

    @contextlib.asynccontextmanager
    async def watching(self, final: str) -> AsyncIterator[None]:
        """The jobs are seen as long as the block lasts; `final` is the phase in which they are finished."""
        assert self._api is not None
        version = ""
        async for items, at in self._api.pages("FineTuneJob", place.NAMESPACE):
            version = at
            for raw in items:
                self.seen.take(raw, final)

        async def watch() -> None:
            assert self._api is not None
            reached = version
            while True:
                with contextlib.suppress(*cluster.OUTAGES):
                    async for event, raw in self._api.watch("FineTuneJob", place.NAMESPACE, "", reached):
                        reached = raw["metadata"]["resourceVersion"]
                        if event != "BOOKMARK":
                            self.seen.take(raw, final)

        task = asyncio.create_task(watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def create(self, manifest: dict[str, Any]) -> dict[str, Any]:
        assert self._api is not None
        return await self._api.request("POST", self._path, body=manifest)

    async def create_all(self, manifests: list[dict[str, Any]], rate: float | None) -> None:
        """All of them, at once or so many a second."""
        begun = time.monotonic()

        async def make(number: int) -> None:
            if rate is not None:
                await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
            await self.create(manifests[number])

        await _each(len(manifests), make)

    async def copy_all(self, name: str, copies: list[str]) -> None:
        """Jobs like a finished one, with its status. Its Jobs, and with them their pods, are gone an hour after their end."""
        api = self._api
        assert api is not None
        job = await api.find("FineTuneJob", place.NAMESPACE, name)
        assert job is not None
        uid = job["metadata"]["uid"]
        parent = {"apiVersion": job["apiVersion"], "kind": job["kind"], "metadata": _identity(job), "spec": job["spec"]}

        async def make(number: int) -> None:
            def renamed(raw: dict[str, Any], uid_now: str) -> dict[str, Any]:
                text = json.dumps(raw).replace(uid, uid_now).replace(name, copies[number])
                found: dict[str, Any] = json.loads(text)
                return found

            made = await api.create(renamed(parent, uid))
            meta = made["metadata"]
            state = renamed(job["status"], meta["uid"])
            await api.patch_status(place.NAMESPACE, meta["name"], meta["resourceVersion"], state)

        await _each(len(copies), make)

    async def until(self, what: str, count: Callable[[], int], wanted: int, seconds: float) -> bool:
        """Waits until `count` has reached `wanted`, and says how far it is; false when the time is over."""
        begun = reported = time.monotonic()
        while (now := count()) < wanted:
            at = time.monotonic()
            if at - begun > seconds or at > self._deadline:
                say.line(f"      cut off after {at - begun:.0f} s: {now} of {wanted} {what}")
                return False
            if at - reported > REPORT_EVERY:
                reported = at
                say.line(f"      {at - begun:4.0f} s: {now} of {wanted} {what}")
            await asyncio.sleep(0.1)
        return True


def _identity(raw: dict[str, Any]) -> dict[str, Any]:
    """What an author says of an object; the rest of its metadata is the API server's."""
    fields = ("name", "namespace", "labels", "annotations", "finalizers", "ownerReferences")
    return {key: raw["metadata"][key] for key in fields if key in raw["metadata"]}


async def _each(count: int, work: Callable[[int], Awaitable[None]]) -> None:
    """For every number, in order, with AT_ONCE of them under way."""
    numbers = collections.deque(range(count))

    async def worker() -> None:
        while numbers:
            await work(numbers.popleft())

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
