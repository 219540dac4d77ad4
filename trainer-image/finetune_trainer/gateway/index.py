"""The index of the operator: what this pool is to hold, followed by long polls, and written to the volume.

A pod that starts without the operator serves what the volume says, or else what another pod follows. An answer that cannot be
read changes nothing.
"""

import asyncio
import contextlib
import pathlib
import random
import secrets
from collections.abc import AsyncIterator, Callable

import aiohttp
import pydantic

from finetune_api import serving
from finetune_trainer.gateway import listening, routing
from finetune_trainer.process import errors, log

FILE = ".index.json"

PAUSE = 2.0
"""Seconds between tries where the operator does not answer, is not the leader, or is not ready; and at least between answers."""

PATIENCE = 15.0
"""Seconds without an index after which the log says so."""


class Follower:
    """`table`: the latest index, None before the first; `live`: whether the operator has confirmed it to this process."""

    def __init__(
        self,
        url: str,
        pool: str,
        folder: pathlib.Path,
        changed: Callable[[], None],
        others: Callable[[], AsyncIterator[bytes]] | None = None,
    ) -> None:
        """others: the indexes of the other pods."""
        self._url, self._pool, self._file = f"{url.rstrip('/')}/pools/{pool}", pool, folder / FILE
        self._changed, self._others = changed, others
        self.table: routing.Table | None = None
        self.live = False

    def restore(self) -> None:
        """The index that the volume has."""
        try:
            self._take(self._file.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            log.warning("the index on the volume cannot be read; the operator's is waited for", problem=str(error))

    async def follow(self) -> None:
        """Until it is cancelled."""
        clock, failing_since, warned = asyncio.get_running_loop().time, None, False
        while True:
            try:
                await self._poll()
                failing_since, warned = None, False
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                failing_since = clock() if failing_since is None else failing_since
                # Every other answer is that of the standby operator, 503: logged once it lasts.
                if not warned and clock() - failing_since > PATIENCE:
                    problem, warned = errors.describe(error), True
                    log.warning("no index from the operator; the last one stays in force", problem=problem)
                if self.table is None:
                    await self._borrow()
                await asyncio.sleep(PAUSE * random.uniform(0.5, 1.0))  # noqa: S311

    async def _poll(self) -> None:
        """One request, on a connection of its own: the Service may send the next one to another replica."""
        params = {serving.WAIT: self.table.index.etag} if self.table and self.live else {}
        timeout = aiohttp.ClientTimeout(total=serving.WAIT_SECONDS + 15, connect=5)
        begun = asyncio.get_running_loop().time()
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True), timeout=timeout) as session,
            session.get(self._url, params=params, allow_redirects=False) as answer,
        ):
            if answer.status != 304:
                if answer.status != 200:
                    text = (await answer.content.read(300)).decode("utf-8", "replace")
                    raise ValueError(f"HTTP {answer.status} from {self._url}: {text}")
                self._take(await listening.body(answer, serving.INDEX_BYTES), live=True)
        # An operator that answers at once, again and again, is not asked without a pause.
        if asyncio.get_running_loop().time() - begun < 0.2:
            await asyncio.sleep(0.2)

    async def _borrow(self) -> None:
        """The index of another pod, until the operator says its own."""
        if self._others is None:
            return
        async for content in self._others():
            try:
                self._take(content)
            except ValueError as error:
                log.warning("the index of another pod cannot be read", problem=str(error))
            else:
                self._write(content)
                return

    def _take(self, content: bytes, *, live: bool = False) -> None:
        """Raises ValueError, and changes nothing, where it is not an index of this pool."""
        index = parse(content, self._pool)
        known = self.table.index if self.table else None
        self.live |= live
        if known == index:
            return
        self.table = routing.Table(index)
        if live:
            self._write(content)
        log.info("index", etag=index.etag, models=len(index.models), adapters=len(index.adapters))
        self._changed()

    def _write(self, content: bytes) -> None:
        new = self._file.with_name(f"{FILE}.{secrets.token_hex(4)}")  # other pods may write to the same volume
        try:
            new.write_bytes(content)
            new.replace(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink()
            log.warning("the index cannot be written to the volume; it is followed from memory", problem=str(error))


def parse(content: bytes, pool: str) -> serving.Index:
    """Raises ValueError for what is not an index of this pool, or contradicts itself."""
    try:
        index = serving.Index.model_validate_json(content)
    except pydantic.ValidationError as error:
        raise ValueError(f"not an index: {error.error_count()} problems, first {error.errors()[0]['loc']}") from None
    if index.pool != pool:
        raise ValueError(f"an index of the pool {index.pool}, expected {pool}")
    # two namespaces may have trained the same adapter
    held = {(adapter.sha256, adapter.namespace) for adapter in index.adapters}
    for model in index.models:
        for route in model.routes:
            if (route.sha256, model.namespace) not in held:
                raise ValueError(
                    f"{model.namespace}/{model.name} routes to an adapter that its namespace does not hold"
                )
    return index
