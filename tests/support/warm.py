"""The programs of the trainer as processes that start in a moment: forked from one that has torch and transformers loaded.

A process of its own otherwise: environment, signals, output and exit code. Only what is read while modules are imported is that
of the first one, for example HF_ENDPOINT and FINETUNE_STORAGE_PATIENCE: a test of these executes the program, at 6 s of a core.
"""

import atexit
import contextlib
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PRELOADED = [
    "torch",
    "peft",
    "transformers.models.llama.modeling_llama",
    "finetune_trainer.__main__",
    "finetune_trainer.stages.preflight",
    "finetune_trainer.stages.baseline",
    "finetune_trainer.stages.train",
    "finetune_trainer.stages.evaluate",
    "scipy.stats",
    "sacrebleu",
    "rapidfuzz.distance",
    "bm25s",
]

_started_here: list[BaseProcess] = []


@atexit.register  # before that of multiprocessing, which waits for them
def _end() -> None:
    for process in _started_here:
        if process.is_alive():
            process.kill()


context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(PRELOADED)


class Forked:
    """A process with what `subprocess.Popen` tells of one; its output is in two files."""

    def __init__(self, process: BaseProcess, out: Path, err: Path) -> None:
        self.process, self.out, self.err = process, out, err

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises subprocess.TimeoutExpired."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.process.name, timeout or 0.0)
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.process.is_alive() and self.process.pid is not None:
            os.kill(self.process.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it printed, after its end. Raises subprocess.TimeoutExpired."""
        self.wait(timeout)
        return self.out.read_text(), self.err.read_text()


def start(
    program: str, words: Sequence[str], environment: dict[str, str], out: Path, err: Path | None = None
) -> Forked:
    """`python -m program words`; out, err: files for its output, without err both in one."""
    process = context.Process(target=_started, args=(program, list(words), environment, str(out), str(err or out)))
    process.start()
    _started_here.append(process)
    return Forked(process, out, err or out)


def _started(program: str, words: list[str], environment: dict[str, str], out: str, err: str) -> None:
    with open(out, "ab") as stdout, open(err, "ab") as stderr:
        if program == "finetune_cli":
            from finetune_cli import stages

            forks = types.SimpleNamespace(**vars(subprocess) | {"Popen": Stage})
            stages.subprocess = forks  # type: ignore[assignment]
        _become(program, words, environment, stdout.fileno(), stderr.fileno())


def _become(program: str, words: list[str], environment: dict[str, str], out: int, err: int) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.argv = [program, *words]
    importlib.import_module(f"{program}.__main__").entry()


class Stage:
    """A stage that `finetune run` starts, forked from it, in the place of its `subprocess.Popen`."""

    def __init__(self, command: list[str], *, stdout: Any, stderr: Any, env: dict[str, str], **_: Any) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            with contextlib.suppress(SystemExit):
                os.setsid()
                at = command.index("finetune_trainer")
                _become(command[at], command[at + 1 :], env, stdout.fileno(), stderr.fileno())
            os._exit(1)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("a stage", timeout)
            time.sleep(0.02)
        assert self.returncode is not None
        return self.returncode

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
