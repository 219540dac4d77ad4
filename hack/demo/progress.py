"""A FineTuneJob's status as one line, and its conditions as an end."""

import datetime
import enum
from dataclasses import dataclass
from typing import Any

Job = dict[str, Any]


class End(enum.Enum):
    """The end of a job."""

    RUNNING = "running"
    SERVES = "serves"
    DONE = "done"  # complete, without a server
    FAILED = "failed"
    SUSPENDED = "suspended"


# Reasons of conditions for which the job waits, and then continues automatically.
_WAITS = {
    "BaseModelNotFound",
    "CredentialsMissing",
    "Unschedulable",
    "VolumeUnavailable",
    "QuotaExceeded",
    "ImagePullFailed",
    "PodRefused",
    "StorageUnavailable",
}


@dataclass(frozen=True)
class View:
    """One status as it is shown."""

    phase: str
    details: str
    percent: int
    trouble: str  # why the job waits, with what to do; empty where it does not
    end: End

    @property
    def line(self) -> str:
        return f"{self.phase:<11}{self.details}".rstrip()


def condition(job: Job, kind: str) -> dict[str, Any]:
    """A condition of the present spec; empty when there is none."""
    generation = job["metadata"].get("generation", 0)
    for found in job.get("status", {}).get("conditions", []):
        if found["type"] == kind and found.get("observedGeneration", 0) == generation:
            return dict(found)
    return {}


def holds(job: Job, kind: str) -> bool:
    return condition(job, kind).get("status") == "True"


def end(job: Job) -> End:
    status = job.get("status", {})
    if status.get("observedGeneration") != job["metadata"].get("generation"):
        return End.RUNNING
    if holds(job, "Failed") or holds(job, "Stalled"):
        return End.FAILED
    if holds(job, "Suspended"):
        return End.SUSPENDED
    if holds(job, "Ready"):
        return End.SERVES
    return End.DONE if holds(job, "Complete") else End.RUNNING


def view(job: Job) -> View:
    status = job.get("status", {})
    phase = status.get("phase") or "Pending"
    reached = status.get("progress") or {}
    percent = int(reached.get("percent") or 0) if phase in ("Baseline", "Training", "Evaluating") else 0
    if phase == "Training" and reached:
        details = _training(reached)
    else:
        # At 100 % it may still be the progress of the stage before.
        details = f"{percent:>3}%  {_message(job)}" if 0 < percent < 100 else _message(job)
    return View(phase, details, percent if percent < 100 or phase == "Training" else 0, trouble(job), end(job))


def trouble(job: Job) -> str:
    for found in job.get("status", {}).get("conditions", []):
        if found.get("reason") in _WAITS and found["status"] != "True":
            return f"{found['reason']}: {found['message']}"
    return ""


def _training(reached: dict[str, Any]) -> str:
    parts = [
        f"{reached.get('percent', 0):>3}%",
        f"step {reached['step']}/{reached['totalSteps']}" if reached.get("totalSteps") else "",
        f"loss {reached['loss']}" if reached.get("loss") else "",
        f"validation {reached['validationLoss']}" if reached.get("validationLoss") else "",
        f"{reached['tokensPerSecond']} tokens/s" if reached.get("tokensPerSecond") else "",
        f"eta {reached['eta']}" if reached.get("eta") else "",
    ]
    return "  ".join(part for part in parts if part)


def _message(job: Job) -> str:
    message: str = condition(job, "Reconciling").get("message", "")
    return message.splitlines()[0] if message else ""


def failure(job: Job) -> str:
    """Why a job ended: the condition's message, and the log's end of the failed stage."""
    found = next((c for kind in ("Failed", "Stalled") if (c := condition(job, kind)).get("status") == "True"), {})
    lines = [f"{found.get('reason', 'Failed')}: {found.get('message', 'no message')}"]
    failed = job.get("status", {}).get("failure") or {}
    if failed.get("message") and failed["message"] not in lines[0]:
        lines.append(failed["message"])
    if failed.get("logTail"):
        lines.append(f"the last lines of stage {failed.get('stage', '?')}, attempt {failed.get('attempt', '?')}:")
        lines += [f"  | {line}" for line in failed["logTail"].strip().splitlines()[-15:]]
    return "\n".join(lines)


def seconds_between(earlier: str, later: str) -> float:
    """Between two times of the API, such as 2026-01-02T03:04:05Z."""
    first, second = (datetime.datetime.fromisoformat(text.replace("Z", "+00:00")) for text in (earlier, later))
    return (second - first).total_seconds()
