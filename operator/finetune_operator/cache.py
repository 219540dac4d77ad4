"""The last known state of the API server, as small facts: FineTuneJobs (through Kopf), ServingPools, the children of both, and
the catalogue.

watches keeps it current; stored says how a job is kept.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator

import pydantic

from finetune_api import basemodel, reasons
from finetune_operator import kueue
from finetune_operator.observe import members, pools, projections, shared
from finetune_operator.stored import Claim, Stored, is_behind, keep, key, number, version

LOG = logging.getLogger(__name__)
OF_GATEWAYS = ("HTTPRoute", "InferencePool", "InferenceModelRewrite")
"""Kinds of Gateway API, its inference extension, and llm-d."""
AT_REST = frozenset({reasons.Phase.COMPLETE, reasons.Phase.READY, reasons.Phase.FAILED, reasons.Phase.SUSPENDED})


class Cache:
    """Facts by the uid of their FineTuneJob. `changed` is called with a uid whenever something of that job changed.

    The operator's own writes are added at once, so that a reconcile never misses a child that it has just created. Versions
    are compared, so that a slower watch neither reverts that nor brings back deleted objects. The echo of such a write
    triggers no reconcile, whether the watch is slower or faster than the response: the writer schedules its own.
    """

    def __init__(
        self,
        changed: Callable[[str], None],
        ended: Callable[[str], None] | None = None,
        child_changed: Callable[[str], None] | None = None,
    ) -> None:
        self.changed, self.ended, self.child_changed = changed, ended or changed, child_changed or changed
        """`ended` is called instead when one of its Jobs ended, `child_changed` for every other change of a child."""
        self.parents: dict[str, Stored] = {}
        self._claims: dict[tuple[str, str], dict[str, Claim]] = {}
        """(namespace, served name) -> the jobs with it, by their uid."""
        self.children: dict[str, dict[tuple[str, str], projections.Child]] = {}
        self.catalogue: dict[str, basemodel.BaseModelSpec] = {}
        self.pools: dict[str, pools.Parent] = {}
        """ServingPools, by their uid."""
        self._pool_uids: dict[str, str] = {}
        """NAMESPACE/NAME -> uid"""
        self.members: dict[str, dict[str, members.Member]] = {}
        """ServingPool, as NAMESPACE/NAME -> the parts of its jobs, by their uid."""
        self.index_changed: Callable[[str], None] = lambda pool: None
        """Called with NAMESPACE/NAME when the index of a pool changed."""
        self.pool_states: dict[str, dict[str, pools.Reading]] = {}
        """uid of a ServingPool, or of a FineTuneJob whose servers may sleep -> what its pods reported last, by their name."""
        self._served: set[str] = set()
        """uids of ServingPools that have a ready pod."""
        self._sleepers: dict[str, str] = {}
        """uid of a FineTuneJob -> its release whose servers may sleep."""
        self.lacking: set[str] = set()
        """Kinds that the API server does not have, of those that are followed."""
        self._compared: dict[str, members.Compared] = {}
        """uid of a FineTuneJob -> its releases with servers of their own that share the traffic."""
        self.counted: dict[str, dict[str, shared.Counted]] = {}
        """uid of a FineTuneJob -> what these servers' pods have counted, by their name."""
        self.workloads: dict[str, kueue.Workload] | None = None
        """By the uid of their Job, including Jobs of others; None until they were listed."""
        self.reporting: dict[str, projections.Pod] = {}
        """uid of a FineTuneJob -> the pod that can report the progress of its training."""
        self.readings: dict[str, projections.Reading] = {}
        """uid of a FineTuneJob -> the last report of that pod, or of the previous one."""
        self._known: dict[str, dict[tuple[str, str], tuple[str, int]]] = {kind: {} for kind in projections.PROJECTIONS}
        """Kind -> (namespace, name) -> uid of the FineTuneJob, version."""
        self._writing: set[tuple[str, str, str]] = set()
        """(kind, namespace, name) of objects that are being written."""
        self._reached: dict[tuple[str, str | None], int] = {}
        """(kind, watched namespace) -> the version up to which all events were received."""

    # -- FineTuneJobs --

    def put_parent(self, raw: projections.Raw) -> None:
        uid = raw["metadata"]["uid"]
        known = self.parents.get(uid)
        if known is not None and (known.version == version(raw) or is_behind(raw, known)):
            return
        self._keep_parent(uid, raw)
        if known is None:
            self._drop_strangers(uid, self.parents[uid].namespace)
        if ("FineTuneJob", *key(raw)) not in self._writing:
            self.changed(uid)

    def _drop_strangers(self, uid: str, home: str) -> None:
        """Anybody can set a label: an object with this job's label in another namespace is not its child."""
        for kind, name in list(self.children.get(uid, {})):
            if self._known[kind].get((home, name), ("", 0))[0] != uid:
                for place in [at for at, (owner, _) in self._known[kind].items() if at[1] == name and owner == uid]:
                    self._drop_child(kind, *place)

    def wrote_parent(self, raw: projections.Raw) -> None:
        """The result of the operator's own write, unless the watch already has a newer version."""
        uid = raw["metadata"]["uid"]
        known = self.parents.get(uid)
        if known is None:
            return
        if is_behind(raw, known):
            self.changed(uid)
        else:
            self._keep_parent(uid, raw)

    def _keep_parent(self, uid: str, raw: projections.Raw) -> None:
        before, after = self.parents.get(uid), keep(raw)
        self.parents[uid] = after
        self._keep_members(uid, before.parts if before else (), after.parts)
        self._keep_compared(uid, after.compared)
        self._keep_sleeper(uid, after.sleeper)
        if before is None or before.claim != after.claim:
            self._release(uid, before, after)
            if after.claim is not None:
                self._claims.setdefault((after.namespace, after.claim.served), {})[uid] = after.claim

    def _release(self, uid: str, before: Stored | None, after: Stored | None) -> None:
        """Jobs that wait for a served name look again when another one gives it up."""
        if before is None or before.claim is None:
            return
        place = (before.namespace, before.claim.served)
        claims = self._claims.get(place, {})
        claims.pop(uid, None)
        if not claims:
            self._claims.pop(place, None)
        if after is None or after.claim is None or after.claim.served != before.claim.served:
            for other in claims:
                self.changed(other)

    def name_holder(self, uid: str) -> str:
        """Another job with the served name of this one, which was accepted or created before; empty if there is none."""
        mine = self.parents.get(uid)
        if mine is None or mine.claim is None:
            return ""
        claims = self._claims.get((mine.namespace, mine.claim.served), {})
        others = [claim for other, claim in claims.items() if other != uid and other in self.parents]
        first = (mine.claim.created, mine.claim.job)
        return min((c.job for c in others if c.accepted or (c.created, c.job) < first), default="")

    @contextlib.contextmanager
    def writing(self, kind: str, namespace: str, name: str) -> Iterator[None]:
        """Within the block, events of this object trigger no reconcile: the operator itself is changing it."""
        self._writing.add((kind, namespace, name))
        try:
            yield
        finally:
            self._writing.discard((kind, namespace, name))

    def drop_parent(self, uid: str) -> None:
        before = self.parents.pop(uid, None)
        self._release(uid, before, None)
        self._keep_members(uid, before.parts if before else (), ())
        self._keep_compared(uid, None)
        self._keep_sleeper(uid, None)
        self.readings.pop(uid, None)

    # -- ServingPools --

    def _keep_members(self, uid: str, before: tuple[members.Member, ...], after: tuple[members.Member, ...]) -> None:
        """The parts of a job in the indexes; pools in which they changed are reconciled, for the numbers in their status."""
        old, new = ({one.pool: one for one in found} for found in (before, after))
        for pool in old.keys() | new.keys():
            if old.get(pool) == new.get(pool):
                continue
            if pool in new:
                self.members.setdefault(pool, {})[uid] = new[pool]
            else:
                self.members.get(pool, {}).pop(uid, None)
            self.index_changed(pool)
            if pool in self._pool_uids:
                self.child_changed(self._pool_uids[pool])

    def pool_of(self, key: str) -> pools.Parent | None:
        """The ServingPool NAMESPACE/NAME."""
        return self.pools.get(self._pool_uids.get(key, ""))

    def put_pool(self, raw: projections.Raw) -> None:
        uid, known = raw["metadata"]["uid"], self.pools.get(raw["metadata"]["uid"])
        if known is not None and number(known.version) >= number(version(raw)):
            return
        fact = self.pools[uid] = pools.parent(raw)
        self._pool_uids[fact.key] = uid
        if known is None:
            self._drop_strangers(uid, fact.namespace)
        if known is None or not known.serves_like(fact):
            self._pool_changed(fact.key)
        if ("ServingPool", *key(raw)) not in self._writing:
            self.changed(uid)

    def _drop_pool(self, uid: str) -> None:
        if (known := self.pools.pop(uid, None)) is None:
            return
        if self._pool_uids.get(known.key) == uid:
            del self._pool_uids[known.key]
        self.pool_states.pop(uid, None)
        self._served.discard(uid)
        self._pool_changed(known.key)

    def _pool_changed(self, pool: str) -> None:
        """Jobs in this pool, and those that have no place yet, look again."""
        self.index_changed(pool)
        for uid in self.members.get(pool, {}):
            self.changed(uid)
        for uid, known in self.parents.items():
            if known.phase not in AT_REST and uid not in self.members.get(pool, {}):
                self.changed(uid)

    def pods_of_pools(self) -> dict[tuple[str, str], projections.Pod]:
        """(uid of the ServingPool, name) -> its pods whose state can be read."""
        return dict(_running(self._pods_of(self.pools)))

    def put_pool_state(self, uid: str, pod: str, reading: pools.Reading) -> None:
        """A pod's answer: jobs whose adapter has another state there look again, and the pool itself, or the job whose servers
        may sleep."""
        known = self.pools.get(uid)
        if (known is None and uid not in self._sleepers) or ("Pod", pod) not in self.children.get(uid, {}):
            return
        before = self.pool_states.setdefault(uid, {}).get(pod)
        self.pool_states[uid][pod] = reading
        moved = _adapters(before) ^ _adapters(reading) if known is not None else set()
        if known is not None and moved:
            changed = {sha256 for sha256, _, _ in moved}
            for job, part in self.members.get(known.key, {}).items():
                if any(one.sha256 in changed for one in part.adapters):
                    self.child_changed(job)
        rates = before is None or before.problem != reading.problem or _rate(before) != _rate(reading)
        if moved or rates or (self._is_activator(uid, pod) and _asked(before, reading)):
            self.child_changed(uid)

    def _is_activator(self, uid: str, pod: str) -> bool:
        found = self.children[uid].get(("Pod", pod))
        return isinstance(found, projections.Pod) and found.activator

    def _pod_of_pool_changed(self, uid: str) -> None:
        """Jobs that are being verified or rolled out depend on which pods are ready; the others on whether any is, so that one
        more or less wakes none of them."""
        known = self.pools.get(uid)
        if known is None:
            return
        pods = [one for one in self.children.get(uid, {}).values() if isinstance(one, projections.Pod)]
        turned = any(map(pools.serves, pods)) != (uid in self._served)
        if turned:
            self._served ^= {uid}
        for job in self.members.get(known.key, {}):
            if job in self.parents and (turned or self.parents[job].phase not in AT_REST):
                self.child_changed(job)

    # -- servers of a job's own that may sleep, from `poolstates` and `servertraffic` --

    def _keep_sleeper(self, uid: str, release: str | None) -> None:
        if release is not None:
            self._sleepers[uid] = release
        elif self._sleepers.pop(uid, None) is not None:
            self.pool_states.pop(uid, None)

    def activators(self) -> dict[tuple[str, str], projections.Pod]:
        """(uid of the FineTuneJob, name) -> the activators whose state can be read."""
        return {key: pod for key, pod in _running(self._pods_of(self._sleepers)) if pod.activator}

    def sleepers(self) -> dict[tuple[str, str], projections.Pod]:
        """(uid of the FineTuneJob, name) -> the ready servers that may sleep."""
        found = self._pods_of(self._sleepers)
        return {key: pod for key, pod in found if pod.ready and pod.parent == self._sleepers[key[0]]}

    def _pods_of(self, uids: Iterable[str]) -> "Pods":
        for uid in uids:
            for pod in self.children.get(uid, {}).values():
                if isinstance(pod, projections.Pod) and pod.address:
                    yield (uid, pod.name), pod

    # -- servers of a job's own that are compared, from `servertraffic` --

    def _keep_compared(self, uid: str, compared: members.Compared | None) -> None:
        if compared is not None:
            self._compared[uid] = compared
        elif self._compared.pop(uid, None) is not None:
            self.counted.pop(uid, None)

    def compared_pods(self) -> dict[tuple[str, str], tuple[projections.Pod, members.Compared]]:
        """(uid of the FineTuneJob, name) -> the ready pods whose traffic is to be read."""
        return {
            (uid, pod.name): (pod, compared)
            for uid, compared in self._compared.items()
            for pod in self.children.get(uid, {}).values()
            if isinstance(pod, projections.Pod) and pod.ready and pod.address and pod.parent in dict(compared.revisions)
        }

    def put_counted(self, uid: str, pod: str, counted: shared.Counted) -> None:
        """A server's answer; a job in a step looks often, and is not woken."""
        if uid in self._compared and ("Pod", pod) in self.children.get(uid, {}):
            self.counted.setdefault(uid, {})[pod] = counted

    # -- children and catalogue, from `follow` --

    def lacks(self, kind: str, lacking: bool) -> None:
        """Whether the API server has no such kind: jobs and pools that need it look again."""
        if (kind in self.lacking) == lacking:
            return
        (self.lacking.add if lacking else self.lacking.discard)(kind)
        for uid, known in self.parents.items():
            if kind == "HTTPRoute" and '"route":' in known.text:
                self.changed(uid)
        for uid, pool in self.pools.items():
            if kind in OF_GATEWAYS and pool.spec and pool.spec.route:
                self.changed(uid)

    def put(self, kind: str, items: Iterable[projections.Raw]) -> set[tuple[str, str]]:
        """Objects of a list, or of a page of it; returns their keys."""
        found = set()
        for raw in items:
            found.add(key(raw))
            self._put(kind, raw)
        return found

    def complete(self, kind: str, place: str | None, found: set[tuple[str, str]], version: str) -> None:
        """These are all objects of a kind (in a namespace, or in all) at a version: all others are gone."""
        reached = self._reached[kind, place] = number(version)
        if kind == "BaseModel":
            for name in set(self.catalogue) - {name for _, name in found}:
                self._drop_model(name)
            return
        if kind == "ServingPool":
            for uid, pool in list(self.pools.items()):
                if place in {None, pool.namespace} and (pool.namespace, pool.name) not in found:
                    self._drop_pool(uid)
            return
        if kind == "Workload":
            self.workloads = self.workloads or {}
            for uid, fact in list(self.workloads.items()):
                if place in {None, fact.namespace} and (fact.namespace, fact.name) not in found:
                    self._changed_in_queue(self.workloads.pop(uid))
            return
        mine = self._known[kind]
        for place_and_name in [k for k, (_, at) in mine.items() if place in {None, k[0]} and at <= reached]:
            if place_and_name not in found:
                self._drop_child(kind, *place_and_name)

    def listed(self, kind: str, place: str | None, items: Iterable[projections.Raw], version: str) -> None:
        """A list in one piece."""
        self.complete(kind, place, self.put(kind, items), version)

    def receive(self, kind: str, place: str | None, event: str, raw: projections.Raw) -> None:
        """One event of a watch."""
        self._reached[kind, place] = number(raw["metadata"]["resourceVersion"])
        if event == "BOOKMARK":
            return
        if event != "DELETED":
            self._put(kind, raw)
        elif kind == "BaseModel":
            self._drop_model(raw["metadata"]["name"])
        elif kind == "ServingPool":
            self._drop_pool(raw["metadata"]["uid"])
        elif kind == "Workload":
            self._drop_workload(raw)
        else:
            self._drop_child(kind, *key(raw))

    def _put(self, kind: str, raw: projections.Raw) -> None:
        if kind == "BaseModel":
            self._put_model(raw)
        elif kind == "ServingPool":
            self.put_pool(raw)
        elif kind == "Workload":
            self._put_workload(raw)
        else:
            self._put_child(kind, raw)

    def wrote_child(self, raw: projections.Raw) -> None:
        """The API server's response to a write, unless the watch is already ahead of it."""
        kind, meta = raw["kind"], raw["metadata"]
        if kind not in projections.PROJECTIONS:
            return
        reached = [self._reached[at] for at in ((kind, None), (kind, meta["namespace"])) if at in self._reached]
        if reached and max(reached) < number(meta["resourceVersion"]):
            self._put_child(kind, raw, echo=True)

    def _put_child(self, kind: str, raw: projections.Raw, echo: bool = False) -> None:
        uid, meta = projections.uid_of(raw), raw["metadata"]
        home = self.parents.get(uid or "") or self.pools.get(uid or "")
        if uid is None or (home is not None and home.namespace != meta.get("namespace")):
            return
        seen = number(meta["resourceVersion"])
        owner, at = self._known[kind].get(key(raw), (uid, 0))
        if at > seen:
            return
        if owner != uid:
            self._drop_child(kind, *key(raw))
        self._known[kind][key(raw)] = (uid, seen)
        fact = projections.PROJECTIONS[kind](raw)
        mine = self.children.setdefault(uid, {})
        if mine.get((kind, meta["name"])) != fact:
            over = isinstance(fact, projections.StageJob) and fact.over
            mine[kind, meta["name"]] = fact
            self._note_reporting(uid, fact)
            if kind == "Pod":
                self._pod_of_pool_changed(uid)
            if not echo and (kind, *key(raw)) not in self._writing:
                (self.ended if over else self.child_changed)(uid)

    def _drop_child(self, kind: str, namespace: str, name: str) -> None:
        uid, _ = self._known[kind].pop((namespace, name), (None, 0))
        if uid is None:
            return
        mine = self.children.get(uid, {})
        mine.pop((kind, name), None)
        if not mine:
            self.children.pop(uid, None)
        if kind == "Pod":
            self._forget_pod(uid, name)
            self.pool_states.get(uid, {}).pop(name, None)
            self.counted.get(uid, {}).pop(name, None)
            self._pod_of_pool_changed(uid)
        self.changed(uid)

    # -- progress, from `progress` --

    def _note_reporting(self, uid: str, fact: projections.Child) -> None:
        if not isinstance(fact, projections.Pod):
            return
        if fact.reports:
            self.reporting[uid] = fact
        elif uid in self.reporting and self.reporting[uid].name == fact.name:
            del self.reporting[uid]

    def _forget_pod(self, uid: str, name: str) -> None:
        if uid in self.reporting and self.reporting[uid].name == name:
            del self.reporting[uid]
        if uid in self.readings and self.readings[uid].pod == name:
            del self.readings[uid]

    def put_reading(self, uid: str, reading: projections.Reading) -> None:
        """A pod's new report of its job's progress."""
        if uid in self.children and self.readings.get(uid) != reading:
            self.readings[uid] = reading
            self.changed(uid)

    def _put_model(self, raw: projections.Raw) -> None:
        name = raw["metadata"]["name"]
        try:
            self.catalogue[name] = basemodel.BaseModelSpec.model_validate(raw.get("spec") or {}, extra="ignore")
        except pydantic.ValidationError as error:
            self.catalogue.pop(name, None)
            LOG.warning("BaseModel %s cannot be read and is ignored: %s", name, error)
        self._catalogue_changed()

    def _drop_model(self, name: str) -> None:
        self.catalogue.pop(name, None)
        self._catalogue_changed()

    def _put_workload(self, raw: projections.Raw) -> None:
        fact = kueue.workload(raw)
        self.workloads = {} if self.workloads is None else self.workloads
        if fact.job_uid and self.workloads.get(fact.job_uid) != fact:
            self.workloads[fact.job_uid] = fact
            self._changed_in_queue(fact)

    def _drop_workload(self, raw: projections.Raw) -> None:
        fact = kueue.workload(raw)
        if self.workloads and fact.job_uid in self.workloads and self.workloads[fact.job_uid].name == fact.name:
            self._changed_in_queue(self.workloads.pop(fact.job_uid))

    def _changed_in_queue(self, fact: kueue.Workload) -> None:
        """Most Jobs in a queue belong to others; one of this operator that is not known yet is handled when it is."""
        uid, _ = self._known["Job"].get((fact.namespace, fact.job), (None, 0))
        if uid is not None:
            self.changed(uid)

    def _catalogue_changed(self) -> None:
        """Reconcile jobs that wait for a model, and all pools."""
        for uid, known in self.parents.items():
            if known.phase in {None, reasons.Phase.PENDING}:
                self.changed(uid)
        for uid in self.pools:
            self.changed(uid)


Pods = Iterator[tuple[tuple[str, str], projections.Pod]]


def _running(found: Pods) -> Pods:
    return (one for one in found if one[1].phase == "Running" and not one[1].unreachable)


def _adapters(reading: pools.Reading | None) -> set[tuple[str, str, str]]:
    state = reading.state if reading is not None else None
    return {(one.sha256, one.state, one.message) for one in state.adapters} if state is not None else set()


def _asked(before: pools.Reading | None, reading: pools.Reading) -> bool:
    """Whether a client asked since. Times are computed from how long ago it was: they vary a little."""
    known = before.last_request if before is not None else None
    last = reading.last_request
    return last is not None and (known is None or (last - known).total_seconds() > 0.5)


def _rate(reading: pools.Reading) -> float:
    return float(f"{reading.requests_per_second:.1g}")
