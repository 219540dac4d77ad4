"""The queue: a key never twice at work, and never forgotten."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from finetune_operator import workqueue


@contextlib.asynccontextmanager
async def running(queue: workqueue.Workqueue) -> AsyncIterator[None]:
    task = asyncio.create_task(queue.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class Log:
    """Work that can be held up."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.at_work: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._grown = asyncio.Event()

    async def has(self, count: int) -> None:
        """Waits until so many keys were begun."""
        async with asyncio.timeout(30):
            while len(self.begun) < count:
                self._grown.clear()
                await self._grown.wait()

    async def __call__(self, key: str) -> None:
        assert key not in self.at_work, "twice at once"
        self.begun.append(key)
        self._grown.set()
        self.at_work.append(key)
        await self.gate.wait()
        self.at_work.remove(key)


async def test_a_key_that_is_added_twice_is_worked_on_once() -> None:
    log = Log()
    queue = workqueue.Workqueue(log)
    queue.add("a")
    queue.add("a")
    assert len(queue) == 1
    async with running(queue):
        await settle()
    assert log.begun == ["a"]


async def test_a_key_that_is_added_while_being_processed_is_processed_once_more() -> None:
    log = Log()
    log.gate.clear()
    queue = workqueue.Workqueue(log)
    async with running(queue):
        queue.add("a")
        await settle()
        queue.add("a")
        queue.add("a")
        await settle()
        assert log.begun == ["a"]
        log.gate.set()
        await settle()
    assert log.begun == ["a", "a"]


async def test_keys_are_worked_on_side_by_side() -> None:
    log = Log()
    log.gate.clear()
    queue = workqueue.Workqueue(log, workers=3)
    async with running(queue):
        for key in "abcd":
            queue.add(key)
        await settle()
        assert sorted(log.at_work) == ["a", "b", "c"]
        log.gate.set()
        await settle()
    assert log.begun == ["a", "b", "c", "d"]


async def test_later_is_later_and_the_earliest_time_counts() -> None:
    log = Log()
    queue = workqueue.Workqueue(log)
    async with running(queue):
        queue.add_after("a", 600)
        queue.add_after("a", 1)
        queue.add_after("a", 600)
        queue.add_after("b", 1)
        queue.forget("b")
        await settle()
        assert log.begun == []
        await log.has(1)
        await settle()
    assert log.begun == ["a"]


async def test_simultaneous_changes_cause_one_pass_and_one_during_a_pass_is_not_lost() -> None:
    log = Log()
    queue = workqueue.Workqueue(log)
    async with running(queue):
        queue.add_soon("a")
        queue.add_soon("a")
        await settle()
        assert log.begun == [], "more may come"
        await log.has(1)
        await settle()
        assert log.begun == ["a"]
        log.gate.clear()
        queue.add("a")
        await settle()
        queue.add_soon("a")
        queue.add_after("a", 600)
        log.gate.set()
        await log.has(3)
        await settle()
    assert log.begun == ["a", "a", "a"]


async def test_work_that_fails_ends_the_queue_with_its_error() -> None:
    async def broken(key: str) -> None:
        raise ValueError(key)

    queue = workqueue.Workqueue(broken)
    queue.add("a")
    with contextlib.suppress(ValueError):
        await asyncio.wait_for(queue.run(), 5)
        raise AssertionError("it must not continue")


async def test_a_key_added_first_is_processed_before_waiting_ones_and_once() -> None:
    log = Log()
    queue = workqueue.Workqueue(log, workers=1)
    for key in "abc":
        queue.add(key)
    queue.add_first("c")
    queue.add("c")
    async with running(queue):
        await settle()
    assert log.begun == ["c", "a", "b"]
    assert len(queue) == 0


async def test_a_key_added_first_while_being_processed_comes_first_afterwards() -> None:
    log = Log()
    log.gate.clear()
    queue = workqueue.Workqueue(log, workers=1)
    async with running(queue):
        queue.add("a")
        await settle()
        for key in "bc":
            queue.add(key)
        queue.add_first("a")
        log.gate.set()
        await settle()
    assert log.begun == ["a", "a", "b", "c"]
