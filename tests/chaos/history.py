"""What was seen of a fleet while faults struck, as small facts: `watch` fills it, `invariants` judges it."""

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

from finetune_operator.observe import label

Raw = Mapping[str, Any]
ENDS = ("Complete", "Failed")


@dataclasses.dataclass(frozen=True)
class Job:
    """A Job of one attempt of one stage."""

    uid: str
    name: str
    stage: str
    revision: str
    attempt: int


@dataclasses.dataclass(frozen=True)
class Pod:
    """A pod of a stage. `started` and `ended`: of its main container, by the kubelet's clock."""

    uid: str
    job: str
    stage: str
    node: int
    started: datetime.datetime | None
    ended: datetime.datetime | None


@dataclasses.dataclass(frozen=True)
class Status:
    """A status of the FineTuneJob. `end`: Complete or Failed with its reason, empty while neither is true. `failures`:
    attempts that count as failed; `failure`: the last one's words."""

    generation: int
    observed: int
    phase: str
    revision: str
    end: str
    failures: int = 0
    failure: str = ""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a job ended. `weights`: SHA-256 of the trained tensors; `metrics`: contender and metric -> value; `gates`: whether
    each passed."""

    end: str
    revision: str
    weights: str = ""
    metrics: Mapping[str, str] = dataclasses.field(default_factory=dict)
    gates: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    serves: str = ""
    """The revision in service."""
    answer: str = ""
    """Of its model in a pool."""


@dataclasses.dataclass(frozen=True)
class Story:
    """The whole life of one FineTuneJob.

    `created`: name of a Job -> how often the API server said that it created it (its audit log). `struck`: what faults did to
    this job's own pods, or for longer than those are patient; `killed`: those among them that are failures of an attempt.
    `resumed`: how often its author suspended and resumed it. `lost`, `left`: artifacts that are not as they should be, and
    children that outlived it.
    """

    name: str
    expected: Outcome
    outcome: Outcome | None
    jobs: tuple[Job, ...] = ()
    created: Mapping[str, int] = dataclasses.field(default_factory=dict)
    pods: tuple[Pod, ...] = ()
    statuses: tuple[Status, ...] = ()
    struck: tuple[str, ...] = ()
    killed: tuple[str, ...] = ()
    resumed: int = 0
    lost: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def job(raw: Raw) -> Job:
    labels = raw["metadata"].get("labels") or {}
    return Job(
        uid=raw["metadata"]["uid"],
        name=raw["metadata"]["name"],
        stage=labels.get(label.STAGE, ""),
        revision=labels.get(label.REVISION, ""),
        attempt=int(labels.get(label.ATTEMPT, "0")),
    )


def pod(raw: Raw) -> Pod:
    labels = raw["metadata"].get("labels") or {}
    states = [
        status.get("state") or {}
        for status in raw.get("status", {}).get("containerStatuses") or []
        if status["name"] in label.CONTAINERS
    ]
    state = states[0] if states else {}
    over = state.get("terminated") or {}
    return Pod(
        uid=raw["metadata"]["uid"],
        job=labels.get("batch.kubernetes.io/job-name", ""),
        stage=labels.get(label.STAGE, ""),
        node=int(labels.get(label.COMPLETION_INDEX, "0")),
        started=time(over.get("startedAt") or (state.get("running") or {}).get("startedAt")),
        ended=time(over.get("finishedAt")),
    )


def status(raw: Raw) -> Status:
    state = raw.get("status") or {}
    return Status(
        generation=int(raw["metadata"]["generation"]),
        observed=int(state.get("observedGeneration") or 0),
        phase=state.get("phase", ""),
        revision=state.get("revision", ""),
        end=end(state),
        failures=int(state.get("failedAttempts") or 0),
        failure=(state.get("failure") or {}).get("message", "")[:300],
    )


def end(state: Raw) -> str:
    conditions = [c for c in state.get("conditions") or [] if c["type"] in ENDS and c["status"] == "True"]
    return f"{conditions[0]['type']}: {conditions[0]['reason']}" if conditions else ""


def outcome(state: Raw, weights: str, answer: str = "") -> Outcome:
    """How a job ended, by its last status."""
    evaluation = state.get("evaluation") or {}
    return Outcome(
        end=end(state) or f"{state.get('phase')}",
        revision=state.get("revision", ""),
        weights=weights,
        metrics={f"{m['contender']} {m['name']}": str(m["value"]) for m in evaluation.get("metrics") or []},
        gates={f"{g['metric']} {g['requirement']}": g["passed"] for g in evaluation.get("gates") or []},
        serves=(state.get("deployment") or {}).get("revision", ""),
        answer=answer,
    )


def time(text: Any) -> datetime.datetime | None:
    return datetime.datetime.fromisoformat(str(text).replace("Z", "+00:00")) if text else None
