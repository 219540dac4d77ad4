"""One job, one pass: gather its world, decide, act, write the status once, then record events."""

import contextlib
import dataclasses
import datetime
import logging
from collections.abc import Callable, Iterator
from typing import Any

from finetune_api import status
from finetune_api.reasons import Condition
from finetune_operator import cache, cluster, conditions, gather, metrics, pace, settings, stored
from finetune_operator.decide import core, diagnosis, sleep, verdict
from finetune_operator.manifests import activator
from finetune_operator.observe import observation, parents, pools, projections

LOG = logging.getLogger(__name__)
RESYNC = 600.0
"""A missed event costs at most this delay, in seconds."""
AFTERWARDS = observation.PATIENCE + 0.2
"""Seconds after which a changed job is reconciled again if nothing happens: the operator's own writes trigger no reconcile."""
AT_ONCE = 0.05
REFUSED = 60.0
"""Seconds after which an object without which the job serves is tried again."""
WAITED_FOR = {"Deployment", "Service"}
"""Kinds whose existence is the condition of a next step."""
REFUSALS = {400, 403, 409, 422}
"""HTTP statuses with which the API server refuses the content of a manifest."""
TAKEN = ("field is immutable", "Only one reference can have Controller set to true")
"""What the API server says of an object that is somebody else's."""
FORBIDDEN = 403
"""Used for refusals by admission, and also if the operator lacks a right (briefly also after the API server started): that is
logged, and not a problem of the job."""


class Conflict(Exception):
    """The job changed during the pass: reconcile it again."""


class Gone(Exception):
    """The job was deleted during the pass."""


