"""The index of each ServingPool, for its gateways: what the pool is to hold, and who may use it (finetune_api.serving).

    statuses of jobs -> cache.members -> Index of a pool, built when one of its jobs changed -> GET /pools/NAMESPACE/NAME

Only the leader answers, and only when it knows all jobs: an adapter that is missing in an index is removed from the pods. A
request with the etag that the caller has waits for a change, so that a pool costs a request every WAIT_SECONDS and pod, however
many jobs it has.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable

from aiohttp import web

from finetune_api import revision, serving
from finetune_operator import cache
from finetune_operator.observe import members, pools

LOG = logging.getLogger(__name__)
TOGETHER = 0.2
"""Seconds in which changes of several jobs come together in one answer."""


def build(pool: pools.Parent, parts: Iterable[members.Member]) -> serving.Index:
    """The index of a pool. A job of a namespace that the pool no longer allows has no part in it."""
    spec = pool.spec
    listed = [] if spec is None else list(parts)
    models = sorted(
        (one for part in listed for one in part.models if spec and spec.admits(pool.namespace, one.namespace)),
        key=lambda one: (one.namespace, one.name),
    )
    held = {
        (one.namespace, one.job, one.sha256): one
        for part in listed
        for one in part.adapters
        if spec and spec.admits(pool.namespace, one.namespace)
    }
    adapters = [held[key] for key in sorted(held)]
    rewritten = True if spec and spec.rewritten else None
    rest = {"models": [one.wire() for one in models], "adapters": [one.wire() for one in adapters]}
    etag = revision.digest(rest | {"rewritten": True} if rewritten else rest, 16)
    return serving.Index(pool=pool.key, etag=etag, models=models, adapters=adapters, rewritten=rewritten)


class Indexes:
    """The indexes of all pools, and their HTTP endpoint. `complete`: whether all jobs are known, and this replica is leader."""

    def __init__(self, facts: cache.Cache, complete: Callable[[], bool]) -> None:
        self._facts, self._complete = facts, complete
        facts.index_changed = self._changed
        self._built: dict[str, tuple[serving.Index, bytes]] = {}
        self._waiting: dict[str, asyncio.Event] = {}
        self.builds = 0
        """How many indexes were built."""

    def _changed(self, pool: str) -> None:
        self._built.pop(pool, None)
        if event := self._waiting.pop(pool, None):
            event.set()

    def of(self, pool: pools.Parent) -> serving.Index:
        """The index of this pool."""
        return self._current(pool)[0]

    def _current(self, pool: pools.Parent) -> tuple[serving.Index, bytes]:
        known = self._built.get(pool.key)
        if known is None:
            made = build(pool, self._facts.members.get(pool.key, {}).values())
            known = self._built[pool.key] = made, made.model_dump_json(by_alias=True, exclude_none=True).encode()
            self.builds += 1
        return known

    async def answer(self, request: web.Request) -> web.Response:
        """GET /pools/NAMESPACE/NAME[?after=ETAG]"""
        key = f"{request.match_info['namespace']}/{request.match_info['name']}"
        has, loop = request.query.get(serving.WAIT), asyncio.get_running_loop()
        until = loop.time() + serving.WAIT_SECONDS
        while True:
            if not self._complete():
                text = "this replica does not lead, or does not know all jobs yet: ask again"
                return web.Response(status=503, text=text, headers={"Retry-After": "2"})
            pool = self._facts.pool_of(key)
            if pool is None:
                return web.Response(status=404, text=f"there is no ServingPool {key}")
            found, content = self._current(pool)
            if has != found.etag:
                return web.Response(body=content, content_type="application/json")
            event = self._waiting.setdefault(key, asyncio.Event())
            try:
                await asyncio.wait_for(event.wait(), until - loop.time())
            except TimeoutError:
                return web.Response(status=304)
            await asyncio.sleep(TOGETHER)

    async def serve(self, host: str, port: int = serving.INDEX_PORT) -> web.AppRunner:
        """Listen; the caller ends it."""
        app = web.Application()
        app.add_routes([web.get("/pools/{namespace}/{name}", self.answer)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, host, port).start()
        return runner
