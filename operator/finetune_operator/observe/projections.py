"""Objects of the API server as small frozen facts: one for each child of a job.

Projections are small, so that thousands of jobs stay cheap, and total: a malformed object gives an incomplete fact, never an
exception.
"""

import dataclasses
import datetime
from collections.abc import Callable, Mapping
from typing import Any

from finetune_api import outcome, reasons, run
from finetune_operator import kueue
from finetune_operator.observe import label, ownership

LOST = {"ContainerStatusUnknown", "Unknown"}
"""Reasons of containers that no longer exist when their node comes back: the kubelet's, and containerd's."""
Raw = Mapping[str, Any]


def time_of(text: Any) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(str(text).replace("Z", "+00:00")) if text else None
    except ValueError:
        return None


@dataclasses.dataclass(frozen=True, slots=True)
class StageJob:
    """A Job of the operator: one attempt of one stage."""

    name: str
    uid: str
    stage: str
    attempt: int
    hash: str
    created: datetime.datetime | None
    finished: datetime.datetime | None
    taken_up: bool
    """Whether the Job controller has seen it, so that its pods exist or were refused."""
    nodes: int
    """Number of its pods."""
    queue: str
    suspended: bool
    """It waits in its queue, or is being evicted, without a pod. Whoever suspended it must resume it."""
    ending: bool
    """Its outcome is decided, and its last pods are being stopped."""
    succeeded: bool
    failed: bool
    failure: str
    deleting: bool

    @property
    def over(self) -> bool:
        return self.succeeded or self.failed


@dataclasses.dataclass(frozen=True, slots=True)
class Waiting:
    """A container that cannot start, with the kubelet's message."""

    container: str
    reason: str
    message: str


@dataclasses.dataclass(frozen=True, slots=True)
class Terminated:
    container: str
    exit_code: int
    reason: str
    message: str
    finished: datetime.datetime | None


@dataclasses.dataclass(frozen=True, slots=True)
class Pod:
    """A pod of a stage or of a release. `parent` is the name of its Job or Deployment, `node` its index among the pods of an
    Indexed Job; `stage` is empty for a server's pod."""

    name: str
    parent: str
    node: int
    stage: str
    address: str
    """Its IP address; empty until it has one."""
    gpus: int
    gpu_type: str
    phase: str
    ready: bool
    created: datetime.datetime | None
    placed: datetime.datetime | None
    """When it was bound to its node: from then on it holds its GPUs, also while images are pulled."""
    started: datetime.datetime | None
    ended: datetime.datetime | None
    """When the last of its containers ended finally."""
    waiting: Waiting | None
    terminated: Terminated | None
    unschedulable: str
    restarts: int
    disruption: str
    """Why it is disrupted (evicted, preempted, ...); empty if it is not."""
    unreachable: bool
    """Whether its node is unreachable: its container's state is the last known one."""
    deleting: bool

    @property
    def disrupted(self) -> bool:
        return bool(self.disruption)

    @property
    def reports(self) -> bool:
        """Whether it can report the progress of its training: the first of several pods reports for all."""
        trains = self.stage == reasons.Stage.TRAIN and self.node == 0
        at_work = self.phase == "Running" and self.started is not None and self.terminated is None
        return trains and at_work and bool(self.address) and not self.unreachable


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """The response of a training pod to a request for its progress. It is not trusted: it counts only for its own job,
    revision and attempt."""

    pod: str
    report: outcome.ProgressReport | None = None
    """The last report, also if later requests failed."""
    problem: str = ""
    """Why the pod has not responded for a while; empty: no problem."""


@dataclasses.dataclass(frozen=True, slots=True)
class Server:
    """A Deployment of the operator. `guarded` is what a release prescribes: its digest is in `hash`, as last written."""

    name: str
    revision: str
    guarded: Mapping[str, Any]
    hash: str
    """Empty for an object of an earlier version."""
    others: Mapping[str, str]
    """Field of the spec -> another manager that owns it."""
    requested: int | None
    """The replicas that the operator last wrote; None for an object of an earlier version."""
    replicas: int
    ready: int
    settled: bool
    """Whether all its pods are those of the current template: no pod of an earlier one is left, or counted as ready."""
    refusal: str
    """Why the API server refuses its pods; empty if it does not."""
    deleting: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Service:
    name: str
    guarded: Mapping[str, Any]
    hash: str
    """Empty for an object of an earlier version."""
    taken: Mapping[str, str]
    """Field that routes requests -> another manager that owns it."""
    taken_back: str
    """The managers from which the operator took such fields back before."""


