"""Output of the development tools: progress on stderr, results on stdout, problems with what to do.

Everything long says beforehand what it does and how long that usually takes; results stay alone on stdout so that a
script can capture them while a person watches.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Problem(Exception):
    """A problem that the user can solve; its text says what was found and what to do. Shown without a traceback."""


def line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def result(text: str) -> None:
    print(text, flush=True)


@contextmanager
def step(what: str, usually: str = "") -> Iterator[None]:
    """Announces a step, and afterwards says how long it took; steps below a second get no second line.

    That line names the step again, by its words before a colon: other programs may have spoken meanwhile.
    """
    line(f"  {what}" + (f" (usually {usually})" if usually else ""))
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    if took >= 1:
        line(f"    {what.partition(':')[0]}: done in {took:.1f} s")


def size(amount: float) -> str:
    """Bytes for people: 1536 -> '1.5 KB'."""
    for unit in ("B", "KB", "MB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 10 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GB"
