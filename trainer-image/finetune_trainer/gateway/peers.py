"""The other pods of the pool: an adapter that one of them has need not be delivered again, and its index serves where there is no
operator.

Only they may copy: adapters and index are given to the addresses that the pool's headless Service lists, and to nobody else.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from finetune_api import serving
from finetune_trainer.gateway import archive, listening, volume
from finetune_trainer.process import errors, log

FRESH = 5.0
"""Seconds for which the addresses are not looked up again."""

NONE = (socket.EAI_NONAME, socket.EAI_NODATA)
"""Answers of DNS where there are no pods."""

CONNECT_SECONDS, SILENT_SECONDS = 3.0, 30.0


class Peers:
    """The pods behind a DNS name."""

    def __init__(self, host: str, port: int, session: aiohttp.ClientSession) -> None:
        self._host, self._port, self._session = host, port, session
        self._addresses: set[str] = set()
        self._looked = float("-inf")

    async def addresses(self, *, fresh: float = FRESH) -> set[str]:
        """As DNS has them, at most `fresh` seconds old; those from before where it does not answer."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._looked >= fresh:
            self._looked = loop.time()
            try:
                found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
                self._addresses = {str(address[0]) for *_, address in found}
            except OSError as error:
                if isinstance(error, socket.gaierror) and error.errno in NONE:
                    self._addresses = set()
                    return self._addresses
                log.warning("the pods of the pool cannot be looked up", host=self._host, problem=str(error))
        return self._addresses

    async def has(self, address: str | None) -> bool:
        """Whether a pod of the pool has this address. A pod that has just started may be looked up again at once."""
        address = (address or "").removeprefix("::ffff:")
        return address in await self.addresses() or address in await self.addresses(fresh=1.0)

    async def copy(self, held: serving.Held, to: volume.Volume) -> bool:
        """Whether a pod had the adapter, and it is on the volume now."""
        for address in sorted(await self.addresses()):
            try:
                async with self._get(address, f"adapters/{held.sha256}") as answer:
                    if answer.status != 200:
                        continue
                    await to.receive(answer.content, await to.manifest(answer.content, held), held)
            except (aiohttp.ClientError, TimeoutError, OSError, archive.Bad, volume.Unfit) as error:
                log.warning("an adapter could not be copied", pod=address, problem=errors.describe(error))
            else:
                log.info("adapter copied", pod=address, sha256=held.sha256)
                return True
        return False

    async def indexes(self) -> AsyncIterator[bytes]:
        """What the other pods follow, as they give it."""
        for address in sorted(await self.addresses()):
            try:
                async with self._get(address, "index") as answer:
                    if answer.status != 200:
                        continue
                    content = await listening.body(answer, serving.INDEX_BYTES)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                log.warning("no index from a pod", pod=address, problem=errors.describe(error))
            else:
                yield content

    def _get(self, address: str, path: str) -> Any:
        host = f"[{address}]" if ":" in address else address
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS)
        return self._session.get(f"http://{host}:{self._port}/{path}", timeout=timeout, allow_redirects=False)
