"""One stage as a child process of `finetune-trainer`: started with the run file, watched through its progress file, stopped by
SIGTERM, and judged by its exit code and its outcome, as the operator judges a pod.

The child has its own session, so that Ctrl-C in the terminal reaches it only through this process.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

import pydantic

from finetune_api import course, exits, outcome, reasons, run, status
from finetune_cli import answer, documents

POLL = 0.2
"""Seconds between polls of the child."""

TAIL = 15
"""Last lines of a stage's log that are quoted when it failed without an outcome."""

Update = Callable[[status.Progress], None]


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a stage ended."""

    code: int
    """An exit code of finetune_api.exits, 1, or negative: the signal that killed it."""
    outcome: outcome.Outcome | None
    seconds: float
    log: pathlib.Path


class Stop:
    """Whether the user wants to stop: the first time the child saves and ends, the second time it is killed."""

    def __init__(self) -> None:
        self.asked = 0

    def install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, *_: Any) -> None:
        self.asked += 1


@dataclasses.dataclass(frozen=True)
class Workplace:
    """The folder of one revision on this machine: run file, logs, outcomes, downloads and work files of the stages."""

    folder: pathlib.Path
    lock: int
    """A file lock held by this process and its children, so that a revision runs only once at a time."""

    def write_run_file(self, spec: run.Run) -> run.Run:
        """Writes the run file; returns the run with this machine's paths."""
        local = spec.model_copy(update={"progress_file": str(self.folder / "progress.json")})
        (self.folder / "run.json").write_text(json.dumps(local.wire(), indent=1))
        return local

    def start(
        self, stage: reasons.Stage, attempt: int, arguments: list[str]
    ) -> tuple["subprocess.Popen[bytes]", IO[bytes]]:
        for name in ("progress.json", "answer.json"):
            (self.folder / name).unlink(missing_ok=True)
        log = self.log(stage).open("ab")
        # -P: Python must not import files of the user's folder as modules.
        command = [
            sys.executable,
            "-P",
            "-m",
            "finetune_trainer",
            stage,
            "--run",
            str(self.folder / "run.json"),
            *arguments,
        ]
        environment = {
            "FINETUNE_METRICS_PORT": "0",
            **os.environ,
            "FINETUNE_WORK": str(self.folder / "work"),
            "FINETUNE_TERMINATION_PATH": str(self.folder / "answer.json"),
        }
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
            pass_fds=(self.lock,),
        )
        return process, log

    def log(self, stage: reasons.Stage) -> pathlib.Path:
        return self.folder / f"{stage}.log"

    def progress(self, attempt: int) -> status.Progress | None:
        try:
            report = outcome.ProgressReport.model_validate_json((self.folder / "progress.json").read_bytes())
        except (OSError, pydantic.ValidationError):
            return None
        return report.progress if report.attempt == attempt else None

    def read_outcome(self) -> outcome.Outcome | None:
        try:
            return outcome.Outcome.model_validate_json((self.folder / "answer.json").read_bytes())
        except (OSError, pydantic.ValidationError):
            return None


@contextlib.contextmanager
def workplace(folder: pathlib.Path) -> Iterator[Workplace]:
    """Locks the folder and yields it. Raises documents.Invalid."""
    try:
        (folder / "work").mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        message = f"the work folder {folder} cannot be made: {error.strerror}; name another one by --work"
        raise documents.Invalid([answer.Problem(message=message)]) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        message = f"this revision is already running, or one of its stages still saves (work folder {folder}); wait, or stop it"
        raise documents.Invalid([answer.Problem(message=message)]) from None
    try:
        yield Workplace(folder, lock)
    finally:
        os.close(lock)


def execute(
    place: Workplace, stage: reasons.Stage, attempt: int, arguments: list[str], stop: Stop, update: Update
) -> Ended:
    """Runs a stage to its end."""
    begun = time.monotonic()
    process, log = place.start(stage, attempt, arguments)
    signalled = 0
    with log:
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL)
                if stop.asked > signalled:
                    (process.kill if signalled else process.terminate)()
                    signalled = stop.asked
                if (progress := place.progress(attempt)) is not None:
                    update(progress)
            if (progress := place.progress(attempt)) is not None:  # the last update may have come after the last poll
                update(progress)
        finally:
            if process.poll() is None:
                process.terminate()
    return Ended(process.returncode, place.read_outcome(), time.monotonic() - begun, place.log(stage))


def problem(ended: Ended) -> tuple[reasons.Reason, str]:
    """Why a stage failed, by its outcome, or by its exit code and the end of its log."""
    if ended.outcome is not None and ended.outcome.reason is not None:
        return ended.outcome.reason, ended.outcome.message
    if ended.code == -signal.SIGKILL:
        return reasons.Reason.TRAINER_OUT_OF_MEMORY, "it was killed, probably because memory ran out"
    known = {**course.REASONS, exits.Exit.INVALID: reasons.Reason.INVALID_SPEC}
    reason = next((reason for code, reason in known.items() if code == ended.code), reasons.Reason.TRAINER_ERROR)
    tail = ended.log.read_text(errors="replace").splitlines()[-TAIL:] if ended.log.is_file() else []
    return reason, "\n".join([f"it ended with code {ended.code} and no outcome; the end of its log:", *tail])
