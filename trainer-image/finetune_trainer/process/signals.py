"""SIGTERM, process-wide: raised as Stopped in the main thread at once, or after a section that must not be interrupted.

A Stopped that a library swallows is raised again by the next `check`.
"""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from finetune_trainer.process import errors


class _Stop:
    asked = False
    raised = False
    held = 0


_stop = _Stop()


def install() -> None:
    """From now on SIGTERM (and Ctrl-C) raises Stopped."""
    _stop.asked, _stop.held = False, 0
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _handle)


def ignore() -> None:
    """From now on SIGTERM is ignored: the work is done."""
    _stop.held += 1


def _handle(*_: Any) -> None:
    first = not _stop.asked
    _stop.asked = True
    if first and not _stop.held:
        raise errors.Stopped


def asked() -> bool:
    """Whether SIGTERM has come."""
    return _stop.asked


def check() -> None:
    """Raises Stopped when SIGTERM has come."""
    if _stop.asked and not _stop.held:
        raise errors.Stopped


@contextlib.contextmanager
def held() -> Iterator[None]:
    """SIGTERM waits until the section is over."""
    _stop.held += 1
    try:
        yield
    finally:
        _stop.held -= 1
    check()
