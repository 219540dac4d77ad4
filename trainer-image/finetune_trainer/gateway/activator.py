"""The process of a pod without an engine: clients reach it while no server of the pool, or of the job, is ready, as when they
sleep.

    request -> key and model -> held -> a server says that it can answer -> sent there as it came -> its answer, as it comes

It checks keys and names as the servers do, which check them again (`behind`). The operator reads in /state that a request came,
and starts the servers; this process knows nothing of that: it looks for one that can answer, in DNS, while it holds requests.
"""

import asyncio
import contextlib
import signal
from collections.abc import Iterator

import aiohttp
import prometheus_client
from aiohttp import web

from finetune_api import serving
from finetune_trainer.gateway import behind, listening, peers, proxy, settings, traffic
from finetune_trainer.process import errors, log

HELD, HELD_BYTES = 1000, 64 << 20
"""Requests, and bytes of them, that are held at most; more are refused."""

LOOK = 0.25
"""Seconds between two looks at the pods, while requests are held."""

REFUSING = 1.0
"""Seconds for a look at the pods where requests are not held."""

AFTER = 20
"""Seconds in Retry-After: about what the smallest server takes to start."""

LEAVING_SECONDS = 5.0
"""After SIGTERM, until clients know that the pod is leaving."""

SENT = ("Authorization", "Content-Type", *serving.STICKY_HEADERS)
"""Headers of a request that reach the pod."""

GIVEN = ("Content-Type", "Content-Length", "Cache-Control", "X-Accel-Buffering", "Retry-After", "WWW-Authenticate")
"""Headers of a pod's answer that reach the client."""


