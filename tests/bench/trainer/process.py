"""Runs one side in a process of its own and measures it from outside, the same way for all."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

from toolbox import say


@dataclasses.dataclass(frozen=True)
class Finished:
    """A process that ended well. `started`: seconds since the epoch, just before it was executed."""

    started: float
    seconds: float
    peak: int
    """Bytes: the largest resident set that the kernel saw (ru_maxrss) of the process or one of its children."""


def run(
    argv: Sequence[str | pathlib.Path], environment: Mapping[str, str], log: pathlib.Path, *, limit: float = 1800
) -> Finished:
    """Runs a program to its end, its output in `log`. Raises say.Problem when it fails or takes more than `limit` seconds."""
    with log.open("wb") as sink:
        started = time.time()
        child = subprocess.Popen(
            [str(word) for word in argv],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with _ended(child, limit):
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
    took = time.time() - started
    if child.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-15:]
        how = f"was ended after {limit:.0f} s" if took >= limit else f"ended with exit code {child.returncode}"
        raise say.Problem("\n    ".join([f"{' '.join(map(str, argv))} {how}:", *last]))
    return Finished(started, took, usage.ru_maxrss * 1024)


@contextlib.contextmanager
def _ended(child: "subprocess.Popen[bytes]", limit: float) -> Iterator[None]:
    """Ends the process and what it started when the time is over, or when this program is interrupted."""

    def end() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)

    timer = threading.Timer(limit, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except BaseException:
        end()
        raise
    finally:
        timer.cancel()
