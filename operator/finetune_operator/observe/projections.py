"""Objects of the API server as small frozen facts: one for each child of a job.

Projections are small, so that thousands of jobs stay cheap, and total: a malformed object gives an incomplete fact, never an
exception.
"""

import dataclasses
import datetime
from collections.abc import Callable, Mapping
from typing import Any

from finetune_api import outcome, reasons, run, serving
from finetune_operator import kueue
from finetune_operator.observe import containers, label, ownership

LOST = {"ContainerStatusUnknown", "Unknown"}
"""Reasons of containers that no longer exist when their node comes back: the kubelet's, and containerd's."""
Raw = Mapping[str, Any]


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
    waiting: containers.Waiting | None
    terminated: containers.Terminated | None
    server_end: containers.Terminated | None
    """How the server beside a stage ended, if it did before the stage's own container."""
    unschedulable: str
    restarts: int
    disruption: str
    """Why it is disrupted (evicted, preempted, ...), in Kubernetes' words; empty if it is not."""
    words: str
    """Why the kubelet ended or refused it, in its words; empty if it did not."""
    lingering: tuple[str, ...]
    """Injected containers that have not ended, and with which the pod does not end."""
    blocking: str
    """The injected container for which the operator's own one waits."""
    unready: str
    """Why it is not ready although its own containers are."""
    unreachable: bool
    """Whether its node is unreachable: its container's state is the last known one."""
    deleting: bool
    activator: bool = False
    """Whether it holds the requests of a ServingPool, or of a job, and is not one of its servers."""

    @property
    def preparing(self) -> bool:
        """Whether its node has not started any of its containers, and the status does not say what keeps it from that."""
        known = self.waiting is not None and self.waiting.reason != containers.UNPREPARED
        return self.phase == "Pending" and self.started is None and not (known or self.deleting)

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

    @property
    def wanted(self) -> int:
        """The replicas that the operator requested last."""
        return self.replicas if self.requested is None else self.requested


@dataclasses.dataclass(frozen=True, slots=True)
class Plain:
    """An object of a ServingPool that is only compared with what is wanted: its PodDisruptionBudget or Ingress."""

    name: str
    hash: str


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


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """An HTTPRoute, or a pool's InferencePool or InferenceModelRewrite. `guarded`: what leads requests to the servers.
    `accepted`: whether a Gateway's controller takes it, as far as it has said last; None: none has said anything. `problem`:
    why it does not, in its words."""

    name: str
    guarded: Mapping[str, Any]
    hash: str
    accepted: bool | None
    problem: str


Child = StageJob | Pod | Server | Service | Plain | Route


def _labels(raw: Raw) -> Mapping[str, str]:
    return raw.get("metadata", {}).get("labels") or {}


def _annotation(raw: Raw, name: str) -> str:
    return str((raw.get("metadata", {}).get("annotations") or {}).get(name, ""))


def uid_of(raw: Raw) -> str | None:
    """The uid of the FineTuneJob or ServingPool that a child belongs to."""
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
        created=containers.time_of(meta.get("creationTimestamp")),
        finished=containers.time_of(over.get("lastTransitionTime")) if over else None,
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


def _disruption(condition: Raw) -> str:
    return ": ".join(filter(None, (str(condition.get("reason") or "disrupted"), str(condition.get("message") or ""))))


