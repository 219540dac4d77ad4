"""The only Kopf module: receives events of FineTuneJobs, and runs reconcile for every change, of ServingPools as well.

There is a single event handler: `on.create`, `on.update` and timers would each add annotations or overlap, and so make a
second writer. Kopf's only requests to the API server are its list and watch.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import kopf

from finetune_api import GROUP, VERSION
from finetune_operator import (
    cache,
    cluster,
    index,
    metrics,
    poolreconcile,
    poolstates,
    progress,
    reconcile,
    servertraffic,
    settings,
    watches,
    workqueue,
)
from finetune_operator.observe import label, members

LOG = logging.getLogger(__name__)
LONGEST_PAUSE = 60.0
PAGE = 500
"""FineTuneJobs per page: all of a large cluster at once would be in memory both as text and as objects."""
CONFIRMED = 60.0
"""Seconds after which Kopf has reported every job."""
LEFTOVER_PAUSE = 2.0
"""Children of a deleted job of the same name are gone within seconds."""
LEFTOVER_TRIES = 6
"""After these the pauses grow: the object belongs to somebody else."""


def kopf_identity() -> Any:
    """Kopf's identity of this process, unused in standalone mode; its default needs a user name, which a pod lacks."""
    return os.environ.get("POD_NAME", label.MANAGER)


