"""From the volume into the engine: every adapter of the index is copied from a peer where it is missing, loaded, and loaded again
when the engine has been restarted; one that has left the index is unloaded and removed.

All are loaded with vLLM's own call, one after the other, requested ones first, then those that are routed to: the engine checks
each before anybody needs it. vLLM keeps the last `--max-cpu-loras` of them in memory, and reads the others from the volume when
they are used again, so that the number of adapters costs disk, and not memory.
"""

import asyncio
import collections
import dataclasses
import datetime
import sys
from collections.abc import Callable

from finetune_api import serving
from finetune_trainer.gateway import engine, index, peers, settings, volume
from finetune_trainer.process import log

CHECK = 1.0
"""Seconds between two checks of the engine's health."""

LIST_EVERY = 30.0
"""Seconds between two checks of what it has loaded, where nothing speaks for a restart."""

SILENT = 6
"""Checks without an answer, neither good nor refused, after which an engine counts as away: a busy one answers late."""

TRIES, AGAIN = 3, 60.0
"""Refusals after which an adapter counts as failed, and the seconds until it is tried again all the same."""

REMOVE_AFTER = 60.0
"""Seconds out of the index after which an adapter is removed."""

PATIENCE = 120.0
"""Seconds without one more adapter after which the pod serves without those that are missing: one tenant's must not hold up all
the others."""

COPY_AGAIN = (2.0, 30.0)
"""Seconds until the peers are asked again for an adapter that none had: doubled from the first to the second."""


class NotReady(Exception):
    """The adapter cannot answer now; the text says why, `after` when to try again, in seconds. refused: by the engine, which has
    the adapter; else the pod does not have it yet."""

    def __init__(self, message: str, after: int, *, refused: bool = False) -> None:
        super().__init__(message)
        self.after, self.refused = after, refused


@dataclasses.dataclass
class Refusal:
    message: str
    count: int
    again: float


