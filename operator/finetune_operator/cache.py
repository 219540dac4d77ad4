"""What the API server last said, as small facts: FineTuneJobs (heard through Kopf), their children and the catalogue.

Children are listed and watched with our label as a selector, on the server's side. Kopf would watch every Pod and Job of the
cluster and filter here, at some milliseconds each (see docs/adr/0002-children-by-label.md).
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

import pydantic

from finetune_api import basemodel
from finetune_operator import cluster, observe

LOG = logging.getLogger(__name__)
OURS = f"app.kubernetes.io/managed-by={cluster.MANAGER},{observe.UID}"


class Cache:
    """Facts by the uid of their FineTuneJob. `changed` is called with a uid whenever something of that job changed."""

    def __init__(self, changed: Callable[[str], None]) -> None:
        self.changed = changed
        self.parents: dict[str, observe.Raw] = {}
        self.children: dict[str, dict[tuple[str, str], observe.Child]] = {}
        self.catalogue: dict[str, basemodel.BaseModelSpec] = {}
        self._owners: dict[tuple[str, str, str], str] = {}

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

    def put_child(self, kind: str, raw: observe.Raw) -> None:
        uid, meta = observe.uid_of(raw), raw["metadata"]
        if uid is None:
            return
        fact = observe.PROJECTIONS[kind](raw)
        self._owners[kind, meta["namespace"], meta["name"]] = uid
        mine = self.children.setdefault(uid, {})
        if mine.get((kind, meta["name"])) != fact:
            mine[kind, meta["name"]] = fact
            self.changed(uid)

    def drop_child(self, kind: str, namespace: str, name: str) -> None:
        uid = self._owners.pop((kind, namespace, name), None)
        if uid is None:
            return
        mine = self.children.get(uid, {})
        mine.pop((kind, name), None)
        if not mine:
            self.children.pop(uid, None)
        self.changed(uid)

    def put_model(self, raw: observe.Raw) -> None:
        name = raw["metadata"]["name"]
        try:
            self.catalogue[name] = basemodel.BaseModelSpec.model_validate(raw.get("spec") or {})
        except pydantic.ValidationError as error:
            self.catalogue.pop(name, None)
            LOG.warning("BaseModel %s cannot be read and is left out: %s", name, error)
        self._catalogue_changed()

    def drop_model(self, name: str) -> None:
        self.catalogue.pop(name, None)
        self._catalogue_changed()

    def _catalogue_changed(self) -> None:
        """Jobs that wait for a model look again."""
        for uid, raw in self.parents.items():
            if not (raw.get("status") or {}).get("resolved"):
                self.changed(uid)

    # -- as a sink of `follow` --

    def put(self, kind: str, raw: observe.Raw) -> None:
        if kind == "BaseModel":
            self.put_model(raw)
        else:
            self.put_child(kind, raw)

    def drop(self, kind: str, namespace: str, name: str) -> None:
        if kind == "BaseModel":
            self.drop_model(name)
        else:
            self.drop_child(kind, namespace, name)

    def known(self, kind: str, namespace: str | None) -> set[tuple[str, str]]:
        """(namespace, name) of what is cached of a kind; namespace None: of all namespaces."""
        if kind == "BaseModel":
            return {("", name) for name in self.catalogue}
        return {(ns, name) for k, ns, name in self._owners if k == kind and namespace in {None, ns}}


async def follow(
    api: cluster.Cluster, cache: Cache, kind: str, namespace: str | None, listed: Callable[[], None]
) -> None:
    """Keep the cache of one kind current, through outages and expired versions. `listed` is called after each full list."""
    selector = "" if kind == "BaseModel" else OURS
    pause = 0.1
    while True:
        try:
            items, version = await api.list(kind, namespace, selector)
            gone = cache.known(kind, namespace) - {_key(raw) for raw in items}
            for ns, name in gone:
                cache.drop(kind, ns, name)
            for raw in items:
                cache.put(kind, raw)
            listed()
            while True:
                async for event, raw in api.watch(kind, namespace, selector, version):
                    pause = 0.1
                    version = raw["metadata"]["resourceVersion"]
                    if event == "DELETED":
                        cache.drop(kind, *_key(raw))
                    elif event != "BOOKMARK":
                        cache.put(kind, raw)
        except cluster.Expired:
            continue
        except (cluster.Failure, *cluster.OUTAGES) as error:
            LOG.warning("the watch of %s broke off, again in %.1f s: %s", kind, pause, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 10)


def newer(cached: observe.Raw | None, heard: observe.Raw) -> observe.Raw:
    """The later of two versions of one object; resourceVersions are ordered numbers (KEP-5504)."""
    if cached is None:
        return heard
    try:
        ahead = int(cached["metadata"]["resourceVersion"]) > int(heard["metadata"]["resourceVersion"])
    except ValueError:
        ahead = False
    return cached if ahead else heard


def _key(raw: observe.Raw) -> tuple[str, str]:
    return raw["metadata"].get("namespace", ""), raw["metadata"]["name"]


async def follow_all(api: cluster.Cluster, cache: Cache, namespaces: Iterable[str], synced: asyncio.Event) -> None:
    """Follow all kinds of children and the catalogue; `synced` is set once each has been listed."""
    places: list[str | None] = list(namespaces) or [None]
    sources: list[tuple[str, str | None]] = [("BaseModel", None)]
    sources += [(kind, place) for kind in observe.PROJECTIONS for place in places]
    missing = set(sources)

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
