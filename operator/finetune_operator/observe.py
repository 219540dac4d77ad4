"""What is: the world of one job as frozen facts, projected from what the API server sent.

    FineTuneJob ─┬─ run ConfigMap, progress ConfigMap, ServiceAccount + Role + RoleBinding
                 ├─ Job per stage and attempt ── Pod; and Kueue's Workload, where the Job is in a queue
                 └─ per release: Deployment ── Pods, candidate Service;  and the job's own Service

Every child carries the job's uid as a label, so one cache answers for pods of Jobs and Deployments alike. Projections are
small (thousands of jobs stay cheap) and total: a strange object gives a poorer fact, never an exception.
"""

import dataclasses
import datetime
import json
from collections.abc import Callable, Mapping
from typing import Any

import pydantic

from finetune_api import basemodel, job, outcome, revision, run, status
from finetune_operator import kueue, settings

UID = "finetune.dev/uid"
JOB = "finetune.dev/job"
STAGE = "finetune.dev/stage"
REVISION = "finetune.dev/revision"
RELEASE = "finetune.dev/release"
ATTEMPT = "finetune.dev/attempt"
LOST = {"ContainerStatusUnknown", "Unknown"}
"""Why containers ended that a machine which came back does not find any more: in the kubelet's word, and in containerd's."""
COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"
"""Label and annotation that the Job controller gives the pods of an Indexed Job."""
GPUS = "finetune.dev/gpus"
GPU_TYPE = "finetune.dev/gpu-type"
HASH = "finetune.dev/spec-hash"
"""Annotation: the digest of the manifest as we wrote it."""

PATIENCE = 3.0
"""Seconds without a pod after which the Job controller is asked why."""

Raw = Mapping[str, Any]


def _time(text: Any) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(str(text).replace("Z", "+00:00")) if text else None
    except ValueError:
        return None


@dataclasses.dataclass(frozen=True, slots=True)
class StageJob:
    """A Job of ours: one attempt of one stage."""

    name: str
    uid: str
    stage: str
    attempt: int
    hash: str
    created: datetime.datetime | None
    finished: datetime.datetime | None
    nodes: int
    """Pods that it has at a time."""
    queue: str
    suspended: bool
    """It waits in its queue, or is on its way back there, without a pod. Whoever suspended it, lets it go on."""
    ending: bool
    """Its end is decided, and its last pods are being stopped."""
    succeeded: bool
    failed: bool
    failure: str
    deleting: bool

    @property
    def over(self) -> bool:
        return self.succeeded or self.failed


@dataclasses.dataclass(frozen=True, slots=True)
class Waiting:
    """A container that cannot start, in the kubelet's words."""

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
    """A pod of a stage or of a release. `parent` is the name of its Job or Deployment, `node` its number among the pods of a Job
    that work together; `stage` is empty for a server's."""

    name: str
    parent: str
    node: int
    stage: str
    gpus: int
    gpu_type: str
    phase: str
    ready: bool
    created: datetime.datetime | None
    placed: datetime.datetime | None
    """When the node took it: from then on it holds its GPUs, whether its images are there or not."""
    started: datetime.datetime | None
    ended: datetime.datetime | None
    """When the last of its containers ended for good."""
    waiting: Waiting | None
    terminated: Terminated | None
    unschedulable: str
    restarts: int
    disruption: str
    """Why it was taken from its machine (evicted, preempted, ...); empty if it was not."""
    silent: bool
    """Whether its machine does not answer any more: what is said of its container is what was last heard."""
    deleting: bool

    @property
    def disrupted(self) -> bool:
        return bool(self.disruption)


@dataclasses.dataclass(frozen=True, slots=True)
class Server:
    """A Deployment of ours. `guarded` are the fields whose drift is mended."""

    name: str
    revision: str
    guarded: Mapping[str, Any]
    replicas: int
    ready: int
    settled: bool
    """Whether all its pods are as the Deployment says now: none of a former template is left, or counted as ready."""
    refusal: str
    """Why the API server refuses its pods; empty if it does not."""
    deleting: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Service:
    name: str
    guarded: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """A ConfigMap of ours; `progress` is the trainer's report when it is one."""

    name: str
    hash: str
    progress: outcome.ProgressReport | None


Child = StageJob | Pod | Server | Service | Config


def _labels(raw: Raw) -> Mapping[str, str]:
    return raw.get("metadata", {}).get("labels") or {}


def _hash(raw: Raw) -> str:
    return str((raw.get("metadata", {}).get("annotations") or {}).get(HASH, ""))


def uid_of(raw: Raw) -> str | None:
    """The uid of the FineTuneJob that a child belongs to."""
    return _labels(raw).get(UID)


