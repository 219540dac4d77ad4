"""Locks between runs of this tool: held by an open file, so that a killed run never leaves one behind."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolbox import say


@contextmanager
def held(path: Path, waiting_for: str) -> Iterator[None]:
    """Waits for the lock, and says so when it is not free at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say.line(f"  waiting for {waiting_for}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
