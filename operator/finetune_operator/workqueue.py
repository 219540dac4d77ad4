"""Keys that want a reconcile: each at most once in the queue and never twice at work, now or later."""

import asyncio
from collections.abc import Awaitable, Callable


class Workqueue:
    """Keys, worked on by `workers` tasks. Adding a key that is at work makes it run once more afterwards."""

    def __init__(self, work: Callable[[str], Awaitable[None]], workers: int = 16) -> None:
        self._work = work
        self._workers = workers
        self._ready: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()
        self._active: set[str] = set()
        self._again: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._queued)

    def add(self, key: str) -> None:
        """Work on `key` as soon as a worker is free."""
        if key in self._active:
            self._again.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._ready.put_nowait(key)

    def add_after(self, key: str, seconds: float) -> None:
        """Work on `key` in `seconds`, or earlier if asked for. A later call replaces the timer."""
        self.forget(key)
        self._timers[key] = asyncio.get_running_loop().call_later(seconds, self._due, key)

    def forget(self, key: str) -> None:
        if timer := self._timers.pop(key, None):
            timer.cancel()

    def _due(self, key: str) -> None:
        self._timers.pop(key, None)
        self.add(key)

    async def _worker(self) -> None:
        while True:
            key = await self._ready.get()
            self._queued.discard(key)
            self._active.add(key)
            try:
                await self._work(key)
            finally:
                self._active.discard(key)
                if key in self._again:
                    self._again.discard(key)
                    self.add(key)

    async def run(self) -> None:
        """Work until cancelled."""
        tasks = [asyncio.create_task(self._worker()) for _ in range(self._workers)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
