"""The ServingPool itself, and what its pods report."""

import dataclasses
import datetime
import json
from collections.abc import Mapping

import pydantic

from finetune_api import serving, servingpool
from finetune_api.reasons import Condition, Reason
from finetune_operator.observe import containers, projections


@dataclasses.dataclass(frozen=True)
class Parent:
    """The ServingPool. `unreadable` says why its spec cannot be read."""

    name: str
    namespace: str
    uid: str
    version: str
    generation: int
    created: datetime.datetime | None
    deleting: bool
    spec: servingpool.ServingPoolSpec | None
    status: servingpool.Status
    written: Mapping[str, object]
    """The status as it is stored."""
    unreadable: str

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def sleeps(self) -> bool:
        """Whether it has no servers because nobody uses them, or starts them again."""
        reasons = {one.reason for one in self.status.conditions if one.type == Condition.READY}
        return bool(reasons & {Reason.ASLEEP, Reason.WAKING})

    @property
    def wakes_since(self) -> datetime.datetime | None:
        """Since when it starts them again; None: it does not."""
        ready = (one for one in self.status.conditions if one.type == Condition.READY)
        return next((one.last_transition_time for one in ready if one.reason == Reason.WAKING), None)

    def serves_like(self, other: "Parent") -> bool:
        """Whether both are the same for jobs: an autoscaler that changes the replicas wakes none of them."""

        def for_jobs(parent: Parent) -> object:
            return parent.sleeps, parent.wakes_since, parent.spec and parent.spec.model_copy(update={"replicas": 1})

        return for_jobs(self) == for_jobs(other)


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """The last answer of a pod to GET /state. It is not trusted. `problem`: why a later request failed, empty if none did."""

    state: serving.State | None = None
    requests_per_second: float = 0.0
    problem: str = ""
    last_request: datetime.datetime | None = None
    """When a client's last request was, or the pod became ready; None: unknown, or neither was."""
    read_at: datetime.datetime | None = None
    """When its last reading began; None: never, or it failed."""
    failing_since: datetime.datetime | None = None
    """When the first of the requests that failed was sent; None: none did since the last answer."""

    def failed(self, problem: str, now: datetime.datetime) -> "Reading":
        """After a request that failed."""
        since = self.failing_since or now
        return Reading(self.state, self.requests_per_second, problem, failing_since=since)


def serves(pod: projections.Pod) -> bool:
    """Whether clients of the pool reach this pod, and it is no activator."""
    return pod.ready and not (pod.deleting or pod.activator)


def parent(raw: projections.Raw) -> Parent:
    meta, state = raw["metadata"], raw.get("status") or {}
    spec, problem = _spec(raw)
    return Parent(
        name=meta["name"],
        namespace=meta["namespace"],
        uid=meta["uid"],
        version=str(meta["resourceVersion"]),
        generation=int(meta.get("generation", 1)),
        created=containers.time_of(meta.get("creationTimestamp")),
        deleting=bool(meta.get("deletionTimestamp")),
        spec=spec,
        status=_status(state),
        written=state,
        unreadable=problem,
    )


def _spec(raw: projections.Raw) -> tuple[servingpool.ServingPoolSpec | None, str]:
    try:
        # unknown fields come from a newer CRD
        text = json.dumps(raw.get("spec") or {})
        return servingpool.ServingPoolSpec.model_validate_json(text, extra="ignore"), ""
    except pydantic.ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(str(part) for part in ("spec", *first["loc"]))
        return None, f"the spec is not valid: {place}: {first['msg']} (and {problem.error_count() - 1} more); edit it"


def _status(state: projections.Raw) -> servingpool.Status:
    """A status that somebody else made unreadable counts as empty: nothing is decided by it."""
    try:
        return servingpool.Status.model_validate_json(json.dumps(state))
    except pydantic.ValidationError:
        return servingpool.Status()
