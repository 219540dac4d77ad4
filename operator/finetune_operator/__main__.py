"""The process: settings, logs, health and metrics, then leader election, and reconciling while this replica is leader."""

import argparse
import asyncio
import contextlib
import logging
import os
import pathlib
import signal
import socket
from typing import Any

import aiohttp
import prometheus_client
from aiohttp import web

from finetune_api import serving
from finetune_operator import cluster, handlers, lease, log, metrics, settings
from finetune_operator.observe import label

LOG = logging.getLogger("finetune_operator")
PORT = 8080


async def serve_health(host: str, port: int, exposition: metrics.Exposition) -> web.AppRunner:
    """/metrics, /healthz (the process answers) and /readyz (it is leader or standby)."""

    async def text(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def measured(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST})
        response.enable_compression()
        await response.prepare(request)
        parts = exposition.parts()
        while part := await asyncio.to_thread(next, parts, b""):
            await response.write(part)
        await response.write_eof()
        return response

    app = web.Application()
    app.add_routes([web.get("/healthz", text), web.get("/readyz", text), web.get("/metrics", measured)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner


def quiet_at_the_end(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Kopf leaves the requests of its first scan to themselves; when the process is told to stop then, they are no errors."""

    def handle(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if stop.is_set() and isinstance(context.get("exception"), aiohttp.ClientConnectionError):
            LOG.debug("a request was open as the process ended: %r", context["exception"])
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)


async def operate(options: argparse.Namespace) -> int:
    chart = settings.load(options.settings)
    log.configure(chart.log_level)
    api = await cluster.Cluster.connect()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def take_signals() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)

    take_signals()
    quiet_at_the_end(loop, stop)
    controller = handlers.Controller(api, chart, take_signals)
    exposition = metrics.Exposition(controller.facts, lambda: controller.leads)
    health = await serve_health(options.host, options.port, exposition)
    indexes = await controller.indexes.serve(options.host, options.index_port)
    namespace = os.environ.get("POD_NAMESPACE", "default")
    identity = f"{os.environ.get('POD_NAME') or socket.gethostname()}_{os.getpid()}"
    LOG.info("waiting for the lease %s/%s as %s", namespace, label.MANAGER, identity)
    leading = asyncio.create_task(lease.Lease(api, namespace, label.MANAGER, identity).lead(controller.run))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({leading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        asked = stop.is_set()
        if not asked:
            # Leadership or a part of the controller is lost: a new process starts from the state in the API server.
            LOG.error("no longer leader: the process ends and will be restarted")
            if leading.done() and not leading.cancelled() and (error := leading.exception()):
                LOG.error("the cause: %r", error)
        return 0 if asked else 1
    finally:
        stopping.cancel()
        leading.cancel()
        await asyncio.gather(leading, stopping, return_exceptions=True)
        await health.cleanup()
        await indexes.cleanup()
        await api.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="finetune-operator", description="Reconciles FineTuneJobs.")
    parser.add_argument("--settings", type=pathlib.Path, default=settings.PATH, help="the settings file (JSON)")
    parser.add_argument("--port", type=int, default=PORT, help="port of /metrics, /healthz and /readyz")
    parser.add_argument(
        "--index-port", type=int, default=serving.INDEX_PORT, help="port of the indexes of ServingPools"
    )
    parser.add_argument("--host", default="", help="address to listen on; default: all")
    with contextlib.suppress(KeyboardInterrupt):
        raise SystemExit(asyncio.run(operate(parser.parse_args())))


if __name__ == "__main__":
    main()