class Reconciler:
    """Has the cluster, the cache and the settings; keeps no state of a job."""

    def __init__(
        self,
        api: cluster.Cluster,
        facts: cache.Cache,
        chart: settings.Settings,
        clock: Callable[[], datetime.datetime],
    ) -> None:
        self._api, self._facts, self._clock = api, facts, clock
        self._gatherer = gather.Gatherer(api, facts, chart)
        self._pace, self._settings = pace.Pace(), chart
        self._refused: dict[tuple[str, str, str], Refused] = {}

    async def reconcile(self, uid: str) -> float | None:
        """The next step of the job. Returns in how many seconds to reconcile it again; None if it is gone.

        Raises:
            Conflict: the cache is behind the API server.
            cluster.Failure, cluster.OUTAGES: the API server refused or was away.
        """
        known = self._facts.parents.get(uid)
        if known is None:
            return None
        raw = known.raw
        parent = parents.parent(raw)
        if parent.deleting:
            return None
        now = self._clock()
        if parent.unreadable:
            decision = core.refuse(parent, now, self._pool_of(parent))
        else:
            decision = core.decide(await self._gatherer.gather(parent, now))
        decision, held = self._paced(parent, decision, now)
        try:
            moved = await self._act(parent, raw, decision, now)
        except Gone:
            return None
        again = [AFTERWARDS if moved.any else RESYNC, *held]
        again += [AT_ONCE] if any(manifest["kind"] in WAITED_FOR for manifest in moved.applied) else []
        again += [REFUSED] if moved.missing else []
        return min(again if decision.requeue is None else [*again, decision.requeue])

    def _pool_of(self, parent: parents.Parent) -> pools.Parent | None:
        """The ServingPool that it serves in, unless that ends."""
        deployed = parent.status.deployment
        found = self._facts.pool_of(deployed.pool) if deployed is not None and deployed.pool else None
        return None if found is None or found.deleting else found

    def _paced(
        self, parent: parents.Parent, decision: verdict.Decision, now: datetime.datetime
    ) -> tuple[verdict.Decision, list[float]]:
        """The decision without objects that were written too often lately, and when these may be written again."""
        waits = {place_of(parent, m): self._pace.wait(place_of(parent, m), now) for m in decision.apply}
        for place in (place for place, wait in waits.items() if wait):
            LOG.warning(
                "%s %s was written %d times within %.0f s because something else keeps undoing it; the next write is in "
                "%.0f s. Find out what else writes or deletes it: metadata.managedFields, the audit log",
                place[0],
                place[2],
                pace.MOST,
                pace.WITHIN.total_seconds(),
                waits[place],
                extra=about(parent, decision.status),
            )
        allowed = tuple(m for m in decision.apply if not waits[place_of(parent, m)])
        return dataclasses.replace(decision, apply=allowed), [wait for wait in waits.values() if wait]

    async def _act(
        self, parent: parents.Parent, raw: projections.Raw, decision: verdict.Decision, now: datetime.datetime
    ) -> "Moved":
        if decision.remove_parent:
            LOG.info("time to live is over: the job is deleted", extra=about(parent, decision.status))
            with _conflicts():
                await self._api.delete("FineTuneJob", parent.namespace, parent.name, stored.version(raw))
            return Moved(any=True)
        # Its deletion may have been missed, for example while the watch was broken. If the status is to be written,
        # that write fails before any Job is created; children created before it are removed by the garbage collector.
        # With a refusal that is known, nobody can say before the tries whether it is.
        known = [(manifest, self._refused.get(place_of(parent, manifest))) for manifest in decision.apply]
        asks = any(before is None or not before.holds(manifest, now) for manifest, before in known) and (
            any(before for _, before in known) or not difference(raw.get("status") or {}, decision.status.wire())
        )
        if asks and not await self._api.exists("FineTuneJob", parent.namespace, parent.name, parent.uid):
            self._facts.drop_parent(parent.uid)
            raise Gone
        state, before = decision.status, raw
        refusal, missing = await self._apply(parent, state, [m for m in decision.apply if m["kind"] != "Job"], now)
        for one in missing:
            state = one.added_to(state)
        if refusal is None:
            # Jobs after the status: each is recorded before it exists, and none is created for an outdated spec. A Job that was
            # refused before is recorded already; its status would change twice in each try.
            jobs = [m for m in decision.apply if m["kind"] == "Job"]
            recorded = bool(jobs) and only_summary(parent.status, state)
            if not recorded:
                raw = await self._write(parent, raw, state)
            refusal, _ = await self._apply(parent, state, jobs, now)
            state = parent.status if recorded and refusal is not None else state
        else:
            state = counted(parent.status, state, self._pool_of(parent), now)
        if refusal is not None:
            state = refusal.recorded_in(state, parent, now, self._settings.stalled_after_seconds)
        raw = await self._write(parent, raw, state)
        for ref in decision.delete:
            LOG.info("delete %s %s", ref.kind, ref.name, extra=about(parent, state))
            await self._api.delete(ref.kind, parent.namespace, ref.name)
        if raw is not before:
            await self._say(parent, raw, state)
        if refusal is not None:
            raise refusal.failure
        if raw is not before:
            metrics.ended(decision.ended)
            metrics.waited(decision.waited)
            for stage, reason in decision.retried:
                metrics.retries.labels(stage, reason).inc()
        lacks = {one.child for one in missing}
        applied = tuple(m for m in decision.apply if child_of(m) not in lacks)
        return Moved(raw is not before or bool(applied or decision.delete), applied, bool(missing))

    async def _apply(
        self, parent: parents.Parent, state: status.Status, wanted: list[dict[str, Any]], now: datetime.datetime
    ) -> "tuple[Refusal | None, list[Refusal]]":
        """Apply in this order, until the API server refuses one; and the refusals of objects without which the job serves."""
        missing = list[Refusal]()
        for manifest in wanted:
            place = place_of(parent, manifest)
            if (before := self._refused.get(place)) and before.holds(manifest, now):
                missing.append(Refusal(child_of(manifest), before.failure))
                continue
            LOG.info("apply %s %s", manifest["kind"], manifest["metadata"]["name"], extra=about(parent, state))
            try:
                with self._facts.writing(*place):
                    self._facts.wrote_child(await self._put(parent, manifest))
                self._pace.note(place, now)
            except cluster.Failure as failure:
                if failure.status not in REFUSALS:
                    raise
                if failure.status == FORBIDDEN and not await self._may_write(manifest):
                    raise
                refusal = Refusal(child_of(manifest), failure)
                if not activator.is_of(parent, manifest):
                    return refusal, missing
                missing.append(refusal)
                self._refused = {key: old for key, old in self._refused.items() if old.holds(old.manifest, now)}
                self._refused[place] = Refused(manifest, now, failure)
        return None, missing

    async def _put(self, parent: parents.Parent, manifest: dict[str, Any]) -> dict[str, Any]:
        """A Job is created once: a queue may then suspend and change it. Everything else is applied."""
        if manifest["kind"] == "Job":
            return await self._api.create(manifest)
        return await self._api.apply(manifest, self._is_ours(parent, manifest))

    async def _may_write(self, manifest: dict[str, Any]) -> bool:
        kind, namespace = manifest["kind"], manifest["metadata"]["namespace"]
        verbs = ("create",) if kind == "Job" else ("patch", "create")
        return all([await self._api.may(verb, kind, namespace) for verb in verbs])

    def _is_ours(self, parent: parents.Parent, manifest: dict[str, Any]) -> bool:
        """Whether changes by others in this object are drift. An object that was never seen may belong to someone else: a job
        called `web` must not take over the Service `web` of another application."""
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        return kind not in projections.PROJECTIONS or (kind, name) in self._facts.children.get(parent.uid, {})

    async def _write(self, parent: parents.Parent, raw: projections.Raw, new: status.Status) -> projections.Raw:
        """Write the status if it differs. Returns the new object; the same one if nothing was written."""
        changes = difference(raw.get("status") or {}, new.wire())
        if not changes:
            return raw
        try:
            with _conflicts(), self._facts.writing("FineTuneJob", parent.namespace, parent.name):
                fresh = await self._api.patch_status(parent.namespace, parent.name, stored.version(raw), changes)
                self._facts.wrote_parent(fresh)
        except cluster.Failure as failure:
            if failure.status == 404:
                self._facts.drop_parent(parent.uid)
                raise Gone from None
            raise
        return fresh

    async def _say(self, parent: parents.Parent, raw: projections.Raw, new: status.Status) -> None:
        """Events are best effort: one that cannot be written is dropped."""
        for flip in conditions.flips(parent.status, new):
            kind = "Warning" if conditions.is_bad(flip) else "Normal"
            LOG.info("%s=%s %s: %s", flip.type, flip.status, flip.reason, flip.message, extra=about(parent, new))
            with contextlib.suppress(cluster.Failure, *cluster.OUTAGES):
                await self._api.event(dict(raw), kind, flip.reason, f"{flip.type}: {flip.message}")


