"""Programs that the demo starts: their progress is shown, their result returned, and none outlives the demo."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from toolbox import cache, say

_running: set[subprocess.Popen[str]] = set()
_lock = threading.Lock()


def tool(*arguments: str | Path, python: str = sys.executable) -> str:
    """Runs one of the repository's own tools; its stderr is shown as it comes. Returns the last line of its stdout.

    Raises say.Problem when it fails; the screen shows what went wrong.
    """
    process = start([python, *map(str, arguments)])
    stdout, _ = process.communicate()
    forget(process)
    if process.returncode != 0:
        shown = " ".join(str(word).removeprefix(f"{cache.REPOSITORY}/") for word in arguments)
        raise say.Problem(f"`python3 {shown}` ended with exit code {process.returncode}: see above")
    lines = stdout.strip().splitlines()
    return lines[-1] if lines else ""


def start(
    argv: Sequence[str], *, environment: Mapping[str, str] | None = None, stderr: int | None = None
) -> subprocess.Popen[str]:
    """Starts a program whose stdout is read; `end` or `forget` it."""
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        cwd=cache.REPOSITORY,
        env=environment,
        text=True,
    )
    with _lock:
        _running.add(process)
    return process


def forget(process: subprocess.Popen[str]) -> None:
    with _lock:
        _running.discard(process)


def end(process: subprocess.Popen[str]) -> None:
    """Ends a program that runs until it is stopped. By SIGINT, on which our own tools clean up."""
    forget(process)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def end_all(patience: float = 0) -> None:
    """Ends all running programs. `patience`: seconds for those that a Ctrl-C on the terminal is already ending."""
    with _lock:
        remaining = list(_running)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and any(process.poll() is None for process in remaining):
        time.sleep(0.1)
    for process in remaining:
        end(process)