class NothingKept(kopf.DiffBaseStorage):
    """Kopf would copy each object several times per event to compute differences for handlers that do not exist here."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence({})

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        return None


class Controller:
    """Connects events, caches and the queue while this replica is leader."""

    def __init__(self, api: cluster.Cluster, chart: settings.Settings, take_signals: Callable[[], None]) -> None:
        self._settings = chart
        self._take_signals = take_signals
        self._api = api
        self._queue = workqueue.Workqueue(self._work)
        self.facts = cache.Cache(self._queue.add, self._queue.add_first, self._queue.add_soon)
        self._progress = progress.Reader(self.facts, chart.progress_seconds)
        self.indexes = index.Indexes(self.facts, lambda: self.leads and self._jobs_known)
        self._states = poolstates.Reader(self.facts, now=api.clock.now)
        self._traffic = servertraffic.Reader(self.facts, now=api.clock.now)
        self._asked = servertraffic.Asked(self.facts, now=api.clock.now)
        self._pools = poolreconcile.Reconciler(api, self.facts, self.indexes, chart, api.clock.now)
        self._reconciler = reconcile.Reconciler(api, self.facts, chart, api.clock.now)
        self._failures: dict[str, int] = {}
        self._unheard: set[str] = set()
        """uids that are known only from the operator's own list."""
        self.leads = False
        self._jobs_known = False
        """Whether every job with a part in a ServingPool is in the cache."""

    async def _work(self, uid: str) -> None:
        started = time.perf_counter()
        self._queue.forget(uid)
        try:
            of_pools = uid in self.facts.pools
            again = await (self._pools if of_pools else self._reconciler).reconcile(uid)
        except reconcile.Conflict:
            self._queue.add_after(uid, 0.1)
        except cluster.Failure as failure:
            soon = failure.status in {409, 422} and self._failures.get(uid, 0) < LEFTOVER_TRIES
            self._retry(uid, "refused", str(failure), LEFTOVER_PAUSE if soon else LONGEST_PAUSE)
        except cluster.OUTAGES as outage:
            self._retry(uid, "unreachable", str(outage))
        except Exception:
            LOG.exception(
                "a defect in the operator: please report it with this traceback and the job's YAML",
                extra=self._about(uid),
            )
            self._retry(uid, "defect", "see the traceback above")
        else:
            self._failures.pop(uid, None)
            if again is not None:
                self._queue.add_after(uid, again)
        finally:
            metrics.reconcile_duration.observe(time.perf_counter() - started)

    def _retry(self, uid: str, kind: str, message: str, longest: float = LONGEST_PAUSE) -> None:
        metrics.reconcile_errors.labels(kind).inc()
        failures = self._failures[uid] = self._failures.get(uid, 0) + 1
        pause = min(0.5 * 2.0 ** min(failures, 16), longest)
        LOG.warning(
            "reconciling failed (%s), retrying in %.0f s: %s", kind, pause, message[:500], extra=self._about(uid)
        )
        self._queue.add_after(uid, pause)

    def _about(self, uid: str) -> dict[str, Any]:
        """Fields of a log line about a job whose status may be unreadable, or about a pool."""
        if (pool := self.facts.pools.get(uid)) is not None:
            return poolreconcile.about(pool)
        known = self.facts.parents.get(uid)
        raw = known.raw if known is not None else {}
        meta, state = raw.get("metadata", {}), raw.get("status") or {}
        name = {"namespace": meta.get("namespace"), "job": meta.get("name")}
        return name | {"revision": state.get("revision"), "stage": state.get("stage")}

    def receive(self, event: str | None, body: dict[str, Any]) -> None:
        self._unheard.discard(body["metadata"]["uid"])
        if event == "DELETED":
            uid = body["metadata"]["uid"]
            self.facts.drop_parent(uid)
            self._queue.forget(uid)
            self._failures.pop(uid, None)
        else:
            self.facts.put_parent(body)

    def registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
            return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

        @kopf.on.event(GROUP, VERSION, "finetunejobs", registry=registry)
        async def changed(event: kopf.RawEvent, **_: Any) -> None:
            self.receive(event["type"], dict(event["object"]))

        return registry

    async def _hear(self) -> None:
        """Run Kopf until it ends."""
        options = kopf.OperatorSettings()
        options.posting.enabled = False
        options.scanning.disabled = True
        options.persistence.finalizer = f"{GROUP}/unused"
        options.persistence.diffbase_storage = NothingKept()
        options.watching.chunk_size = PAGE
        options.queueing.idle_timeout = 1.0
        options.queueing.exit_timeout = 0.0
        await self._crd_is_there()
        await self._unfinished_first()
        mine = asyncio.all_tasks()
        tasks = await kopf.spawn_tasks(
            registry=self.registry(),
            settings=options,
            standalone=True,
            identity=kopf_identity(),
            clusterwide=not self._settings.namespaces,
            namespaces=self._settings.namespaces,
        )
        self._take_signals()  # Kopf has just replaced the signal handlers
        await kopf.run_tasks(tasks, ignored=mine)

    async def _crd_is_there(self) -> None:
        """Kopf looks up its resources once, at start: without this, CRDs that are installed later would never be noticed."""
        place = self._settings.namespaces[0] if self._settings.namespaces else None
        while True:
            try:
                await self._api.exists("FineTuneJob", place, "none", "")
                return
            except (cluster.Failure, *cluster.OUTAGES) as error:
                LOG.warning("FineTuneJobs cannot be listed, retrying in 1 s: %s", error)
                await asyncio.sleep(1)

    async def _follow(self, synced: asyncio.Event) -> None:
        chart = self._settings
        also = {
            "queues": chart.kueue.enabled,
            "ingresses": chart.ingress.enabled,
            "routes": chart.gateway_api.enabled,
            "inference": chart.gateway_api.inference.enabled,
            "rewrites": chart.gateway_api.inference.model_rewrites,
        }
        await watches.follow_all(self._api, self.facts, chart.namespaces, synced, **also)

    async def _unfinished_first(self) -> None:
        """Load unfinished jobs, and those in ServingPools, before Kopf has gone through thousands of finished ones. Kopf reports
        all of them later. From then on the pools' indexes are complete."""
        places: list[str | None] = list(self._settings.namespaces) or [None]
        while not self._jobs_known:
            try:
                for place in places:
                    async for items, _ in self._api.pages("FineTuneJob", place):
                        for raw in items:
                            at_rest = (raw.get("status") or {}).get("phase") in cache.AT_REST
                            if not at_rest or members.members(raw):
                                self._unheard.add(raw["metadata"]["uid"])
                                self.facts.put_parent(raw)
                self._jobs_known = True
            except (cluster.Failure, *cluster.OUTAGES) as error:
                LOG.warning("FineTuneJobs cannot be listed, retrying in 1 s: %s", error)
                await asyncio.sleep(1)

    async def _confirm(self) -> None:
        """A job that Kopf never reported was deleted between the two lists."""
        while True:
            await asyncio.sleep(CONFIRMED)
            with contextlib.suppress(cluster.Failure, *cluster.OUTAGES):
                for uid in self._unheard & self.facts.parents.keys():
                    meta = self.facts.parents[uid].raw["metadata"]
                    if not await self._api.exists("FineTuneJob", meta["namespace"], meta["name"], uid):
                        self.receive("DELETED", {"metadata": meta})

    def _lead(self, leads: bool) -> None:
        self.leads = leads
        metrics.leader.set(int(leads))

    async def run(self) -> None:
        """Reconcile until cancelled, or until one of the parts ends."""
        synced = asyncio.Event()
        children = asyncio.create_task(self._follow(synced))
        filled = asyncio.create_task(synced.wait())
        tasks: set[asyncio.Task[Any]] = {children, filled}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if synced.is_set():
                LOG.info("the caches are filled: start reconciling")
                self._lead(True)
                readers = (self._progress.run(), self._states.run(), self._traffic.run(), self._asked.run())
                parts = (self._hear(), self._queue.run(), self._confirm(), *readers)
                tasks = {children, *(asyncio.create_task(part) for part in parts)}
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            self._lead(False)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
