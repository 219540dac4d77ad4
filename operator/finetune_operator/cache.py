"""What the API server last said, as small facts: FineTuneJobs (heard through Kopf), their children and the catalogue.

Children are listed and watched with our label as a selector, on the server's side. Kopf would watch every Pod and Job of the
cluster and filter here, at some milliseconds each (see docs/adr/0002-children-by-label.md).
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

import pydantic

from finetune_api import basemodel, reasons
from finetune_operator import cluster, kueue, observe

LOG = logging.getLogger(__name__)
OURS = f"app.kubernetes.io/managed-by={cluster.MANAGER},{observe.UID}"
SELECTORS = {"BaseModel": "", "Workload": kueue.QUEUED_JOB}
"""Of what carries no label of ours."""
LONGEST_PAUSES = {"Workload": 60.0}
"""Seconds between two tries; 10 for what is always there."""


class Cache:
    """Facts by the uid of their FineTuneJob. `changed` is called with a uid whenever something of that job changed.

    What we wrote ourselves is put in at once, so that a reconcile never misses a child that it made a moment ago. Versions are
    compared, so that a slower watch neither undoes that nor brings back what is gone.
    """

    def __init__(self, changed: Callable[[str], None]) -> None:
        self.changed = changed
        self.parents: dict[str, observe.Raw] = {}
        self.children: dict[str, dict[tuple[str, str], observe.Child]] = {}
        self.catalogue: dict[str, basemodel.BaseModelSpec] = {}
        self.workloads: dict[str, kueue.Workload] | None = None
        """By the uid of their Job, whosever it is; None until they were listed."""
        self._known: dict[str, dict[tuple[str, str], tuple[str, int]]] = {kind: {} for kind in observe.PROJECTIONS}
        """Kind -> (namespace, name) -> uid of the FineTuneJob, version."""
        self._reached: dict[tuple[str, str | None], int] = {}
        """(kind, namespace that is watched) -> the version up to which everything was heard."""

    # -- FineTuneJobs --

    def put_parent(self, raw: observe.Raw) -> None:
        uid = raw["metadata"]["uid"]
        self.parents[uid] = newer(self.parents.get(uid), raw)
        self.changed(uid)

    def wrote_parent(self, raw: observe.Raw) -> None:
        """What we wrote ourselves is known at once, unless the watch was faster and knows better."""
        uid = raw["metadata"]["uid"]
        if uid in self.parents:
            self.parents[uid] = newer(self.parents[uid], raw)

    def drop_parent(self, uid: str) -> None:
        self.parents.pop(uid, None)

    # -- children and catalogue, from `follow` --

    def listed(self, kind: str, place: str | None, items: Iterable[observe.Raw], version: str) -> None:
        """All objects of a kind (in a namespace, or everywhere) at a version: what is not among them is gone."""
        reached = self._reached[kind, place] = number(version)
        found = {key(raw): raw for raw in items}
        if kind == "BaseModel":
            for name in set(self.catalogue) - {name for _, name in found}:
                self._drop_model(name)
            for raw in found.values():
                self._put_model(raw)
            return
        if kind == "Workload":
            before = {uid: fact for uid, fact in (self.workloads or {}).items() if place in {None, fact.namespace}}
            self.workloads = {uid: fact for uid, fact in (self.workloads or {}).items() if uid not in before}
            for raw in found.values():
                self._put_workload(raw)
            for uid in set(before) - set(self.workloads):
                self._changed_in_queue(before[uid])
            return
        mine = self._known[kind]
        for place_and_name in [k for k, (_, at) in mine.items() if place in {None, k[0]} and at <= reached]:
            if place_and_name not in found:
                self._drop_child(kind, *place_and_name)
        for raw in found.values():
            self._put_child(kind, raw)

    def heard(self, kind: str, place: str | None, event: str, raw: observe.Raw) -> None:
        """One event of a watch."""
        self._reached[kind, place] = number(raw["metadata"]["resourceVersion"])
        if event == "BOOKMARK":
            return
        if kind == "BaseModel":
            self._drop_model(raw["metadata"]["name"]) if event == "DELETED" else self._put_model(raw)
        elif kind == "Workload":
            self._drop_workload(raw) if event == "DELETED" else self._put_workload(raw)
        elif event == "DELETED":
            self._drop_child(kind, *key(raw))
        else:
            self._put_child(kind, raw)

    def wrote_child(self, raw: observe.Raw) -> None:
        """The API server's answer to a write of ours, unless the watch is ahead of it already."""
        kind, meta = raw["kind"], raw["metadata"]
        if kind not in observe.PROJECTIONS:
            return
        reached = [self._reached[at] for at in ((kind, None), (kind, meta["namespace"])) if at in self._reached]
        if reached and max(reached) < number(meta["resourceVersion"]):
            self._put_child(kind, raw)

    def _put_child(self, kind: str, raw: observe.Raw) -> None:
        uid, meta = observe.uid_of(raw), raw["metadata"]
        if uid is None:
            return
        version = number(meta["resourceVersion"])
        owner, at = self._known[kind].get(key(raw), (uid, 0))
        if at > version:
            return
        if owner != uid:
            self._drop_child(kind, *key(raw))
        self._known[kind][key(raw)] = (uid, version)
        fact = observe.PROJECTIONS[kind](raw)
        mine = self.children.setdefault(uid, {})
        if mine.get((kind, meta["name"])) != fact:
            mine[kind, meta["name"]] = fact
            self.changed(uid)

    def _drop_child(self, kind: str, namespace: str, name: str) -> None:
        uid, _ = self._known[kind].pop((namespace, name), (None, 0))
        if uid is None:
            return
        mine = self.children.get(uid, {})
        mine.pop((kind, name), None)
        if not mine:
            self.children.pop(uid, None)
        self.changed(uid)

    def _put_model(self, raw: observe.Raw) -> None:
        name = raw["metadata"]["name"]
        try:
            self.catalogue[name] = basemodel.BaseModelSpec.model_validate(raw.get("spec") or {}, extra="ignore")
        except pydantic.ValidationError as error:
            self.catalogue.pop(name, None)
            LOG.warning("BaseModel %s cannot be read and is left out: %s", name, error)
        self._catalogue_changed()

    def _drop_model(self, name: str) -> None:
        self.catalogue.pop(name, None)
        self._catalogue_changed()

    def _put_workload(self, raw: observe.Raw) -> None:
        fact = kueue.workload(raw)
        assert self.workloads is not None
        if fact.job_uid and self.workloads.get(fact.job_uid) != fact:
            self.workloads[fact.job_uid] = fact
            self._changed_in_queue(fact)

    def _drop_workload(self, raw: observe.Raw) -> None:
        fact = kueue.workload(raw)
        assert self.workloads is not None
        if fact.job_uid in self.workloads and self.workloads[fact.job_uid].name == fact.name:
            self._changed_in_queue(self.workloads.pop(fact.job_uid))

    def _changed_in_queue(self, fact: kueue.Workload) -> None:
        """Of the Jobs in a queue most are not ours; one that is not heard of yet is looked at when it is."""
        uid, _ = self._known["Job"].get((fact.namespace, fact.job), (None, 0))
        if uid is not None:
            self.changed(uid)

    def _catalogue_changed(self) -> None:
        """Jobs that wait for a model look again."""
        for uid, raw in self.parents.items():
            if (raw.get("status") or {}).get("phase") in {None, reasons.Phase.PENDING}:
                self.changed(uid)


