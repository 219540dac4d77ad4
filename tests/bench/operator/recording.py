"""What the operator writes for one job until it has begun: read on its way to the API server, for the floor to write again."""

import contextlib
import dataclasses
import json
import pathlib
import ssl
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import aiohttp
import yaml
from aiohttp import web
from tests.bench.operator import bare

from support import ports

LEASES = "/leases"
PASSED_ON = ("Accept", "Content-Type", "Authorization")


@dataclasses.dataclass(frozen=True)
class Write:
    """One request that changed something; bare.NAME and bare.UID stand for those of the job."""

    method: str
    path: str
    content: str
    body: str

    @property
    def what(self) -> str:
        """In two words, for people."""
        last = self.path.partition("?")[0].rpartition("/")[2]
        return f"{self.method} {last}"


def templates(writes: Iterable[Write], name: str, uid: str) -> list[Write]:
    """The same for any job: its name and uid are left open."""

    def opened(text: str) -> str:
        return text.replace(uid, bare.UID).replace(name, bare.NAME)

    return [Write(one.method, opened(one.path), one.content, opened(one.body)) for one in writes]


def write(writes: list[Write], file: pathlib.Path) -> None:
    file.write_text(json.dumps([dataclasses.asdict(one) for one in writes]))


class Recorder:
    """A proxy between the operator and the API server, that keeps what was written. The lease is no job's."""

    def __init__(self, kubeconfig: pathlib.Path) -> None:
        self._given: dict[str, Any] = yaml.safe_load(kubeconfig.read_text())
        self._cluster: dict[str, Any] = self._given["clusters"][0]["cluster"]
        self.writes: list[Write] = []

    @contextlib.asynccontextmanager
    async def open(self, file: pathlib.Path) -> AsyncIterator[None]:
        """As long as the block lasts, the kubeconfig `file` leads through here."""
        port = ports.free()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self._trust())) as session:
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", self._handler(session))
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            self._lead(file, {"server": f"http://127.0.0.1:{port}"})
            try:
                yield
            finally:
                await runner.cleanup()

    def _lead(self, file: pathlib.Path, to: dict[str, str]) -> None:
        through = {"name": self._given["clusters"][0]["name"], "cluster": to}
        file.write_text(json.dumps(self._given | {"clusters": [through]}))

    def _trust(self) -> ssl.SSLContext | bool:
        authority = self._cluster.get("certificate-authority-data")
        return ssl.create_default_context(cadata=b64decode(authority).decode()) if authority else True

    def _handler(self, session: aiohttp.ClientSession) -> Callable[[web.Request], Any]:
        async def forward(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            headers = {name: request.headers[name] for name in PASSED_ON if name in request.headers}
            url = self._cluster["server"] + request.raw_path
            async with session.request(request.method, url, data=body or None, headers=headers) as answer:
                if request.method != "GET" and answer.status < 300 and LEASES not in request.path:
                    self.writes.append(Write(request.method, request.raw_path, request.content_type, body.decode()))
                headers = {name: answer.headers[name] for name in ("Content-Type", "Date") if name in answer.headers}
                response = web.StreamResponse(status=answer.status, headers=headers)
                await response.prepare(request)
                with contextlib.suppress(ConnectionResetError):
                    async for chunk in answer.content.iter_any():
                        await response.write(chunk)
                    await response.write_eof()
                return response

        return forward
