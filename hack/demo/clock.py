"""The durations of the demo's steps, for the table at the end."""

import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

from demo import child
from toolbox import say


class Clock:
    """Steps with their seconds, in the order of their starts."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._steps: list[list[str | float]] = []

    @contextmanager
    def step(self, what: str, usually: str = "") -> Iterator[None]:
        """Announces a step and records its duration."""
        say.line(f"\n{what}" + (f" (usually {usually})" if usually else ""))
        began = time.monotonic()
        entry: list[str | float] = [what, 0.0]
        self._steps.append(entry)
        try:
            yield
        finally:
            entry[1] = time.monotonic() - began

    def note(self, what: str, seconds: float) -> None:
        self._steps.append([what, seconds])

    def table(self) -> str:
        rows = [(str(what), float(seconds)) for what, seconds in self._steps if float(seconds) >= 0.5]
        width = max((len(what) for what, _ in rows), default=0)
        lines = [f"  {what:<{width}}  {seconds:7.1f} s" for what, seconds in rows]
        lines.append(f"  {'total':<{width}}  {time.monotonic() - self._began:7.1f} s")
        return "\n".join(lines)


def together(*lanes: Callable[[], Any]) -> list[Any]:
    """Runs functions in parallel, and returns their results; if one fails, the programs of the others are ended."""
    with futures.ThreadPoolExecutor(len(lanes)) as pool:
        tasks = [pool.submit(lane) for lane in lanes]
        try:
            done, _ = futures.wait(tasks, return_when=futures.FIRST_EXCEPTION)
            failed = [error for task in done if (error := task.exception())]
        except KeyboardInterrupt:
            child.end_all(patience=5)
            raise
        if failed:
            child.end_all()
            raise failed[0]
        return [task.result() for task in tasks]
