"""The one tree of expected errors. A stage raises them, `__main__` turns them into an outcome and an exit code.

Failure            reason + exit code + a message that says what was found, what was expected and what to do
  NotFound         an object does not exist in storage; the caller says what it was for
Stopped            SIGTERM arrived (a BaseException, so that no `except Exception` swallows it)
"""

import importlib.metadata
import traceback

from finetune_api import exits, reasons, status
from finetune_trainer.process import secrets

EXITS: dict[reasons.Reason, int] = {
    reasons.Reason.STORAGE_UNAVAILABLE: exits.Exit.STORAGE,
    reasons.Reason.TRAINER_OUT_OF_MEMORY: exits.Exit.OUT_OF_MEMORY,
    reasons.Reason.LOSS_DIVERGED: exits.Exit.DIVERGED,
    reasons.Reason.TRAINER_ERROR: 1,
    reasons.Reason.COLLECTIVE_FAILED: 1,
    reasons.Reason.GPU_NOT_VISIBLE: 1,
    reasons.Reason.SERVER_FAILED: 1,
    reasons.Reason.JUDGE_FAILED: 1,
    reasons.Reason.CANDIDATE_FAILED: 1,
}
"""Exit codes of reasons; every other reason of a Failure is bad configuration or data."""

REPORT = "report it to whoever gave you finetune-operator"
"""What to do about a defect: the project has no address of its own, but a platform team, or the place it was copied from, has."""


class Failure(Exception):
    """A stage cannot continue."""

    def __init__(self, reason: reasons.Reason, message: str, preflight: status.Preflight | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.preflight = preflight

    @property
    def exit(self) -> int:
        return EXITS.get(self.reason, exits.Exit.INVALID)


class NotFound(Failure):
    """No object at this URI."""

    def __init__(self, uri: str) -> None:
        super().__init__(reasons.Reason.DATASET_NOT_FOUND, f"{uri} does not exist")
        self.uri = uri


class Stopped(BaseException):
    """SIGTERM arrived: the pod must end."""


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch's own error on a GPU, a plain RuntimeError of CUDA, its libraries, or torch on a CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text, words = str(error), (("out of memory",), ("ALLOC_FAILED",), ("alloc", "memory"))
    return isinstance(error, RuntimeError) and any(all(word in text for word in each) for each in words)


def defect(error: BaseException) -> str:
    """An exception that nothing of ours explains: what it is, where it was raised, and what to do."""
    places = [
        f"{frame.filename.rpartition('site-packages/')[2].rpartition('trainer-image/')[2]}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    ours = next((place for place in reversed(places) if place.startswith("finetune_")), "")
    last = places[-1] if places else ""
    where = ", ".join(dict.fromkeys(filter(None, (ours, last))))
    return (
        f"an internal error, {describe(error)} ({where}). This is a defect of finetune-operator {version()}, not of the job: "
        f"{REPORT}, with this line and the job's manifest"
    )


def is_defect(message: str) -> bool:
    """Whether a message is one of `defect`."""
    return REPORT in message


def version() -> str:
    try:
        return importlib.metadata.version("finetune-operator")
    except importlib.metadata.PackageNotFoundError:
        return "(unknown version)"


def describe(error: BaseException) -> str:
    """An error in one line, without anything that could be a secret."""
    return secrets.redact(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
