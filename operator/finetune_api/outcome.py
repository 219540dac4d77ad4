"""The result of a stage's pod: its termination message (at most 4 KiB) and, during training, its progress."""

import json
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from finetune_api import reasons, status

TERMINATION_PATH = "/dev/termination-log"
TERMINATION_BYTES = 4096


class Training(status.Reported):
    adapter: status.Adapter
    steps: int
    learning_rate: float | None = Field(
        default=None, description="The peak learning rate. Absent in adapters of earlier versions."
    )
    search: str | None = Field(
        default=None, description="The learning rates that training.search tried, with their validation losses."
    )
    loss: float
    validation_loss: float | None = None
    best_step: int | None = None
    tokens_per_second: float = 0.0
    seconds: float = 0.0
    peak_memory: int | None = Field(
        default=None, description="Peak memory in bytes: of the GPU, or of the process on a CPU."
    )
    resumed_from: int | None = Field(default=None, description="The step of the checkpoint that the run resumed from.")
    passes: str | None = Field(
        default=None, description="How it was trained, where not through the trainer's own passes, and why."
    )
    left_behind: str | None = Field(
        default=None, description="Objects that are no longer needed and stay, because the key may not delete them."
    )


class Verification(status.Reported):
    tokens_per_second: float
    difference_from_base: float = Field(
        description="Mean absolute log-probability difference per token, served tuned vs base."
    )
    difference_from_evaluation: float = Field(
        description="The same, served tuned against what the evaluation recorded."
    )


class Outcome(status.Reported):
    """How a stage ended. `reason` is set when it failed, or, for preflight, when the advice ends the job."""

    stage: reasons.Stage | Literal["fetch"] = Field(description="The stage, or the server's init container.")
    reason: reasons.Reason | None = None
    message: str = ""
    preflight: status.Preflight | None = None
    baseline: status.Baseline | None = None
    training: Training | None = None
    evaluation: status.Evaluation | None = None
    report: str | None = None
    verification: Verification | None = None

    def termination_message(self) -> str:
        """This outcome as JSON of at most 4 KiB: lists and texts are halved until it fits, results are kept."""
        data = self.wire()
        text = _json(data)
        for path, least in [*_SHORTENED, *_gate_texts(data), *_LAST]:
            while len(text.encode()) > TERMINATION_BYTES and _halve(data, path, least):
                text = _json(data)
        return text


# What is shortened, in this order and down to which length; the kubelet would truncate the JSON in the middle.
_Path = tuple[str | int, ...]
_SHORTENED: tuple[tuple[_Path, int], ...] = (
    (("preflight", "findings"), 8),
    (("message",), 1000),
    (("preflight", "findings"), 0),
    (("preflight", "advice"), 1),
    (("evaluation", "unanswered"), 1),
    (("evaluation", "leftOut"), 1),
    (("baseline", "leftOut"), 1),
    (("evaluation", "metrics"), 0),
    (("baseline", "metrics"), 0),
    (("message",), 300),
)
_LAST: tuple[tuple[_Path, int], ...] = (
    (("evaluation", "gates"), 0),
    (("preflight", "advice"), 0),
)


def _gate_texts(data: dict[str, Any]) -> Iterator[tuple[_Path, int]]:
    for index in range(len(data.get("evaluation", {}).get("gates", []))):
        yield ("evaluation", "gates", index, "requirement"), 40
        yield ("evaluation", "gates", index, "observed"), 40


def _halve(data: Any, path: _Path, least: int) -> bool:
    """Halves the text or list at the path, down to `least`; whether there was anything to halve."""
    *parents, last = path
    for key in parents:
        if isinstance(key, str) and key not in data:
            return False
        data = data[key]
    if len(data.get(last, "")) <= least:
        return False
    data[last] = data[last][: max(least, len(data[last]) // 2)]
    return True


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


class ProgressReport(status.Reported):
    """The response of a stage's pod at run.PROGRESS_PATH, and the content of a progress file. Job, revision and attempt
    distinguish it from the report of another pod with the same address."""

    uid: str | None = Field(default=None, description="The FineTuneJob's uid. Absent outside a cluster.")
    revision: str
    attempt: int
    stage: reasons.Stage | None = Field(default=None, description="Whose progress it is; absent: training's.")
    progress: status.Progress
    checkpoint: status.Checkpoint | None = None