class Activator:
    """One process."""

    def __init__(self, options: settings.Settings) -> None:
        self._options = options
        self._session: aiohttp.ClientSession
        self._peers: peers.Peers
        self._traffic = traffic.Traffic()
        self._behind: behind.Behind = behind.Job(options) if options.models else behind.Pool(options)
        self._seconds = max(options.hold or 0.0, REFUSING)
        self._states: dict[str, serving.State] = {}
        """Address -> what a server was found to be at the last look."""
        self._looked = asyncio.Condition()
        self._some = asyncio.Event()
        """Whether requests are held."""
        self._held = self._bytes = self._sending = 0
        self._asked: float | None = None
        self._leaving = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    # --- life ---

    async def run(self) -> None:
        """Until SIGTERM, and the end of what is held and answered."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leaving.set)
        runners = await self.start()
        log.info("the activator listens", pool=self._options.pool)
        try:
            await self._leaving.wait()
            await asyncio.sleep(min(LEAVING_SECONDS, self._options.grace))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._options.grace), self._looked:
                    await self._looked.wait_for(lambda: not (self._held or self._sending))
        finally:
            await self.stop(runners)

    async def start(self) -> list[web.AppRunner]:
        options = self._options
        self._session = listening.session()
        self._peers = peers.Peers(options.peers, options.delivery_port, self._session)
        self._traffic.metrics["running"].set_function(lambda: self._sending)
        self._traffic.metrics["waiting"].set_function(lambda: self._held)
        for work in (*self._behind.work, self._look):
            self._tasks.add(asyncio.create_task(listening.forever(work)))
        return [
            await listening.listen(self._clients(), options.host, options.port),
            await listening.listen(self._others(), options.host, options.delivery_port),
        ]

    async def stop(self, runners: list[web.AppRunner]) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for runner in runners:
            await runner.cleanup()
        await self._session.close()

    def _clients(self) -> web.Application:
        app = web.Application(middlewares=[proxy.refusals(self._refused)], client_max_size=proxy.BODY_BYTES)
        self._behind.routes(app)
        app.router.add_post(f"/v1/{{path:{self._behind.paths}}}", self._ask)
        return app

    def _others(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/state", self._state)
        app.router.add_get("/healthz", listening.healthy)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        return app

    def _refused(self, status: int) -> None:
        self._traffic.metrics["refused"].labels(str(status)).inc()

    # --- a request ---

    async def _ask(self, request: web.Request) -> web.StreamResponse:
        known = self._behind.known(request)
        with self._room(request):
            wanted = await self._behind.wanted(request, known)
            self._asked = asyncio.get_running_loop().time()
            return await self._answer(request, await request.read(), wanted)

    @contextlib.contextmanager
    def _room(self, request: web.Request) -> Iterator[None]:
        """Reserves what the request may take. Raises Refusal."""
        known = None if "Content-Encoding" in request.headers else request.content_length
        size = min(known or proxy.BODY_BYTES, proxy.BODY_BYTES)
        if self._held >= HELD or self._bytes + size > HELD_BYTES:
            self._asked = asyncio.get_running_loop().time()
            message = f"the servers start, and {self._held} requests wait already; send the request again"
            raise proxy.Refusal(503, message, "not_ready", after=AFTER)
        self._bytes += size
        try:
            yield
        finally:
            self._bytes -= size

    async def _answer(self, request: web.Request, body: bytes, wanted: frozenset[str]) -> web.StreamResponse:
        """The answer of the first pod that gives one. Raises Refusal where no pod can in time."""
        deadline = asyncio.get_running_loop().time() + self._seconds
        while True:
            address = await self._hold(wanted, deadline)
            self._sending += 1
            try:
                upstream = await self._send(request, body, address)
                if upstream is not None:
                    async with upstream:
                        return await self._pass_on(request, upstream)
            finally:
                self._sending -= 1
                async with self._looked:
                    self._looked.notify_all()

    async def _hold(self, wanted: frozenset[str], deadline: float) -> str:
        """Waits for a pod that can answer, and returns its address. Raises Refusal."""

        def able() -> list[str]:
            return [address for address, state in self._states.items() if _can_answer(state, wanted)]

        self._held += 1
        self._some.set()
        try:
            async with asyncio.timeout_at(deadline), self._looked:
                await self._looked.wait_for(able)
                return min(able(), key=lambda address: self._states[address].running)
        except TimeoutError:
            what = f"was held for {self._options.hold:.0f} s" if self._options.hold else "is not held"
            message = f"the servers start, and the request {what}; send it again"
            raise proxy.Refusal(503, message, "not_ready", after=AFTER) from None
        finally:
            self._held -= 1
            if not self._held:
                self._some.clear()

    async def _send(self, request: web.Request, body: bytes, address: str) -> aiohttp.ClientResponse | None:
        """The beginning of a pod's answer; None where it cannot answer after all: the next look shows who can."""
        host = f"[{address}]" if ":" in address else address
        headers = {name: value for name in SENT if (value := request.headers.get(name)) is not None}
        try:
            upstream = await self._session.post(
                f"http://{host}:{self._options.port}/v1/{request.match_info['path']}",
                data=body,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=3, sock_read=proxy.SILENT_SECONDS),
                allow_redirects=False,
            )
        except (aiohttp.ClientError, OSError) as error:
            log.warning("a pod did not answer; the request is held on", pod=address, problem=errors.describe(error))
        else:
            if upstream.status != 503:
                return upstream
            upstream.close()
        self._states.pop(address, None)
        return None

    async def _pass_on(self, request: web.Request, upstream: aiohttp.ClientResponse) -> web.StreamResponse:
        headers = {name: value for name in GIVEN if (value := upstream.headers.get(name)) is not None}
        response = web.StreamResponse(status=upstream.status, headers=headers)
        response.force_close()  # the next request finds its way to a pod
        await response.prepare(request)
        try:
            async for piece in upstream.content.iter_any():
                await response.write(piece)
        except aiohttp.ClientError as error:
            log.warning("an answer ended early", problem=errors.describe(error))
            if request.transport is not None:
                request.transport.abort()
            return response
        await response.write_eof()
        return response

    # --- the pods ---

    async def _look(self) -> None:
        """Reads the states of the pool's pods while requests are held."""
        while True:
            if not self._held:
                self._states.clear()
                await self._some.wait()
            addresses = sorted(await self._peers.addresses(fresh=1.0))
            found = await asyncio.gather(*(self._read(address) for address in addresses))
            self._states = {address: state for address, state in zip(addresses, found, strict=True) if state}
            async with self._looked:
                self._looked.notify_all()
            await asyncio.sleep(LOOK)

    async def _read(self, address: str) -> serving.State | None:
        return await self._behind.look(self._session, f"[{address}]" if ":" in address else address)

    # --- for the operator and the kubelet ---

    async def _state(self, _: web.Request) -> web.Response:
        now = asyncio.get_running_loop().time()
        state = serving.State(
            pool=self._options.pool,
            etag=self._behind.etag,
            engine_ready=False,
            running=self._sending,
            waiting=self._held,
            idle_seconds=0.0 if self._held or self._sending else None if self._asked is None else now - self._asked,
        )
        return listening.document(state)

    async def _readyz(self, _: web.Request) -> web.Response:
        return listening.probed("the pod is leaving" if self._leaving.is_set() else self._behind.lacks)

    async def _metrics(self, _: web.Request) -> web.Response:
        body = prometheus_client.generate_latest(self._traffic.registry)
        return web.Response(body=body, headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST})


def _can_answer(state: serving.State, wanted: frozenset[str]) -> bool:
    """Whether the pod has the adapters, or cannot get them: then its own refusal is the answer."""
    states = {one.sha256: one.state for one in state.adapters}
    return state.engine_ready and all(states.get(sha256) in ("Ready", "Failed") for sha256 in wanted)


def serve(options: settings.Settings) -> None:
    asyncio.run(_serve(options))


async def _serve(options: settings.Settings) -> None:
    await Activator(options).run()
