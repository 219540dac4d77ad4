"""What the processes of gateway and activator share: listening, probes, others' answers, and work beside the requests."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from aiohttp import web

from finetune_trainer.process import log


def session() -> aiohttp.ClientSession:
    """Without a limit of connections: the engine's queue decides what waits."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False, trust_env=False)


async def healthy(_: web.Request) -> web.Response:
    return web.Response(text="alive")


def probed(problem: str) -> web.Response:
    """The answer to a readiness probe. problem: why the pod is not ready; empty when it is."""
    return web.Response(text=problem or "ready", status=503 if problem else 200)


def document(state: Any) -> web.Response:
    return web.Response(body=state.model_dump_json(by_alias=True, exclude_none=True), content_type="application/json")


async def body(answer: aiohttp.ClientResponse, most: int) -> bytes:
    """Of another process's answer. Raises ValueError where it has more bytes than `most`."""
    content = bytearray()
    async for piece in answer.content.iter_chunked(1 << 16):
        content += piece
        if len(content) > most:
            raise ValueError(f"an answer of more than {most} bytes")
    return bytes(content)


async def listen(app: web.Application, host: str | None, port: int) -> web.AppRunner:
    # The handler of a client that leaves is cancelled, and with it the request to the engine.
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, host, port, backlog=1024).start()
    return runner


async def forever(work: Callable[[], Awaitable[None]]) -> None:
    """A defect in one of the parts that run beside the requests is logged, and the part starts again."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("a part of the gateway failed by a defect, and starts again")
            await asyncio.sleep(1.0)
