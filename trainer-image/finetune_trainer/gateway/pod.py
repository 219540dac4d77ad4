"""The gateway's process: two servers, what runs beside them, and its end.

SERVER_PORT is for clients, DELIVERY_PORT for stages, the operator, the other pods and the kubelet.
"""

import asyncio
import functools
import hmac
import signal
from collections.abc import Iterator
from typing import Any

import aiohttp
import prometheus_client
from aiohttp import web

from finetune_api import metrics, serving
from finetune_trainer.gateway import (
    access,
    archive,
    engine,
    index,
    listening,
    loading,
    peers,
    proxy,
    routing,
    settings,
    traffic,
    volume,
)
from finetune_trainer.process import errors, log

DRAIN_SECONDS = 5.0
"""After SIGTERM, until no more requests are taken: until then, clients may not know that the pod is leaving."""

MANIFEST_SECONDS, DELIVERY_SECONDS, DELIVERIES = 15.0, 900.0, 4
"""For the first file of a delivery, which proves its sender; for all of it; and how many may run at once."""

SHA = r"{sha256:[0-9a-f]{64}}"


class Pod:
    """One gateway."""

    def __init__(self, options: settings.Settings) -> None:
        self._options = options
        self._session: aiohttp.ClientSession
        self._traffic = traffic.Traffic()
        self._volume = volume.Volume(options.adapters, options.model_path, options.max_rank)
        self._index = index.Follower(
            options.index, options.pool, options.adapters, self._changed, lambda: self._peers.indexes()
        )
        self._access = access.Access(options, self._index)
        self._draining = asyncio.Event()
        self._drained = asyncio.Event()
        self._was_ready = False
        self._asked = 0.0
        self._deliveries = 0
        self._clients = 0
        self._room = proxy.Room(proxy.ROOM)
        self._tasks: set[asyncio.Task[None]] = set()

    # --- life ---

    async def run(self) -> None:
        """Until SIGTERM, and the end of the answers."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._draining.set)
        runners = await self.start()
        log.info("the gateway listens", pool=self._options.pool, adapters=len(self._volume.adapters))
        try:
            await self._draining.wait()
            await self._drain()
        finally:
            await self.stop(runners)

    async def start(self) -> list[web.AppRunner]:
        self._session = listening.session()
        await asyncio.to_thread(self._volume.open)
        options = self._options
        self._peers = peers.Peers(options.peers, options.delivery_port, self._session)
        self._engine = engine.Engine(options.engine, self._session)
        self._loading = loading.Loading(options, self._index, self._volume, self._engine, self._peers)
        self._proxy = proxy.Proxy(options.engine, self._session, self._loading)
        self._gauges()
        self._index.restore()
        for work in (
            self._index.follow,
            self._loading.watch,
            self._loading.load,
            self._loading.copy,
            self._loading.sweep,
        ):
            self._tasks.add(asyncio.create_task(listening.forever(work)))
        return [
            await listening.listen(self.clients(), options.host, options.port),
            await listening.listen(self.deliveries(), options.host, options.delivery_port),
        ]

    async def _drain(self) -> None:
        """Answers that run may end; the pod is not ready from the first moment."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._options.grace
        log.info("SIGTERM: the running answers end", running=self._proxy.running)
        await asyncio.sleep(min(DRAIN_SECONDS, self._options.grace))
        await self._proxy.idle(end - loop.time())
        if self._proxy.running:
            log.warning("the grace period is over; answers are interrupted", running=self._proxy.running)
        self._drained.set()

    async def stop(self, runners: list[web.AppRunner]) -> None:
        self._drained.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for runner in runners:
            await runner.cleanup()
        await self._session.close()

    def _changed(self) -> None:
        """A new index."""
        if self._index.table is not None:
            self._traffic.forget(self._index.table)
        task = asyncio.get_running_loop().create_task(self._loading.wake())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def ready(self) -> str:
        """Why the pod is not ready; empty when it is."""
        if self._draining.is_set():
            return "the pod is leaving"
        if not self._loading.engine_ready:
            return "the engine does not answer"
        if self._index.table is None:
            return "there is no index yet"
        if not self._loading.settled():
            return "adapters of models are not loaded yet; /state lists them"
        if not self._was_ready:
            self._was_ready, self._asked = True, asyncio.get_running_loop().time()
        return ""

    def _idle_seconds(self) -> float | None:
        """Since the last request of a client, or since the pod became ready."""
        if not self._was_ready:
            return None
        return 0.0 if self._clients else asyncio.get_running_loop().time() - self._asked

    # --- clients ---

    def clients(self) -> web.Application:
        app = web.Application(middlewares=[proxy.refusals(self._refused)])
        self._access.routes(app)
        app.router.add_post(f"/v1/{{path:{proxy.PATTERN}}}", self._ask)
        return app

    def _refused(self, status: int) -> None:
        self._traffic.metrics["refused"].labels(str(status)).inc()

    async def _ask(self, request: web.Request) -> web.StreamResponse:
        namespaces, table = self._access.known(request)
        with self._room.share() as take:
            sent = await proxy.received(request, take)
            model = self._access.find(sent["model"], namespaces, table)
            self._clients += 1
            try:
                return await self._answer(request, sent, model, table)
            finally:
                self._clients -= 1
                self._asked = asyncio.get_running_loop().time()

    async def _answer(
        self, request: web.Request, sent: dict[str, Any], model: serving.Served | None, table: routing.Table
    ) -> web.StreamResponse:
        name = sent["model"]
        if model is None:
            target = proxy.Target(name, name, is_adapter=False)
            ended = functools.partial(self._traffic.base, self._options.namespace, self._options.base_model)
            return await self._proxy.answer(request, sent, target, ended)
        route = routing.choose(model, sticky(request, sent), name)
        adapter = self._volume.adapters.get(route.sha256)
        template = adapter.template if adapter else None
        target = proxy.Target(route.sha256, table.called(name, model), True, template, model.json_schema)
        count = self._traffic.count(model, route.revision)

        ended = functools.partial(self._traffic.ended, model, count)
        return await self._proxy.answer(request, sent, target, ended)

    # --- deliveries, state, peers, probes ---

    def deliveries(self) -> web.Application:
        app = web.Application(middlewares=[proxy.refusals(lambda _: None)])
        app.router.add_put(f"/adapters/{SHA}", self._take)
        app.router.add_get(f"/adapters/{SHA}", self._give, allow_head=False)
        app.router.add_get("/index", self._give_index)
        app.router.add_get(f"/adapters/{SHA}/v1/models", self._verified_models)
        app.router.add_post(f"/adapters/{SHA}/v1/{{path:{proxy.PATTERN}}}", self._verify)
        app.router.add_get("/state", self._state)
        app.router.add_get("/healthz", listening.healthy)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/engine/metrics", self._engine_metrics)
        app.router.add_get("/drained", self._wait_drained)
        return app

    async def _take(self, request: web.Request) -> web.Response:
        """A delivery."""
        sha256 = request.match_info["sha256"]
        held = self._index.table.held.get(sha256) if self._index.table else None
        if held is None:
            raise proxy.Refusal(
                404, f"the index of this pool has no adapter {sha256}; try again when it has", "not_in_index"
            )
        try:
            async with asyncio.timeout(MANIFEST_SECONDS):
                manifest = await self._volume.manifest(request.content, held)
            await self._receive(request, manifest, held)
        except (volume.Unfit, archive.Bad) as problem:
            raise proxy.Refusal(422, f"the delivery is refused: {problem}", "unfit") from None
        except TimeoutError:
            raise proxy.Refusal(408, "the delivery takes too long", "timeout") from None
        except OSError as error:
            log.warning("an adapter cannot be written", sha256=sha256, problem=errors.describe(error))
            raise proxy.Refusal(507, f"the volume of adapters cannot be written: {error.strerror}", "disk") from None
        log.info("adapter received", sha256=sha256, bytes=held.bytes)
        await self._loading.wake()
        return web.json_response({"sha256": sha256}, status=201)

    async def _receive(self, request: web.Request, manifest: bytes, held: serving.Held) -> None:
        """The rest of a delivery, whose sender has proven that it has the adapter."""
        if self._deliveries >= DELIVERIES:
            raise proxy.Refusal(503, f"{DELIVERIES} deliveries are running; try again", "busy", after=5)
        self._deliveries += 1
        try:
            async with asyncio.timeout(DELIVERY_SECONDS):
                await self._volume.receive(request.content, manifest, held)
        finally:
            self._deliveries -= 1

    async def _give(self, request: web.Request) -> web.StreamResponse:
        """An adapter for another pod of the pool, and for nobody else."""
        await self._only_peers(request)
        sha256 = request.match_info["sha256"]
        if sha256 not in self._volume.adapters:
            raise proxy.Refusal(404, f"this pod has no adapter {sha256}", "not_here")
        files = await asyncio.to_thread(self._volume.files, sha256)
        response = web.StreamResponse(
            headers={"Content-Type": "application/x-tar", "Content-Length": str(archive.size(files))}
        )
        await response.prepare(request)
        pieces: Iterator[bytes] = archive.pieces(files)
        while piece := await asyncio.to_thread(next, pieces, b""):
            await response.write(piece)
        await response.write_eof()
        return response

    async def _give_index(self, request: web.Request) -> web.Response:
        """For a pod that has none, while the operator is away."""
        await self._only_peers(request)
        if self._index.table is None:
            raise proxy.Refusal(404, "this pod has no index", "not_here")
        return listening.document(self._index.table.index)

    async def _only_peers(self, request: web.Request) -> None:
        """Raises Refusal."""
        if not await self._peers.has(request.remote):
            raise proxy.Refusal(403, "adapters and index are given to the pods of this pool alone", "not_a_peer")

    def _verified(self, request: web.Request) -> volume.Adapter:
        """The adapter of a verification, whose key only those know who can read the adapter. Raises Refusal."""
        adapter = self._volume.adapters.get(request.match_info["sha256"])
        key = (request.headers.get("Authorization") or "").removeprefix("Bearer ")
        if adapter is None or not hmac.compare_digest(key.encode("utf-8", "replace"), adapter.key.encode()):
            raise proxy.Refusal(401, "verification needs the key that the adapter's manifest gives", "invalid_api_key")
        return adapter

    async def _verified_models(self, request: web.Request) -> web.Response:
        adapter = self._verified(request)
        names = [self._options.base_model] if self._loading.engine_ready else []
        names += [adapter.sha256] if adapter.sha256 in self._loading.loaded else []
        return web.json_response(
            {"object": "list", "data": [access.entry(name, self._options.namespace) for name in names]}
        )

    async def _verify(self, request: web.Request) -> web.StreamResponse:
        """The adapter under its own name, and the base model under its name, for comparison."""
        adapter = self._verified(request)
        with self._room.share() as take:
            try:
                sent = await proxy.received(request, take)
            except proxy.Refusal as refused:
                if refused.body["error"]["param"] != "prompt_logprobs":
                    raise
                # A stage of the former release asks so: transient, since its next attempt is of this one.
                message = "verification asks without `prompt_logprobs` now; the next attempt does"
                raise proxy.Refusal(503, message, "former_release", after=5) from None
            if sent["model"] not in (adapter.sha256, self._options.base_model):
                raise proxy.unknown(sent["model"])
            is_adapter = sent["model"] == adapter.sha256
            target = proxy.Target(sent["model"], sent["model"], is_adapter, adapter.template if is_adapter else None)
            return await self._proxy.answer(request, sent, target, _uncounted)

    async def _state(self, _: web.Request) -> web.Response:
        table = self._index.table
        state = serving.State(
            pool=self._options.pool,
            etag=table.index.etag if table else "",
            engine_ready=self._loading.engine_ready,
            running=self._proxy.running,
            waiting=self._loading.waiting.total(),
            requests=self._traffic.requests,
            idle_seconds=self._idle_seconds(),
            adapters=[self._loading.state_of(sha256) for sha256 in (table.held if table else ())],
            traffic=list(self._traffic.wire()),
        )
        return listening.document(state)

    async def _readyz(self, _: web.Request) -> web.Response:
        return listening.probed(self.ready())

    async def _metrics(self, _: web.Request) -> web.Response:
        body = prometheus_client.generate_latest(self._traffic.registry) + await self._engine.metrics()
        return web.Response(body=body, headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST})

    async def _engine_metrics(self, _: web.Request) -> web.Response:
        body = await self._engine.metrics(metrics.ENDPOINT_PICKER)
        return web.Response(body=body, headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST})

    def _gauges(self) -> None:
        """What is read when Prometheus asks."""
        metrics = self._traffic.metrics
        metrics["running"].set_function(lambda: self._proxy.running)
        metrics["waiting"].set_function(lambda: self._loading.waiting.total())
        metrics["resident"].set_function(self._loading.resident)
        metrics["engine_ready"].set_function(lambda: self._loading.engine_ready)
        for state in ("Missing", "Loading", "Ready", "Failed"):
            metrics["adapters"].labels(state).set_function(lambda state=state: self._in_state(state))

    def _in_state(self, state: str) -> int:
        held = self._index.table.held if self._index.table else ()
        return sum(self._loading.state_of(sha256).state == state for sha256 in held)

    async def _wait_drained(self, _: web.Request) -> web.Response:
        """For the engine's preStop: answers when no answer is running any more. Only SIGTERM begins that, no request."""
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._draining.wait()
        except TimeoutError:
            raise proxy.Refusal(409, "the pod is not leaving", "not_leaving") from None
        await self._drained.wait()
        return web.Response(text="drained")


def sticky(request: web.Request, sent: dict[str, Any]) -> str | None:
    """What keeps a client at one revision during a rollout."""
    for header in serving.STICKY_HEADERS:
        if value := request.headers.get(header):
            return f"{header}={value}"
    user = sent.get("user")
    return f"user={user}" if isinstance(user, str) and user else None


def _uncounted(*_: Any, **__: Any) -> None:
    """Verification is no traffic."""


def serve(options: settings.Settings) -> None:
    asyncio.run(_serve(options))


async def _serve(options: settings.Settings) -> None:
    await Pod(options).run()
