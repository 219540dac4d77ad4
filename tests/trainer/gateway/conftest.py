import asyncio
import contextlib
import dataclasses
import hashlib
import json
import pathlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.trainer.gateway import double

from finetune_api import serving
from finetune_trainer.gateway import archive, delivery, index, loading, settings, tenants
from finetune_trainer.gateway import pod as gateway
from support import ports

POOL = "ml/shared"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses of a gateway, short."""
    for module, name, seconds in (
        (loading, "CHECK", 0.02),
        (loading, "REMOVE_AFTER", 0.2),
        (loading, "COPY_AGAIN", (0.05, 0.1)),
        (index, "PAUSE", 0.05),
        (tenants, "FRESH", 0.0),
        (gateway, "DRAIN_SECONDS", 0.2),
        (delivery, "PAUSE", 0.05),
        (delivery, "STRAGGLERS", 0.5),
    ):
        monkeypatch.setattr(module, name, seconds)


@dataclasses.dataclass(frozen=True)
class Folder:
    """An adapter as `stages.fetch` leaves it."""

    path: pathlib.Path
    sha256: str
    held: dict[str, Any]

    @property
    def key(self) -> str:
        return serving.verify_key((self.path / "manifest.json").read_bytes())

    def tar(self) -> bytes:
        names = ["manifest.json", *(file["path"] for file in self.manifest()["files"])]
        return b"".join(archive.pieces([(name, self.path / name) for name in names]))

    def manifest(self) -> dict[str, Any]:
        return json.loads((self.path / "manifest.json").read_text())


@dataclasses.dataclass
class Running:
    """A gateway with its engine."""

    pod: gateway.Pod
    runners: list[web.AppRunner]
    engine: double.Engine
    clients: str
    deliveries: str
    volume: pathlib.Path


class World:
    """An operator's index, and the pods of one pool."""

    def __init__(self, folder: pathlib.Path, session: aiohttp.ClientSession) -> None:
        self.folder, self.http = folder, session
        self.operator = double.Operator()
        self.index_url = ""
        self.port = ports.free()
        self.addresses = ["127.0.0.1"]
        self.stack = contextlib.AsyncExitStack()
        self.models: list[dict[str, Any]] = []
        self.adapters: list[dict[str, Any]] = []
        self.rewritten = False
        self._etag = 0

    async def listen(self, app: web.Application, host: str = "127.0.0.1", port: int = 0) -> int:
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, host, port).start()
        self.stack.push_async_callback(runner.cleanup)
        return int(runner.addresses[0][1])

    async def pod(self, host: str = "127.0.0.1", **options: Any) -> Running:
        engine = options.pop("engine", None) or double.Engine()
        engine_port = options.pop("engine_port", 0) or await self.listen(engine.app())
        volume = options.pop("adapters", self.folder / f"volume-{host}")
        values = {
            "pool": POOL, "index": self.index_url, "adapters": volume, "peers": "pool-pods", "base_model": double.BASE,
            "model_path": "/models/base", "max_rank": 16, "host": host, "port": ports.free(), "delivery_port": self.port,
            "engine_port": engine_port, "grace": 5.0, **options,
        }  # fmt: skip
        made = gateway.Pod(settings.Settings(**values))
        runners = await made.start()
        running = Running(
            made, runners, engine, f"http://{host}:{values['port']}", f"http://{host}:{self.port}", volume
        )
        self.stack.push_async_callback(self.stop, running)
        return running

    async def stop(self, running: Running) -> None:
        if running.runners:
            runners, running.runners = running.runners, []
            await running.pod.stop(runners)

    def adapter(self, text: str, *, namespace: str = "ml", rank: int = 8, **files: str) -> Folder:
        """One whose answers are `text`."""
        config = {"peft_type": "LORA", "r": rank, "base_model_name_or_path": "some-base"}
        named = {"adapter_model.safetensors": text, "adapter_config.json": json.dumps(config)}
        named |= {name.replace("_txt", ".txt").replace("_jinja", ".jinja"): content for name, content in files.items()}
        path = self.folder / f"made-{hashlib.sha256(repr((named, namespace)).encode()).hexdigest()[:16]}"
        path.mkdir(exist_ok=True)
        listed = []
        for name, content in named.items():
            (path / name).write_text(content)
            digest = hashlib.sha256(content.encode()).hexdigest()
            listed.append({"path": name, "size": len(content.encode()), "sha256": digest})
        manifest = json.dumps({"files": listed}).encode()
        (path / "manifest.json").write_bytes(manifest)
        sha256 = hashlib.sha256(manifest).hexdigest()
        size = sum(file["size"] for file in listed)
        held = {
            "namespace": namespace,
            "job": "job",
            "revision": sha256[:10],
            "sha256": sha256,
            "rank": rank,
            "bytes": size,
        }
        return Folder(path, sha256, held)

    def serve(self, name: str, *routes: tuple[Folder, int], namespace: str = "ml", **more: Any) -> None:
        """The name is routed to these adapters; call `publish` afterwards."""
        self.hold(*(folder for folder, _ in routes))
        self.models = [one for one in self.models if (one["namespace"], one["name"]) != (namespace, name)]
        listed = [
            {"revision": folder.held["revision"], "sha256": folder.sha256, "weight": weight}
            for folder, weight in routes
        ]
        self.models.append({"namespace": namespace, "job": "job", "name": name, "routes": listed, **more})

    def hold(self, *folders: Folder) -> None:
        known = {one["sha256"] for one in self.adapters}
        self.adapters += [folder.held for folder in folders if folder.sha256 not in known]

    async def publish(self) -> str:
        self._etag += 1
        document: dict[str, Any] = {
            "pool": POOL,
            "etag": str(self._etag),
            "models": self.models,
            "adapters": self.adapters,
        }
        document |= {"rewritten": True} if self.rewritten else {}
        await self.operator.set(json.loads(json.dumps(document)))
        return str(self._etag)

    async def put(self, pod: Running, folder: Folder, body: bytes | None = None) -> tuple[int, str]:
        url = f"{pod.deliveries}/adapters/{folder.sha256}"
        async with self.http.put(url, data=folder.tar() if body is None else body) as answer:
            return answer.status, await answer.text()

    async def ask(self, pod: Running, model: str, *, key: str = "", stream: bool = False, **more: Any) -> "Answer":
        headers = ({"Authorization": f"Bearer {key}"} if key else {}) | more.pop("headers", {})
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": stream, **more}
        async with self.http.post(f"{pod.clients}/v1/chat/completions", json=body, headers=headers) as answer:
            return Answer(answer.status, await answer.text(), dict(answer.headers))

    async def state(self, pod: Running) -> serving.State:
        async with self.http.get(f"{pod.deliveries}/state") as answer:
            return serving.State.model_validate_json(await answer.text())

    async def ready(self, pod: Running, *folders: Folder, seconds: float = 15.0) -> serving.State:
        """The pod's state once it has these adapters ready."""
        async with asyncio.timeout(seconds):
            while True:
                state = await self.state(pod)
                states = {one.sha256: one.state for one in state.adapters}
                if state.engine_ready and all(states.get(folder.sha256) == "Ready" for folder in folders):
                    return state
                await asyncio.sleep(0.02)

    async def until(self, holds: Callable[[], Any], seconds: float = 15.0) -> None:
        async with asyncio.timeout(seconds):
            while not holds():  # noqa: ASYNC110 - a test's conditions are of many kinds
                await asyncio.sleep(0.01)

    async def delivered(self, pod: Running, *folders: Folder) -> None:
        """The pod has the index of now, and these adapters, ready."""
        etag = await self.publish()
        await self.until(lambda: pod.pod._index.table is not None and pod.pod._index.table.index.etag == etag)
        for folder in folders:
            status, text = await self.put(pod, folder)
            assert status == 201, text
        await self.ready(pod, *folders)


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    text: str
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def events(self) -> list[Any]:
        lines = [line[5:].strip() for line in self.text.splitlines() if line.startswith("data:")]
        return [json.loads(line) for line in lines if line != "[DONE]"]

    @property
    def says(self) -> str:
        if self.text.startswith("data:"):
            return "".join(event["choices"][0]["delta"]["content"] for event in self.events if event["choices"])
        return self.json["choices"][0]["message"]["content"]

    @property
    def error(self) -> Any:
        return self.json["error"]


@pytest.fixture
async def world(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    found = socket.getaddrinfo
    async with aiohttp.ClientSession() as session:
        made = World(tmp_path, session)

        def resolve(host: Any, *arguments: Any, **more: Any) -> Any:
            if host != "pool-pods":
                return found(host, *arguments, **more)
            return [one for address in made.addresses for one in found(address, *arguments, **more)]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        made.index_url = f"http://127.0.0.1:{await made.listen(made.operator.app())}"
        async with made.stack:
            yield made