@contextlib.contextmanager
def _conflicts() -> Iterator[None]:
    """A failed precondition is not a failure."""
    try:
        yield
    except cluster.Failure as failure:
        if failure.status == 409:
            raise Conflict from None
        raise


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A child that the API server refuses, because of a quota, a policy, or another object with its name."""

    child: str
    failure: cluster.Failure

    def recorded_in(
        self, state: status.Status, parent: parents.Parent, now: datetime.datetime, patience: float
    ) -> status.Status:
        """The status that reports it, otherwise unchanged."""
        problem, text = self._problem()
        state = state.model_copy(update={"waiting": parent.status.waiting})
        state = conditions.waits(state, problem.reason, text, parent.generation, now, patience)
        return state.model_copy(update={"phase": conditions.phase(state)})

    def added_to(self, state: status.Status) -> status.Status:
        """The status of a job that serves without it, with the refusal in Ready's message."""
        ready = conditions.get(state, Condition.READY)
        if ready is None:
            return state
        fresh = ready.model_copy(update={"message": f"{ready.message}. deployment.idle: {self._problem()[1]}"[:1024]})
        return state.model_copy(update={"conditions": [fresh if one is ready else one for one in state.conditions]})

    def _problem(self) -> tuple[diagnosis.Problem, str]:
        problem = diagnosis.refused(self.child, str(self.failure))
        if self.failure.status == 409 or any(words in str(self.failure) for words in TAKEN):
            return problem, (
                f"{self.child} exists and is not this job's: rename the job, or delete that object. If it is left of a deleted "
                "job, wait: it disappears automatically"
            )
        return problem, f"{problem.message} It is retried automatically."


@dataclasses.dataclass(frozen=True)
class Refused:
    """An object that a pass went on without: passes that follow do not ask for the same again and again."""

    manifest: dict[str, Any]
    at: datetime.datetime
    failure: cluster.Failure

    def holds(self, manifest: dict[str, Any], now: datetime.datetime) -> bool:
        """Whether this would be refused now, as far as is known."""
        return manifest == self.manifest and (now - self.at).total_seconds() < REFUSED - 1


@dataclasses.dataclass(frozen=True)
class Moved:
    """What a pass did. any: whether there was anything to do. missing: whether an object without which the job serves was
    refused."""

    any: bool
    applied: tuple[dict[str, Any], ...] = ()
    missing: bool = False


SUMMARY = {Condition.READY, Condition.RECONCILING, Condition.STALLED}


def only_summary(old: status.Status, new: status.Status) -> bool:
    """Whether two statuses differ at most in what a refusal changes."""

    def rest(state: status.Status) -> status.Status:
        stages = [c for c in state.conditions if c.type not in SUMMARY]
        return state.model_copy(update={"conditions": stages, "phase": None, "waiting": None})

    return rest(old) == rest(new)


def counted(old: status.Status, new: status.Status, pool: pools.Parent | None, now: datetime.datetime) -> status.Status:
    """The old status, with the servers of what serves as they were seen. In a pass that was refused they wake, and do not fall
    asleep, since the Service may not lead to the activator; and nothing starts those of a release that was to be replaced,
    except in its pool."""
    before, seen = old.deployment, new.deployment
    if before is None or seen is None:
        return old
    if seen.release != before.release:
        seen = before.model_copy(update={"held_since": sleep.held_by(pool, before.held_since, now)[0]})
    elif before.asleep_since is None and seen.asleep_since is not None:
        seen = seen.model_copy(update={"asleep_since": None, "held_since": None})
    return old.model_copy(update={"deployment": seen})


def place_of(parent: parents.Parent, manifest: dict[str, Any]) -> tuple[str, str, str]:
    """Kind, namespace and name of a child."""
    return manifest["kind"], parent.namespace, manifest["metadata"]["name"]


def child_of(manifest: dict[str, Any]) -> str:
    """Kind and name of a child."""
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def about(parent: parents.Parent, state: status.Status) -> dict[str, Any]:
    """Fields of a log line, with the revision and stage of the new status."""
    return {"namespace": parent.namespace, "job": parent.name, "revision": state.revision, "stage": state.stage}


def difference(old: projections.Raw, new: projections.Raw) -> dict[str, Any]:
    """The JSON merge patch from old to new: changed fields, and explicit nulls for removed ones. Lists are replaced as a
    whole."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            if inner := difference(before, value):
                patch[key] = inner
        elif before != value:
            patch[key] = value
    return patch