Child = StageJob | Pod | Server | Service


def _labels(raw: Raw) -> Mapping[str, str]:
    return raw.get("metadata", {}).get("labels") or {}


def _annotation(raw: Raw, name: str) -> str:
    return str((raw.get("metadata", {}).get("annotations") or {}).get(name, ""))


def uid_of(raw: Raw) -> str | None:
    """The uid of the FineTuneJob that a child belongs to."""
    return _labels(raw).get(label.UID)


def stage_job(raw: Raw) -> StageJob:
    meta, spec, state = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    conditions = {c.get("type"): c for c in state.get("conditions") or [] if c.get("status") == "True"}
    over = conditions.get("Complete") or conditions.get("Failed")
    attempt = _labels(raw).get(label.ATTEMPT, "1")
    return StageJob(
        name=meta["name"],
        uid=meta.get("uid", ""),
        stage=_labels(raw).get(label.STAGE, ""),
        attempt=int(attempt) if attempt.isdigit() else 1,
        hash=_annotation(raw, label.HASH),
        created=time_of(meta.get("creationTimestamp")),
        finished=time_of(over.get("lastTransitionTime")) if over else None,
        taken_up=bool(state.get("startTime")),
        nodes=int(spec.get("completions") or 1),
        queue=_labels(raw).get(kueue.QUEUE, ""),
        suspended=bool(spec.get("suspend")),
        ending=bool({"FailureTarget", "SuccessCriteriaMet"} & set(conditions)),
        succeeded="Complete" in conditions,
        failed="Failed" in conditions,
        failure=str(conditions.get("Failed", {}).get("reason", "")),
        deleting=bool(meta.get("deletionTimestamp")),
    )


def _statuses(state: Raw) -> list[Raw]:
    return [*(state.get("initContainerStatuses") or []), *(state.get("containerStatuses") or [])]


def _waiting(state: Raw) -> Waiting | None:
    for container in _statuses(state):
        waiting = (container.get("state") or {}).get("waiting")
        if waiting and waiting.get("reason") not in {"PodInitializing", "ContainerCreating", None}:
            return Waiting(container.get("name", ""), waiting["reason"], waiting.get("message", ""))
    return None


def _terminated(state: Raw, once: bool) -> Terminated | None:
    """The most informative end: a failed container's, now or before its restart; else the main container's success.

    `once`: its containers are not restarted. One may still have a last state, if the runtime lost it. The kubelet may then
    have started another one, which is running or has its own end; the lost one's end is the pod's only if the pod is over.
    """
    over = state.get("phase") in {"Succeeded", "Failed"}
    ends = []
    for container in _statuses(state):
        now, before = ((container.get(where) or {}).get("terminated") for where in ("state", "lastState"))
        if now:
            ends.append((container, now))
        if before and (not once or (over and not now)):
            ends.append((container, before))
    failed = [pair for pair in ends if pair[1].get("exitCode")]
    main = [pair for pair in ends if pair[0] in (state.get("containerStatuses") or [])]
    if not (chosen := failed or main):
        return None
    container, end = chosen[0]
    return Terminated(
        container=container.get("name", ""),
        exit_code=int(end.get("exitCode", 0)),
        reason=str(end.get("reason", "")),
        message=str(end.get("message", "")),
        finished=time_of(end.get("finishedAt")),
    )


def _ended(state: Raw) -> datetime.datetime | None:
    """The end of a pod that is over. One that never ran (evicted at once, or its node lost) ended when its condition
    changed."""
    if state.get("phase") not in {"Succeeded", "Failed"}:
        return None
    ends = [(s.get("state") or {}).get("terminated") or {} for s in _statuses(state)]
    times = [time_of(end.get("finishedAt")) for end in ends]
    times = times if any(times) else [time_of(c.get("lastTransitionTime")) for c in state.get("conditions") or []]
    return max((time for time in times if time), default=time_of(state.get("startTime")))


def _unreachable(state: Raw, ready: Raw) -> bool:
    """The node lifecycle controller sets a lost pod to not ready; a kubelet would also set its containers to not ready."""
    containers = state.get("containerStatuses") or []
    at_work = state.get("phase") == "Running" and bool(containers) and all(c.get("ready") for c in containers)
    return at_work and ready.get("status") == "False"