def stage_job(raw: Raw) -> StageJob:
    meta, spec, state = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    conditions = {c.get("type"): c for c in state.get("conditions") or [] if c.get("status") == "True"}
    over = conditions.get("Complete") or conditions.get("Failed")
    attempt = _labels(raw).get(ATTEMPT, "1")
    return StageJob(
        name=meta["name"],
        uid=meta.get("uid", ""),
        stage=_labels(raw).get(STAGE, ""),
        attempt=int(attempt) if attempt.isdigit() else 1,
        hash=_hash(raw),
        created=_time(meta.get("creationTimestamp")),
        finished=_time(over.get("lastTransitionTime")) if over else None,
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
    """The end that tells most: a failed container's, now or before its restart; else the main container's good end.

    `once`: its containers are not restarted. One may have a former state all the same, where the runtime lost it. The kubelet may
    have made another, which is at work or knows how it ended; the former one's end is the pod's only if the pod is over by it.
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
        finished=_time(end.get("finishedAt")),
    )


def _ended(state: Raw) -> datetime.datetime | None:
    """The end of a pod that is over. One that never ran (evicted at once, or its node lost) ended when that was said."""
    if state.get("phase") not in {"Succeeded", "Failed"}:
        return None
    ends = [(s.get("state") or {}).get("terminated") or {} for s in _statuses(state)]
    said = [_time(end.get("finishedAt")) for end in ends]
    said = said if any(said) else [_time(c.get("lastTransitionTime")) for c in state.get("conditions") or []]
    return max((time for time in said if time), default=_time(state.get("startTime")))


def _silent(state: Raw, ready: Raw) -> bool:
    """The node lifecycle controller takes a lost pod's readiness away; a kubelet would do the same to its containers."""
    containers = state.get("containerStatuses") or []
    at_work = state.get("phase") == "Running" and bool(containers) and all(c.get("ready") for c in containers)
    return at_work and ready.get("status") == "False"


def pod(raw: Raw) -> Pod:
    meta, state = raw["metadata"], raw.get("status") or {}
    conditions = {c.get("type"): c for c in state.get("conditions") or []}
    scheduled, disrupted = conditions.get("PodScheduled", {}), conditions.get("DisruptionTarget", {})
    statuses = _statuses(state)
    starts = [
        _time((s.get("state") or {}).get(k, {}).get("startedAt")) for s in statuses for k in ("running", "terminated")
    ]
    return Pod(
        name=meta["name"],
        parent=_labels(raw).get(RELEASE) or _labels(raw).get("batch.kubernetes.io/job-name", ""),
        node=int(node) if (node := _labels(raw).get(COMPLETION_INDEX, "0")).isdigit() else 0,
        stage=_labels(raw).get(STAGE, ""),
        gpus=int(gpus) if (gpus := _labels(raw).get(GPUS, "0")).isdigit() else 0,
        gpu_type=_labels(raw).get(GPU_TYPE, ""),
        phase=str(state.get("phase", "Pending")),
        ready=conditions.get("Ready", {}).get("status") == "True",
        created=_time(meta.get("creationTimestamp")),
        placed=_time(state.get("startTime")),
        started=min((s for s in starts if s), default=None),
        ended=_ended(state),
        waiting=_waiting(state),
        terminated=_terminated(state, (raw.get("spec") or {}).get("restartPolicy") == "Never"),
        unschedulable=str(scheduled.get("message", "")) if scheduled.get("reason") == "Unschedulable" else "",
        restarts=max((int(s.get("restartCount", 0)) for s in statuses), default=0),
        disruption=str(disrupted.get("reason") or "disrupted") if disrupted.get("status") == "True" else "",
        silent=_silent(state, conditions.get("Ready", {})),
        deleting=bool(meta.get("deletionTimestamp")),
    )


def server(raw: Raw) -> Server:
    meta, spec, state = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    refused = [
        c for c in state.get("conditions") or [] if c.get("type") == "ReplicaFailure" and c.get("status") == "True"
    ]
    containers = ((spec.get("template") or {}).get("spec") or {}).get("containers") or [{}]
    return Server(
        name=meta["name"],
        revision=_labels(raw).get(REVISION, ""),
        guarded={
            "image": containers[0].get("image"),
            "args": containers[0].get("args"),
            "selector": (spec.get("selector") or {}).get("matchLabels"),
        },
        replicas=int(spec.get("replicas", 1)),
        ready=int(state.get("readyReplicas") or 0),
        settled=int(state.get("observedGeneration") or 0) >= int(meta.get("generation") or 0)
        and state.get("updatedReplicas", 0) == state.get("replicas", 0) == spec.get("replicas", 1),
        refusal=str(refused[0].get("message", "")) if refused else "",
        deleting=bool(meta.get("deletionTimestamp")),
    )


def service(raw: Raw) -> Service:
    spec = raw.get("spec") or {}
    # A port that somebody added stays: server-side apply would not take it away.
    ours = [p for p in spec.get("ports") or [] if p.get("port") in {run.SERVER_PORT, run.RENDEZVOUS_PORT}]
    guarded = {
        "selector": spec.get("selector"),
        "ports": [{"port": p.get("port"), "targetPort": p.get("targetPort")} for p in ours],
        "unready": bool(spec.get("publishNotReadyAddresses")),
    }
    return Service(name=raw["metadata"]["name"], guarded=guarded)


def config(raw: Raw) -> Config:
    text = (raw.get("data") or {}).get(run.PROGRESS_KEY)
    try:
        progress = outcome.ProgressReport.model_validate_json(text) if text else None
    except pydantic.ValidationError:
        progress = None
    return Config(name=raw["metadata"]["name"], hash=_hash(raw), progress=progress)


PROJECTIONS: dict[str, Callable[[Raw], Child]] = {
    "Job": stage_job,
    "Pod": pod,
    "Deployment": server,
    "Service": service,
    "ConfigMap": config,
}
"""Kinds of children that are watched, and how each becomes a fact."""


@dataclasses.dataclass(frozen=True)
class Parent:
    """The FineTuneJob. `spec` is None when it cannot be read; `error` then says why."""

    name: str
    namespace: str
    uid: str
    generation: int
    run_annotation: str
    created: datetime.datetime | None
    deleting: bool
    spec: job.FineTuneJobSpec | None
    error: str
    status: status.Status


def parent(raw: Raw) -> Parent:
    meta = raw["metadata"]
    spec, error = None, ""
    try:
        # Unknown fields are a newer CRD's: the API server let them in, and a newer operator will read them.
        spec = job.FineTuneJobSpec.model_validate_json(json.dumps(raw.get("spec") or {}), extra="ignore")
    except pydantic.ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(str(part) for part in ("spec", *first["loc"]))
        error = f"{place}: {first['msg']} (and {problem.error_count() - 1} more)"
    return Parent(
        name=meta["name"],
        namespace=meta["namespace"],
        uid=meta["uid"],
        generation=int(meta.get("generation", 1)),
        run_annotation=str((meta.get("annotations") or {}).get(revision.RUN_ANNOTATION, "")),
        created=_time(meta.get("creationTimestamp")),
        deleting=bool(meta.get("deletionTimestamp")),
        spec=spec,
        error=error,
        status=_status(raw.get("status") or {}),
    )


def _status(raw: Raw) -> status.Status:
    """The status, less the values that another version wrote and this one cannot read: the rest is the job's memory."""
    readable = dict(raw)
    for _ in range(10):
        try:
            return status.Status.model_validate_json(json.dumps(readable))
        except pydantic.ValidationError as problem:
            places = [error["loc"] for error in problem.errors()]
        for field in {str(place[0]) for place in places}:
            bad = {place[1] for place in places if place[0] == field and len(place) > 1}
            value = readable.pop(field, None)
            if isinstance(value, list):
                readable[field] = [item for index, item in enumerate(value) if index not in bad]
    return status.Status()


@dataclasses.dataclass(frozen=True)
class Observation:
    """All that a decision may depend on."""

    parent: Parent
    spec: job.FineTuneJobSpec
    entry: basemodel.BaseModelSpec | None
    jobs: Mapping[str, StageJob]
    pods: tuple[Pod, ...]
    servers: Mapping[str, Server]
    services: Mapping[str, Service]
    configs: Mapping[str, Config]
    refusals: Mapping[str, str]
    """Name of a Job that lacks a pod -> why the API server refuses its pods (quota, admission)."""
    workloads: Mapping[str, kueue.Workload] | None
    """Name of a Job in a queue -> what Kueue says of it; None as long as Kueue was not heard."""
    granted: str
    """Digest of the rights that this process gave the job's pods last; empty: none yet. They are not watched."""
    now: datetime.datetime
    settings: settings.Settings

    def pods_of(self, name: str) -> list[Pod]:
        """Pods of a Job or Deployment, the newest last."""
        mine = [p for p in self.pods if p.parent == name]
        return sorted(mine, key=lambda p: (p.created or datetime.datetime.min.replace(tzinfo=datetime.UTC), p.name))


def by_kind(children: Mapping[tuple[str, str], Child]) -> dict[str, dict[str, Any]]:
    """Children of one job, from (kind, name) to kind -> name -> fact."""
    found: dict[str, dict[str, Any]] = {kind: {} for kind in PROJECTIONS}
    for (kind, name), child in children.items():
        found[kind][name] = child
    return found


def with_refusals(observation: Observation, refusals: Mapping[str, str]) -> Observation:
    return dataclasses.replace(observation, refusals={name: text for name, text in refusals.items() if text})