async def follow(
    api: cluster.Cluster, cache: Cache, kind: str, namespace: str | None, listed: Callable[[], None]
) -> None:
    """Keep the cache of one kind current, through outages and expired versions. `listed` is called after each full list."""
    selector = SELECTORS.get(kind, OURS)
    pause = 0.1
    while True:
        try:
            items, version = await api.list(kind, namespace, selector)
            cache.listed(kind, namespace, items, version)
            listed()
            while True:
                async for event, raw in api.watch(kind, namespace, selector, version):
                    pause = 0.1
                    version = raw["metadata"]["resourceVersion"]
                    cache.heard(kind, namespace, event, raw)
        except cluster.Expired:
            continue
        except (cluster.Failure, *cluster.OUTAGES) as error:
            LOG.warning("the watch of %s broke off, again in %.1f s: %s", kind, pause, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSES.get(kind, 10.0))


def newer(cached: observe.Raw | None, heard: observe.Raw) -> observe.Raw:
    """The later of two versions of one object; resourceVersions are ordered numbers (KEP-5504)."""
    if cached is None:
        return heard
    ahead = number(cached["metadata"]["resourceVersion"]) > number(heard["metadata"]["resourceVersion"])
    return cached if ahead else heard


def number(version: str) -> int:
    """A resourceVersion to compare; those of aggregated API servers may be other words, which are never ahead."""
    return int(version) if version.isdecimal() else 0


def key(raw: observe.Raw) -> tuple[str, str]:
    return raw["metadata"].get("namespace", ""), raw["metadata"]["name"]


async def follow_all(
    api: cluster.Cluster, cache: Cache, namespaces: Iterable[str], synced: asyncio.Event, *, queues: bool = False
) -> None:
    """Follow all kinds of children and the catalogue; `synced` is set once each has been listed. With `queues`, Kueue's Workloads
    too: nothing waits for those, since Kueue may be installed later."""
    places: list[str | None] = list(namespaces) or [None]
    sources: list[tuple[str, str | None]] = [("BaseModel", None)]
    sources += [(kind, place) for kind in observe.PROJECTIONS for place in places]
    missing = set(sources)
    sources += [("Workload", place) for place in places if queues]

    def listed(source: tuple[str, str | None]) -> Callable[[], None]:
        def mark() -> None:
            missing.discard(source)
            if not missing:
                synced.set()

        return mark

    tasks: list[asyncio.Task[Any]] = [
        asyncio.create_task(follow(api, cache, kind, place, listed((kind, place)))) for kind, place in sources
    ]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