def pod(raw: Raw) -> Pod:
    meta, state = raw["metadata"], raw.get("status") or {}
    conditions = {c.get("type"): c for c in state.get("conditions") or []}
    scheduled, disrupted = conditions.get("PodScheduled", {}), conditions.get("DisruptionTarget", {})
    statuses = _statuses(state)
    starts = [
        time_of((s.get("state") or {}).get(k, {}).get("startedAt")) for s in statuses for k in ("running", "terminated")
    ]
    return Pod(
        name=meta["name"],
        parent=_labels(raw).get(label.RELEASE) or _labels(raw).get("batch.kubernetes.io/job-name", ""),
        node=int(node) if (node := _labels(raw).get(label.COMPLETION_INDEX, "0")).isdigit() else 0,
        stage=_labels(raw).get(label.STAGE, ""),
        address=str(state.get("podIP") or ""),
        gpus=int(gpus) if (gpus := _labels(raw).get(label.GPUS, "0")).isdigit() else 0,
        gpu_type=_labels(raw).get(label.GPU_TYPE, ""),
        phase=str(state.get("phase", "Pending")),
        ready=conditions.get("Ready", {}).get("status") == "True",
        created=time_of(meta.get("creationTimestamp")),
        placed=time_of(state.get("startTime")),
        started=min((s for s in starts if s), default=None),
        ended=_ended(state),
        waiting=_waiting(state),
        terminated=_terminated(state, (raw.get("spec") or {}).get("restartPolicy") == "Never"),
        unschedulable=str(scheduled.get("message", "")) if scheduled.get("reason") == "Unschedulable" else "",
        restarts=max((int(s.get("restartCount", 0)) for s in statuses), default=0),
        disruption=str(disrupted.get("reason") or "disrupted") if disrupted.get("status") == "True" else "",
        unreachable=_unreachable(state, conditions.get("Ready", {})),
        deleting=bool(meta.get("deletionTimestamp")),
    )


def prescribed(image: Any, arguments: Any, selector: Any) -> dict[str, Any]:
    """The fields of a Deployment that make a release: an upgrade of the operator that changes others restarts no server."""
    return {"image": image, "args": arguments, "selector": selector}


def server(raw: Raw) -> Server:
    meta, spec, state = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    refused = [
        c for c in state.get("conditions") or [] if c.get("type") == "ReplicaFailure" and c.get("status") == "True"
    ]
    pod_spec = (spec.get("template") or {}).get("spec") or {}
    main = (pod_spec.get("containers") or [{}])[0]
    requested = _annotation(raw, label.REPLICAS)
    return Server(
        name=meta["name"],
        revision=_labels(raw).get(label.REVISION, ""),
        guarded=prescribed(main.get("image"), main.get("args"), (spec.get("selector") or {}).get("matchLabels")),
        hash=_annotation(raw, label.HASH),
        others=ownership.others(raw),
        requested=int(requested) if requested.isdigit() else None,
        replicas=int(spec.get("replicas", 1)),
        ready=int(state.get("readyReplicas") or 0),
        settled=int(state.get("observedGeneration") or 0) >= int(meta.get("generation") or 0)
        and state.get("updatedReplicas", 0) == state.get("replicas", 0) == spec.get("replicas", 1),
        refusal=str(refused[0].get("message", "")) if refused else "",
        deleting=bool(meta.get("deletionTimestamp")),
    )


def service(raw: Raw) -> Service:
    spec = raw.get("spec") or {}
    # A port added by others stays: server-side apply would not remove it.
    ours = [p for p in spec.get("ports") or [] if p.get("port") in {run.SERVER_PORT, run.RENDEZVOUS_PORT}]
    guarded = {
        "selector": spec.get("selector"),
        "ports": [{"port": p.get("port"), "targetPort": p.get("targetPort")} for p in ours],
        "unready": bool(spec.get("publishNotReadyAddresses")),
    }
    routing = ("selector", "publishNotReadyAddresses", *(f"ports[{p.get('port')}," for p in ours))
    return Service(
        name=raw["metadata"]["name"],
        guarded=guarded,
        hash=_annotation(raw, label.HASH),
        taken={path: by for path, by in ownership.others(raw).items() if path.startswith(routing)},
        taken_back=_annotation(raw, label.TAKEN_BACK),
    )


PROJECTIONS: dict[str, Callable[[Raw], Child]] = {
    "Job": stage_job,
    "Pod": pod,
    "Deployment": server,
    "Service": service,
}
"""Kinds of watched children, and their projections."""
