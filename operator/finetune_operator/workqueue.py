"""A queue of keys to reconcile: each at most once in the queue, and never processed by two workers.

Under load the queue holds many jobs that begin. A job whose stage ended goes before them: people wait for its status, and its
resources are free.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable

FIRST, LATER = 0, 1
SOON = 0.2
"""Seconds in which the changes of a starting pod and its Job come together."""


class Workqueue:
    """Keys, processed by `workers` tasks. Adding a key that is being processed makes it run once more afterwards."""

    def __init__(self, work: Callable[[str], Awaitable[None]], workers: int = 16) -> None:
        self._work = work
        self._workers = workers
        self._ready: asyncio.PriorityQueue[tuple[int, int, str]] = asyncio.PriorityQueue()
        self._count = itertools.count()
        self._queued: dict[str, int] = {}
        """Key -> its rank; an entry of `_ready` with another rank is stale."""
        self._active: set[str] = set()
        self._again: dict[str, int] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._queued)

    def add(self, key: str) -> None:
        """Work on `key` as soon as a worker is free."""
        self._add(key, LATER)

    def add_first(self, key: str) -> None:
        """Work on `key` before all keys from `add`."""
        self._add(key, FIRST)

    def add_soon(self, key: str) -> None:
        """Work on `key` in a moment: more changes are to be expected, and one reconcile is enough for all."""
        if key not in self._queued:
            self.add_after(key, SOON)

    def _add(self, key: str, rank: int) -> None:
        if key in self._active:
            self._again[key] = min(rank, self._again.get(key, LATER))
        elif rank < self._queued.get(key, LATER + 1):
            self._queued[key] = rank
            self._ready.put_nowait((rank, next(self._count), key))

    def add_after(self, key: str, seconds: float) -> None:
        """Work on `key` in `seconds`, or earlier if it is added. Of several times the earliest counts."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is None or loop.time() + seconds < timer.when():
            self.forget(key)
            self._timers[key] = loop.call_later(seconds, self._due, key)

    def forget(self, key: str) -> None:
        if timer := self._timers.pop(key, None):
            timer.cancel()

    def _due(self, key: str) -> None:
        self._timers.pop(key, None)
        self.add(key)

    async def _worker(self) -> None:
        while True:
            rank, _, key = await self._ready.get()
            if self._queued.get(key) != rank:
                continue
            del self._queued[key]
            self._active.add(key)
            try:
                await self._work(key)
            finally:
                self._active.discard(key)
                if (again := self._again.pop(key, None)) is not None:
                    self._add(key, again)

    async def run(self) -> None:
        """Work until cancelled."""
        tasks = [asyncio.create_task(self._worker()) for _ in range(self._workers)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