class Loading:
    """`loaded`: what the engine has accepted. `running`: requests by adapter."""

    def __init__(
        self,
        options: settings.Settings,
        follower: index.Follower,
        disk: volume.Volume,
        vllm: engine.Engine,
        others: peers.Peers,
    ) -> None:
        self._follower, self._disk, self._engine, self._peers = follower, disk, vllm, others
        self._in_memory = options.in_memory
        self.engine_ready = False
        self.loaded: set[str] = set()
        self.running: collections.Counter[str] = collections.Counter()
        self.waiting: collections.Counter[str] = collections.Counter()
        self._ready_at: dict[str, datetime.datetime] = {}
        self._refused: dict[str, Refusal] = {}
        self._recent: collections.OrderedDict[str, None] = collections.OrderedDict()
        self._copy_at: dict[str, tuple[float, float]] = {}
        self._gone_since: dict[str, float] = {}
        self._removed: set[str] = set()
        """Adapters whose names the engine may keep in its list."""
        self._changed = asyncio.Condition()
        self._engine_lock = asyncio.Lock()
        self._list_at = 0.0
        self._settled = False
        self._fewest, self._fewest_at = sys.maxsize, 0.0
        """The fewest adapters that were missing since the engine answers, and since when."""
        self._waited_for: set[str] = set()
        """Adapters whose PATIENCE is over."""

    # --- for requests ---

    async def ready(self, sha256: str, seconds: float) -> None:
        """Waits until the engine has the adapter. Raises NotReady."""
        if sha256 not in self.loaded:
            self.waiting[sha256] += 1
            try:
                await self._until(lambda: sha256 in self.loaded or not self.engine_ready, seconds)
            finally:
                self.waiting[sha256] -= 1
                if not self.waiting[sha256]:
                    del self.waiting[sha256]
        if sha256 not in self.loaded:
            if not self.engine_ready:
                raise NotReady("the engine of this pod is starting", 5)
            state = self.state_of(sha256)
            raise NotReady(
                f"the model is not loaded on this pod yet ({state.state}{': ' if state.message else ''}{state.message})",
                10,
                refused=bool(state.message),
            )
        self.used(sha256)

    def used(self, sha256: str) -> None:
        """Follows which adapters vLLM keeps: the last ones that were used."""
        self._recent[sha256] = None
        self._recent.move_to_end(sha256)
        while len(self._recent) > self._in_memory:
            self._recent.popitem(last=False)

    def engine_lost(self) -> None:
        """A request found no engine: it is away until it is healthy again, and is to say what it has loaded."""
        if self.engine_ready:
            log.warning("the engine is away; its adapters are loaded again when it is back")
        self.engine_ready = False
        self.loaded.clear()
        self._recent.clear()
        self._refused.clear()  # by the engine that was
        self._list_at = 0.0
        self._unsettled()

    def adapter_lost(self, sha256: str) -> None:
        """The engine does not know an adapter that it had loaded: it has been restarted."""
        self.loaded.discard(sha256)
        self._list_at = 0.0

    async def wake(self) -> None:
        """Something has changed: the index, the volume, the engine."""
        async with self._changed:
            self._changed.notify_all()

    # --- for the state ---

    def state_of(self, sha256: str) -> serving.AdapterState:
        refusal = self._refused.get(sha256)
        on_disk = sha256 in self._disk.adapters
        if sha256 in self.loaded and on_disk:
            state, message = "Ready", ""
        elif refusal and refusal.count >= TRIES:
            state, message = "Failed", refusal.message
        elif on_disk:
            state, message = "Loading", refusal.message if refusal else ""
        else:
            state, message = "Missing", ""
        return serving.AdapterState.model_validate(
            {
                "sha256": sha256,
                "state": state,
                "message": message,
                "ready_at": self._ready_at.get(sha256) if state == "Ready" else None,
                "resident": sha256 in self._recent if self.engine_ready else None,
            }
        )

    def settled(self) -> bool:
        """Whether the engine has had every adapter that clients may reach, or the time to get it, since it answers."""
        table, now = self._follower.table, asyncio.get_running_loop().time()
        if self._settled or table is None or not self.engine_ready:
            return self._settled
        missing = table.routed - self.loaded - self._waited_for
        if len(missing) < self._fewest:
            self._fewest, self._fewest_at = len(missing), now
        if now - self._fewest_at > PATIENCE:
            self._waited_for = self._waited_for & table.routed | missing
            missing = set()
        self._settled = not missing
        return self._settled

    def _unsettled(self) -> None:
        """The engine has to load its adapters again."""
        self._settled, self._fewest = False, sys.maxsize

    def resident(self) -> int:
        return len(self._recent)

    # --- what runs beside the requests ---

    async def watch(self) -> None:
        """Follows the engine's health, and what it has loaded."""
        silent, loop = 0, asyncio.get_running_loop()
        while True:
            healthy = await self._engine.healthy()
            silent = silent + 1 if healthy is None else 0
            if healthy is False or silent >= SILENT:
                self.engine_lost()
            elif healthy and (not self.engine_ready or loop.time() >= self._list_at):
                await self._list()
            self.settled()
            await self.wake()
            await asyncio.sleep(CHECK)

    async def _list(self) -> None:
        async with self._engine_lock:
            try:
                listed = await self._engine.loaded()
            except engine.Away:
                return
            lost = self.loaded - listed
            if lost:
                log.warning("the engine has lost adapters; they are loaded again", adapters=len(lost))
                self._unsettled()
            self._removed &= listed
            self.loaded = {name for name in listed - self._removed if volume.HEX.fullmatch(name)}
            if not self.engine_ready:
                log.info("the engine answers", adapters=len(self.loaded))
            self.engine_ready = True
            self._list_at = asyncio.get_running_loop().time() + LIST_EVERY

    async def load(self) -> None:
        """Loads what is on the volume and in the index."""
        while True:
            if (sha256 := self._next()) is None:
                await self._until(lambda: self._next() is not None, CHECK)
                continue
            async with self._engine_lock:
                await self._load(sha256)
            await self.wake()

    def _next(self) -> str | None:
        """The adapter that is to be loaded now."""
        table = self._follower.table
        if table is None or not self.engine_ready:
            return None
        now = asyncio.get_running_loop().time()
        found = [
            sha256
            for sha256 in table.held
            if sha256 not in self.loaded
            and sha256 in self._disk.adapters
            and not (sha256 in self._refused and now < self._refused[sha256].again)
        ]
        return min(found, key=lambda sha256: (sha256 not in self.waiting, sha256 not in table.routed), default=None)

    async def _load(self, sha256: str) -> None:
        try:
            await self._engine.load(sha256, self._disk.path(sha256))
        except engine.Away:
            self.engine_lost()
        except engine.Refused as refused:
            count = self._refused[sha256].count + 1 if sha256 in self._refused else 1
            now = asyncio.get_running_loop().time()
            self._refused[sha256] = Refusal(str(refused), count, now + (AGAIN if count >= TRIES else CHECK))
            log.warning("the engine does not load an adapter", sha256=sha256, count=count, problem=str(refused))
        else:
            self.loaded.add(sha256)
            self._removed.discard(sha256)
            self._refused.pop(sha256, None)
            self._waited_for.discard(sha256)
            self._ready_at[sha256] = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
            self.used(sha256)

    async def copy(self) -> None:
        """Gets what is in the index and not on the volume: another pod may have put it there, or has it."""
        loop = asyncio.get_running_loop()
        while True:
            table = self._follower.table
            missing = [] if table is None else [one for one in table.held.values() if self._is_due(one, loop.time())]
            missing.sort(
                key=lambda one: (one.sha256 not in self.waiting, table is None or one.sha256 not in table.routed)
            )
            for held in missing:
                if await asyncio.to_thread(self._disk.find, held.sha256) or await self._peers.copy(held, self._disk):
                    self._copy_at.pop(held.sha256, None)
                    await self.wake()
                    continue
                first, most = COPY_AGAIN
                _, pause = self._copy_at.get(held.sha256, (0.0, first))
                self._copy_at[held.sha256] = (loop.time() + pause, min(2 * pause, most))
            await self._until(lambda: False, CHECK)

    def _is_due(self, held: serving.Held, now: float) -> bool:
        return held.sha256 not in self._disk.adapters and now >= self._copy_at.get(held.sha256, (0.0, 0.0))[0]

    async def sweep(self) -> None:
        """Removes what the operator has taken out of the index; never by an index that it has not confirmed."""
        loop = asyncio.get_running_loop()
        while True:
            table = self._follower.table
            if table is not None and self._follower.live:
                gone = (set(self._disk.adapters) | self.loaded) - table.held.keys()
                self._gone_since = {sha256: self._gone_since.get(sha256, loop.time()) for sha256 in gone}
                for sha256, since in list(self._gone_since.items()):
                    if loop.time() - since >= REMOVE_AFTER and not self.running[sha256]:
                        await self._remove(sha256)
            await asyncio.sleep(CHECK)

    async def _remove(self, sha256: str) -> None:
        async with self._engine_lock:
            if sha256 in self.loaded:
                try:
                    await self._engine.unload(sha256)
                except engine.Away:
                    self.engine_lost()
            self.loaded.discard(sha256)
            self._removed.add(sha256)
        for known in (self._recent, self._refused, self._ready_at, self._copy_at, self._gone_since, self.running):
            known.pop(sha256, None)
        await asyncio.to_thread(self._disk.remove, sha256)
        log.info("an adapter that left the index is removed", sha256=sha256)

    async def _until(self, holds: Callable[[], bool], seconds: float) -> None:
        """Returns when it holds, or after that time."""
        try:
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(holds)
        except TimeoutError:
            pass
