"""One job, one pass: gather its world, decide, act, write the status once, then say what flipped."""

import contextlib
import datetime
import logging
from collections.abc import Callable, Iterator
from typing import Any

from finetune_api import status
from finetune_api.reasons import Condition, Reason
from finetune_operator import cache, cluster, conditions, decide, metrics, observe, settings

LOG = logging.getLogger(__name__)
RESYNC = 600.0
"""A missed event costs at most this delay, in seconds."""
REFUSALS = {400, 403, 409, 422}
"""HTTP statuses by which the API server refuses a manifest for what it says. Rights of our own that are missing have the
same, for a moment also after the API server started: they are the log's, not the job's."""


class Conflict(Exception):
    """The job changed while we looked: look again."""


def utc() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class Reconciler:
    """Knows the cluster, the cache and the settings; remembers nothing of a job."""

    def __init__(
        self,
        api: cluster.Cluster,
        facts: cache.Cache,
        chart: settings.Settings,
        clock: Callable[[], datetime.datetime] = utc,
    ) -> None:
        self._api, self._facts, self._settings, self._clock = api, facts, chart, clock

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
        now = self._clock()
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
            if waits and present.created and (now - present.created).total_seconds() > observe.PATIENCE:
                refusals[present.name] = await self._api.refusal(parent.namespace, present.uid)
        return observe.with_refusals(observation, refusals)

    async def _act(self, parent: observe.Parent, raw: observe.Raw, decision: decide.Decision) -> None:
        version = str(raw["metadata"]["resourceVersion"])
        if decision.remove_parent:
            LOG.info("time to live is over: the job is deleted", extra=about(parent))
            with _conflicts():
                await self._api.delete("FineTuneJob", parent.namespace, parent.name, version)
            return
        if decision.apply and not await self._api.exists("FineTuneJob", parent.namespace, parent.name, parent.uid):
            # Its deletion was missed, for example while the watch was broken: children of it would be orphans.
            self._facts.drop_parent(parent.uid)
            return
        new, refusal = decision.status, None
        for manifest in decision.apply:
            LOG.info("apply %s %s", manifest["kind"], manifest["metadata"]["name"], extra=about(parent))
            try:
                self._facts.wrote_child(await self._api.apply(manifest, self._is_ours(parent, manifest)))
            except cluster.Failure as failure:
                if failure.status not in REFUSALS or " cannot patch resource " in str(failure):
                    raise
                new, refusal = refused(parent, manifest, failure, self._clock()), failure
                break
        written = await self._write(parent, raw, new)
        # Last, since a write that is refused for a conflict means that somebody wants something else by now.
        for ref in decision.delete:
            LOG.info("delete %s %s", ref.kind, ref.name, extra=about(parent))
            await self._api.delete(ref.kind, parent.namespace, ref.name)
        if refusal is not None:
            raise refusal
        if written:
            metrics.ended(decision.ended)
            for stage, reason in decision.retried:
                metrics.retries.labels(stage, reason).inc()

    def _is_ours(self, parent: observe.Parent, manifest: dict[str, Any]) -> bool:
        """Whether other hands in this object are drift. What we have never seen may be another's of the same name: a job called
        `web` must not take over the Service `web` of somebody's application."""
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        return kind not in observe.PROJECTIONS or (kind, name) in self._facts.children.get(parent.uid, {})

    async def _write(self, parent: observe.Parent, raw: observe.Raw, new: status.Status) -> bool:
        """The one status write of a reconcile, then its events. Whether anything had changed."""
        changes = difference(raw.get("status") or {}, new.wire())
        if not changes:
            return False
        try:
            with _conflicts():
                version = str(raw["metadata"]["resourceVersion"])
                fresh = await self._api.patch_status(parent.namespace, parent.name, version, changes)
        except cluster.Failure as failure:
            if failure.status == 404:
                self._facts.drop_parent(parent.uid)
                return False
            raise
        self._facts.wrote_parent(fresh)
        await self._say(parent, raw, new)
        return True

    async def _say(self, parent: observe.Parent, raw: observe.Raw, new: status.Status) -> None:
        """Events are a courtesy: one that cannot be written changes nothing."""
        for flip in conditions.flips(parent.status, new):
            kind = "Warning" if conditions.is_bad(flip) else "Normal"
            LOG.info("%s=%s %s: %s", flip.type, flip.status, flip.reason, flip.message, extra=about(parent))
            with contextlib.suppress(cluster.Failure, *cluster.OUTAGES):
                await self._api.event(dict(raw), kind, flip.reason, f"{flip.type}: {flip.message}")


@contextlib.contextmanager
def _conflicts() -> Iterator[None]:
    """A precondition that did not hold is no failure."""
    try:
        yield
    except cluster.Failure as failure:
        if failure.status == 409:
            raise Conflict from None
        raise


def refused(
    parent: observe.Parent, manifest: dict[str, Any], failure: cluster.Failure, now: datetime.datetime
) -> status.Status:
    """The status of a job whose child the API server does not take, by a quota or a policy; all else stays as it was."""
    child = f"{manifest['kind']} {manifest['metadata']['name']}"
    reason = Reason.QUOTA_EXCEEDED if "exceeded quota" in str(failure) else Reason.POD_REFUSED
    text = f"the API server refuses {child}: {failure}; it is tried again"
    if failure.status == 409 or "field is immutable" in str(failure):
        text = f"{child} exists and is not this job's: rename the job or delete it; one of a former job goes by itself"
    new = parent.status
    for kind, value in ((Condition.READY, False), (Condition.RECONCILING, True), (Condition.STALLED, False)):
        new = conditions.put(new, kind, "True" if value else "False", reason, text, parent.generation, now)
    return new


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
