"""The containers of a pod, from its status: the states of the operator's own, and of those that others injected.

Meshes and agents add sidecars: native ones (init containers that stay) and classic ones. Only the operator's own container
decides about a stage or a server; of the others it matters whether they keep it from starting, or the pod from ending.
The server beside a stage is a sidecar of our own: the kubelet ends it after the stage, by a signal, which is no failure.
"""

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

from finetune_operator.observe import label

Raw = Mapping[str, Any]
UNPREPARED = "NotPrepared"
"""The reason of a pod whose node cannot mount its volumes or set up its network: the kubelet says so in events only."""


def time_of(text: Any) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(str(text).replace("Z", "+00:00")) if text else None
    except ValueError:
        return None


@dataclasses.dataclass(frozen=True, slots=True)
class Waiting:
    """A container that cannot start, with the kubelet's message."""

    container: str
    reason: str
    message: str

    @property
    def injected(self) -> bool:
        return self.container not in label.CONTAINERS


@dataclasses.dataclass(frozen=True, slots=True)
class Terminated:
    container: str
    exit_code: int
    reason: str
    message: str
    finished: datetime.datetime | None


def every(state: Raw) -> list[Raw]:
    """The statuses of all containers."""
    return [*(state.get("initContainerStatuses") or []), *(state.get("containerStatuses") or [])]


def own(state: Raw) -> list[Raw]:
    """Those of the operator's own containers that decide: not the server beside a stage."""
    beside = _beside(state)
    return [s for s in every(state) if s.get("name") in label.CONTAINERS and s is not beside]


def _beside(state: Raw) -> Raw | None:
    """The status of the server beside a stage."""
    return next((s for s in state.get("initContainerStatuses") or [] if s.get("name") == label.SERVER), None)


def server_end(state: Raw) -> Terminated | None:
    """The first known end of the server beside a stage, if the stage's own container had not ended by then."""
    stage: Raw = next((s for s in state.get("containerStatuses") or [] if s.get("name") == label.CONTAINER), {})
    over = time_of(((stage.get("state") or {}).get("terminated") or {}).get("finishedAt"))
    beside = _beside(state) or {}
    for where in ("lastState", "state"):
        end = (beside.get(where) or {}).get("terminated")
        finished = time_of(end.get("finishedAt")) if end else None
        if end and (over is None or (finished is not None and finished < over)):
            return _end(label.SERVER, end)
    return None


def _end(container: str, end: Raw) -> Terminated:
    return Terminated(
        container=container,
        exit_code=int(end.get("exitCode", 0)),
        reason=str(end.get("reason", "")),
        message=str(end.get("message", "")),
        finished=time_of(end.get("finishedAt")),
    )


def waiting(state: Raw) -> Waiting | None:
    """A container that cannot start; one of the operator's own first."""
    found = []
    for container in every(state):
        now = (container.get("state") or {}).get("waiting")
        if now and now.get("reason") not in {"PodInitializing", "ContainerCreating", None}:
            found.append(Waiting(container.get("name", ""), now["reason"], now.get("message", "")))
    return min(found, key=lambda one: one.injected, default=None)


def terminated(state: Raw, once: bool) -> Terminated | None:
    """The most informative end: a failed container's, now or before its restart; else the main container's success.

    `once`: its containers are not restarted. One may still have a last state, if the runtime lost it. The kubelet may then
    have started another one, which is running or has its own end; the lost one's end is the pod's only if the pod is over.
    """
    over = state.get("phase") in {"Succeeded", "Failed"}
    ends = []
    for container in own(state):
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
    return _end(container.get("name", ""), end)


def started(state: Raw) -> datetime.datetime | None:
    """When the first of the operator's own containers started."""
    states = [s.get("state") or {} for s in own(state)]
    starts = [time_of((s.get(k) or {}).get("startedAt")) for s in states for k in ("running", "terminated")]
    return min((start for start in starts if start), default=None)


def lingering(state: Raw) -> tuple[str, ...]:
    """Injected classic sidecars that have not ended: the kubelet ends native ones, these hold the pod and its GPUs."""
    others = [s for s in state.get("containerStatuses") or [] if s.get("name") not in label.CONTAINERS]
    return tuple(str(s.get("name", "")) for s in others if not (s.get("state") or {}).get("terminated"))


def blocking(spec: Raw, state: Raw) -> str:
    """The injected init container for which the operator's own ones wait; empty if there is none."""
    if started(state) is not None:
        return ""
    found = {s.get("name"): s for s in state.get("initContainerStatuses") or []}
    for container in spec.get("initContainers") or []:
        name, now = container.get("name", ""), found.get(container.get("name"), {})
        if name in label.CONTAINERS:
            return ""
        stays, ended = container.get("restartPolicy") == "Always", (now.get("state") or {}).get("terminated") or {}
        if not (now.get("started") if stays else ended.get("exitCode") == 0):
            return str(name)
    return ""


def unready(state: Raw, ready: Raw) -> str:
    """Why the kubelet holds a pod not ready whose own containers are: a sidecar, or a readiness gate; empty if it does not."""
    mine = [s for s in state.get("containerStatuses") or [] if s.get("name") in label.CONTAINERS]
    if ready.get("status") != "False" or not ready.get("reason") or not mine or not all(s.get("ready") for s in mine):
        return ""
    return str(ready.get("message") or ready["reason"])


def unreachable(state: Raw, ready: Raw) -> bool:
    """The node lifecycle controller sets a lost pod to not ready, without a reason. A kubelet always gives one, for example
    for a sidecar or a readiness gate."""
    containers = state.get("containerStatuses") or []
    at_work = state.get("phase") == "Running" and bool(containers) and all(c.get("ready") for c in containers)
    return at_work and ready.get("status") == "False" and not ready.get("reason")


def ended(state: Raw) -> datetime.datetime | None:
    """The end of a pod that is over. One that never ran (evicted at once, or its node lost) ended when its condition
    changed."""
    if state.get("phase") not in {"Succeeded", "Failed"}:
        return None
    ends = [(s.get("state") or {}).get("terminated") or {} for s in every(state)]
    times = [time_of(end.get("finishedAt")) for end in ends]
    times = times if any(times) else [time_of(c.get("lastTransitionTime")) for c in state.get("conditions") or []]
    return max((time for time in times if time), default=time_of(state.get("startTime")))


def words(state: Raw) -> str:
    """Why the kubelet ended or refused a pod, in its words; empty if it did not."""
    if state.get("phase") != "Failed" or not state.get("reason"):
        return ""
    return ": ".join(filter(None, (str(state["reason"]), str(state.get("message") or "").strip())))