def pod(raw: Raw) -> Pod:
    meta, state = raw["metadata"], raw.get("status") or {}
    conditions = {c.get("type"): c for c in state.get("conditions") or []}
    scheduled, disrupted = conditions.get("PodScheduled", {}), conditions.get("DisruptionTarget", {})
    spec, ready = raw.get("spec") or {}, conditions.get("Ready", {})
    return Pod(
        name=meta["name"],
        parent=_labels(raw).get(label.RELEASE)
        or _labels(raw).get(label.POOL)
        or _labels(raw).get("batch.kubernetes.io/job-name", ""),
        node=int(node) if (node := _labels(raw).get(label.COMPLETION_INDEX, "0")).isdigit() else 0,
        stage=_labels(raw).get(label.STAGE, ""),
        address=str(state.get("podIP") or ""),
        gpus=int(gpus) if (gpus := _labels(raw).get(label.GPUS, "0")).isdigit() else 0,
        gpu_type=_labels(raw).get(label.GPU_TYPE, ""),
        phase=str(state.get("phase", "Pending")),
        ready=ready.get("status") == "True",
        created=containers.time_of(meta.get("creationTimestamp")),
        placed=containers.time_of(state.get("startTime")),
        started=containers.started(state),
        ended=containers.ended(state),
        waiting=containers.waiting(state),
        terminated=containers.terminated(state, spec.get("restartPolicy") == "Never"),
        server_end=containers.server_end(state),
        unschedulable=str(scheduled.get("message", "")) if scheduled.get("reason") == "Unschedulable" else "",
        restarts=max((int(s.get("restartCount", 0)) for s in containers.own(state)), default=0),
        disruption=_disruption(disrupted) if disrupted.get("status") == "True" else "",
        words=containers.words(state),
        lingering=containers.lingering(state),
        blocking=containers.blocking(spec, state),
        unready=containers.unready(state, ready),
        unreachable=containers.unreachable(state, ready),
        deleting=bool(meta.get("deletionTimestamp")),
        activator=label.ACTIVATOR in _labels(raw),
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


PORTS = {run.SERVER_PORT, run.RENDEZVOUS_PORT, serving.DELIVERY_PORT}
"""Those of the operator's Services."""


def service(raw: Raw) -> Service:
    spec = raw.get("spec") or {}
    # A port added by others stays: server-side apply would not remove it.
    ours = [p for p in spec.get("ports") or [] if p.get("port") in PORTS]
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


def plain(raw: Raw) -> Plain:
    return Plain(name=raw["metadata"]["name"], hash=_annotation(raw, label.HASH))


def route(raw: Raw) -> Route:
    spec = raw.get("spec") or {}
    return _answered(
        raw,
        {
            "hosts": spec.get("hostnames"),
            "parents": [
                [p.get("namespace"), p.get("name"), p.get("sectionName")] for p in spec.get("parentRefs") or []
            ],
            "rules": [_rule(rule) for rule in spec.get("rules") or []],
        },
    )


def inference_pool(raw: Raw) -> Route:
    spec = raw.get("spec") or {}
    picker = spec.get("endpointPickerRef") or {}
    return _answered(
        raw,
        {
            "selector": (spec.get("selector") or {}).get("matchLabels"),
            "ports": [one.get("number") for one in spec.get("targetPorts") or []],
            "picker": [picker.get("name"), (picker.get("port") or {}).get("number"), picker.get("failureMode")],
        },
    )


def model_rewrite(raw: Raw) -> Route:
    spec = raw.get("spec") or {}
    return _answered(raw, {"pool": (spec.get("poolRef") or {}).get("name"), "rules": spec.get("rules")})


def _answered(raw: Raw, guarded: dict[str, Any]) -> Route:
    """With what the controllers of Gateways say of it, all together."""
    meta, state = raw["metadata"], raw.get("status") or {}
    every = [one for parent in state.get("parents") or [] for one in parent.get("conditions") or []]
    found = [one for one in every if one.get("type") in {"Accepted", "ResolvedRefs"}]
    refused = [f"{c.get('reason')}: {c.get('message')}" for c in found if c.get("status") == "False"]
    accepted = [c for c in found if c.get("type") == "Accepted" and c.get("status") == "True"]
    return Route(
        name=meta["name"],
        guarded=guarded,
        hash=_annotation(raw, label.HASH),
        accepted=False if refused else True if accepted else None,
        problem=next(iter(refused), ""),
    )


def _rule(rule: Raw) -> dict[str, Any]:
    paths = [match.get("path") for match in rule.get("matches") or []]
    backends = [[b.get("name"), b.get("port"), b.get("weight")] for b in rule.get("backendRefs") or []]
    return {"paths": paths, "backends": backends}


PROJECTIONS: dict[str, Callable[[Raw], Child]] = {
    "Job": stage_job,
    "Pod": pod,
    "Deployment": server,
    "Service": service,
    "PodDisruptionBudget": plain,
    "Ingress": plain,
    "HTTPRoute": route,
    "InferencePool": inference_pool,
    "InferenceModelRewrite": model_rewrite,
}
"""Kinds of watched children, and their projections."""
