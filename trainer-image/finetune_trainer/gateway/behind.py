"""What an activator stands before: the pods of a ServingPool, or the servers of one job. Both know who may ask for what, without
waking anybody, and whether a server can answer by now."""

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import aiohttp
from aiohttp import web

from finetune_api import serving
from finetune_trainer.gateway import access, index, listening, proxy, settings, tenants

LOOK_SECONDS = 2.0
"""For one look at a server."""


class Behind(Protocol):
    """Those who answer what is held."""

    paths: str
    """Pattern of the paths below /v1/ whose requests are held."""
    work: Sequence[Callable[[], Awaitable[None]]]
    """What runs beside the requests."""

    def routes(self, app: web.Application) -> None:
        """Adds what is answered without a server."""

    def known(self, request: web.Request) -> Any:
        """Who asks. Raises Refusal."""

    async def wanted(self, request: web.Request, known: Any) -> frozenset[str]:
        """The adapters that answer it, where the servers are not the job's own. Raises Refusal."""

    async def look(self, session: aiohttp.ClientSession, host: str) -> serving.State | None:
        """The state of the server at this address; None if it cannot answer."""

    @property
    def etag(self) -> str:
        """Of the index that is followed."""

    @property
    def lacks(self) -> str:
        """Why nobody can be answered yet; empty otherwise."""


class Pool:
    """A ServingPool: keys and models by its index, and a pod's /state says which adapters it has."""

    def __init__(self, options: settings.Settings) -> None:
        self._options = options
        self.index = index.Follower(options.index, options.pool, options.adapters, lambda: None)
        self._access = access.Access(options, self.index)
        self.paths = proxy.PATTERN
        self.work: Sequence[Callable[[], Awaitable[None]]] = [self.index.follow]
        options.adapters.mkdir(parents=True, exist_ok=True)
        self.index.restore()

    def routes(self, app: web.Application) -> None:
        self._access.routes(app)

    def known(self, request: web.Request) -> Any:
        return self._access.known(request)

    async def wanted(self, request: web.Request, known: Any) -> frozenset[str]:
        sent = proxy.document(request, await _body(request))
        model = self._access.find(sent["model"], *known)
        return frozenset(route.sha256 for route in model.routes if route.weight) if model else frozenset()

    async def look(self, session: aiohttp.ClientSession, host: str) -> serving.State | None:
        url, timeout = f"http://{host}:{self._options.delivery_port}/state", aiohttp.ClientTimeout(LOOK_SECONDS)
        try:
            async with session.get(url, timeout=timeout, allow_redirects=False) as answer:
                content = await listening.body(answer, serving.STATE_BYTES)
                state = serving.State.model_validate_json(content, extra="ignore")
                # the address may be another pod's by now
                return state if state.pool == self._options.pool else None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):  # of pydantic, too
            return None

    @property
    def etag(self) -> str:
        return self.index.table.index.etag if self.index.table else ""

    @property
    def lacks(self) -> str:
        return "" if self.index.table else "there is no index yet"


class Job:
    """The servers of one job: its key, the names on the command line, and vLLM's /health, by the address of their Service."""

    paths = "[a-z0-9_/-]+"
    work: Sequence[Callable[[], Awaitable[None]]] = ()
    etag = lacks = ""

    def __init__(self, options: settings.Settings) -> None:
        self._options, self._names = options, (*options.models, options.base_model)
        self._tenants = tenants.Tenants(options.keys, options.namespace)

    def routes(self, app: web.Application) -> None:
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._list)

    async def _health(self, _: web.Request) -> web.Response:
        """As vLLM answers it: a monitor of the address starts no servers."""
        return web.Response()

    async def _list(self, request: web.Request) -> web.Response:
        self.known(request)
        entries = [access.entry(name, self._options.namespace) for name in self._names]
        return web.json_response({"object": "list", "data": entries})

    def known(self, request: web.Request) -> Any:
        try:
            return self._tenants.namespaces(request.headers.get("Authorization"))
        except tenants.Unknown as unknown:
            raise proxy.Refusal(401, str(unknown), "invalid_api_key") from None

    async def wanted(self, request: web.Request, known: Any) -> frozenset[str]:
        del known
        try:
            sent = json.loads(await _body(request))
        except (ValueError, RecursionError) as error:
            raise proxy.no_json(error) from None
        name = sent.get("model") if isinstance(sent, dict) else None
        if isinstance(name, str) and name and name not in self._names:
            raise proxy.unknown(name)
        return frozenset()

    async def look(self, session: aiohttp.ClientSession, host: str) -> serving.State | None:
        url, timeout = f"http://{host}:{self._options.port}/health", aiohttp.ClientTimeout(LOOK_SECONDS)
        try:
            async with session.get(url, timeout=timeout, allow_redirects=False) as answer:
                able = answer.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
        return serving.State(pool=self._options.pool, etag="", engine_ready=True) if able else None


async def _body(request: web.Request) -> bytes:
    """Stays in the request, for the server that answers it. Raises Refusal."""
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise proxy.too_large() from None
