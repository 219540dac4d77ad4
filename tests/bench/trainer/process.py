"""Runs one side in a process of its own and measures it from outside, the same way for all."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from toolbox import say

LAUNCHER = pathlib.Path(__file__).parent / "sides" / "launcher.py"

LIMIT = 1800.0
"""Seconds after which a run is ended."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """A process that ended well. `started`: seconds since the epoch, just before it was executed."""

    started: float
    seconds: float
    peak: int
    """Bytes: the largest resident set that the kernel saw (ru_maxrss) of the process or one of its children."""


def run(
    argv: Sequence[str | pathlib.Path], environment: Mapping[str, str], log: pathlib.Path, *, limit: float = LIMIT
) -> Finished:
    """Runs a program to its end, its output in `log`. Raises say.Problem when it fails or takes more than `limit` seconds."""
    note = log.with_suffix(".usage.json")
    note.unlink(missing_ok=True)
    words = [str(word) for word in argv]
    with log.open("wb") as sink:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", LAUNCHER, note, *words],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            child.wait(limit)
        except BaseException as problem:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            if isinstance(problem, subprocess.TimeoutExpired):
                raise _problem(words, f"was ended after {limit:g} s", log) from None
            raise
    found = json.loads(note.read_text()) if note.exists() else {"code": child.returncode}
    if found["code"]:
        raise _problem(words, f"ended with exit code {found['code']}", log)
    return Finished(found["started"], found["seconds"], found["peak"])


def _problem(words: list[str], how: str, log: pathlib.Path) -> say.Problem:
    last = log.read_text(errors="replace").strip().splitlines()[-15:]
    return say.Problem("\n    ".join([f"{' '.join(words)} {how}:", *last]))
