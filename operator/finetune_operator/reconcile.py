"""One job, one pass: gather its world, decide, act, write the status once, then say what flipped."""

import contextlib
import datetime
import logging
from typing import Any

from finetune_api import status
from finetune_operator import cache, cluster, conditions, decide, metrics, observe, settings

LOG = logging.getLogger(__name__)
PATIENCE = 3.0
"""Seconds without a pod after which the Job controller is asked why."""
RESYNC = 600.0
"""A missed event costs at most this delay, in seconds."""


class Conflict(Exception):
    """The job changed while we looked: look again."""


class Reconciler:
    """Knows the cluster, the cache and the settings; remembers nothing of a job."""

    def __init__(self, api: cluster.Cluster, facts: cache.Cache, chart: settings.Settings) -> None:
        self._api, self._facts, self._settings = api, facts, chart

    async def reconcile(self, uid: str) -> float | None:
        """Bring the job one step further. Returns in how many seconds to look again; None when it is gone.

        Raises:
            Conflict: the cache is behind the API server.
            cluster.Failure, cluster.OUTAGES: the API server refused or was away.
        """
        raw = self._facts.parents.get(uid)
        if raw is None:
            return None
        parent = observe.parent(raw)
        if parent.deleting:
            return None
        now = datetime.datetime.now(datetime.UTC)
        decision = decide.decide(await self._gather(parent, now)) if parent.spec else decide.refuse(parent, now)
        await self._act(parent, raw, decision)
        return min(decision.requeue, RESYNC) if decision.requeue is not None else RESYNC

    async def _gather(self, parent: observe.Parent, now: datetime.datetime) -> observe.Observation:
        assert parent.spec is not None
        kinds = observe.by_kind(self._facts.children.get(parent.uid, {}))
        name = parent.spec.base_model.name
        observation = observe.Observation(
            parent=parent,
            spec=parent.spec,
            entry=self._facts.catalogue.get(name) if name else None,
            jobs=kinds["Job"],
            pods=tuple(kinds["Pod"].values()),
            servers=kinds["Deployment"],
            services=kinds["Service"],
            configs=kinds["ConfigMap"],
            refusals={},
            now=now,
            settings=self._settings,
        )
        refusals = {}
        for present in observation.jobs.values():
            waits = not present.over and not present.deleting and not observation.pods_of(present.name)
            if waits and present.created and (now - present.created).total_seconds() > PATIENCE:
                refusals[present.name] = await self._api.refusal(parent.namespace, present.uid)
        return observe.with_refusals(observation, refusals)

    async def _act(self, parent: observe.Parent, raw: observe.Raw, decision: decide.Decision) -> None:
        if decision.remove_parent:
            LOG.info("time to live is over: the job is deleted", extra=about(parent))
            await self._api.delete("FineTuneJob", parent.namespace, parent.name)
            return
        for ref in decision.delete:
            LOG.info("delete %s %s", ref.kind, ref.name, extra=about(parent))
            await self._api.delete(ref.kind, parent.namespace, ref.name)
        for manifest in decision.apply:
            LOG.info("apply %s %s", manifest["kind"], manifest["metadata"]["name"], extra=about(parent))
            await self._api.apply(manifest)
        changes = difference(raw.get("status") or {}, decision.status.wire())
        if not changes:
            return
        try:
            version = raw["metadata"]["resourceVersion"]
            fresh = await self._api.patch_status(parent.namespace, parent.name, version, changes)
        except cluster.Failure as failure:
            if failure.status == 409:
                raise Conflict from None
            if failure.status == 404:
                return
            raise
        self._facts.wrote_parent(fresh)
        metrics.ended(decision.ended)
        for stage, reason in decision.retried:
            metrics.retries.labels(stage, reason).inc()
        await self._say(parent, raw, decision.status)

    async def _say(self, parent: observe.Parent, raw: observe.Raw, new: status.Status) -> None:
        """Events are a courtesy: one that cannot be written changes nothing."""
        for flip in conditions.flips(parent.status, new):
            kind = "Warning" if conditions.is_bad(flip) else "Normal"
            LOG.info("%s=%s %s: %s", flip.type, flip.status, flip.reason, flip.message, extra=about(parent))
            with contextlib.suppress(cluster.Failure, *cluster.OUTAGES):
                await self._api.event(dict(raw), kind, flip.reason, f"{flip.type}: {flip.message}")


def about(parent: observe.Parent) -> dict[str, Any]:
    """Fields of a log line."""
    return {"namespace": parent.namespace, "job": parent.name, "revision": parent.status.revision}


def difference(old: observe.Raw, new: observe.Raw) -> dict[str, Any]:
    """The JSON merge patch from old to new: changed fields, and explicit nulls for those that went. Lists go whole."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            if inner := difference(before, value):
                patch[key] = inner
        elif before != value:
            patch[key] = value
    return patch
