"""The activator: requests that come while no server of the pool, or of the job, can answer are held and answered, or refused."""

import argparse
import asyncio
import json
from typing import Any

import pytest
from aiohttp import web
from tests.trainer.gateway import conftest, double

from finetune_api import serving
from finetune_trainer.gateway import activator, settings
from support import ports

HERE = "127.0.0.9"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activator, "LOOK", 0.02)
    monkeypatch.setattr(activator, "REFUSING", 0.1)


class Front:
    """An activator on an address of its own, with the ports of the pool's pods, of which none is there yet."""

    def __init__(self, world: conftest.World) -> None:
        self.world, self.port = world, ports.free()
        self.clients, self.deliveries = f"http://{HERE}:{self.port}", f"http://{HERE}:{world.port}"
        world.addresses = []

    async def start(self, hold: float = 10.0, **options: Any) -> "Front":
        world = self.world
        wanted = settings.Settings(
            pool=conftest.POOL, index=world.index_url, adapters=world.folder / "activator", peers="pool-pods",
            base_model=double.BASE, model_path="", max_rank=16, host=HERE, port=self.port, delivery_port=world.port,
            hold=hold, **options,
        )  # fmt: skip
        made = activator.Activator(wanted)
        world.stack.push_async_callback(made.stop, await made.start())
        await world.publish()
        await world.until(lambda: not made._behind.lacks)
        return self

    async def of_job(self, hold: float = 10.0, **options: Any) -> "Front":
        """It stands before the servers of one job, `mail`, without an index."""
        return await self.start(hold, models=("mail",), **options)

    async def ask(self, model: str = "mail", **more: Any) -> conftest.Answer:
        return await self.world.ask(self, model, **more)  # type: ignore[arg-type]

    async def state(self) -> serving.State:
        return await self.world.state(self)  # type: ignore[arg-type]

    async def held(self, count: int = 1) -> None:
        async with asyncio.timeout(5):
            while (await self.state()).waiting != count:  # noqa: ASYNC110 - over HTTP
                await asyncio.sleep(0.01)

    async def pod(self, *folders: conftest.Folder, **options: Any) -> conftest.Running:
        """A pod of the pool starts, has the adapters, and is found."""
        made = await self.world.pod(port=self.port, **options)
        await self.world.delivered(made, *folders)
        self.world.addresses = ["127.0.0.1"]
        return made


@pytest.fixture
def mail(world: conftest.World) -> conftest.Folder:
    """The adapter of the model `mail`."""
    made = world.adapter("tuned")
    world.serve("mail", (made, 100))
    return made


async def test_a_request_is_held_until_a_pod_has_its_adapter_and_gets_that_pods_answer(
    world: conftest.World, mail: conftest.Folder
) -> None:
    front = await Front(world).start()
    assert (await front.state()).idle_seconds is None, "nobody asked"
    asked = [asyncio.create_task(front.ask()), asyncio.create_task(front.ask(stream=True))]
    await front.held(2)
    assert (await front.state()).idle_seconds == 0
    pod = await front.pod(mail)
    whole, stream = await asyncio.gather(*asked)
    assert (whole.status, whole.says, whole.json["model"]) == (200, "tuned", "mail")
    assert (stream.status, stream.says, stream.headers["Cache-Control"]) == (200, "tuned", "no-cache")
    assert whole.headers["Connection"] == "close", "the next request goes to a pod"
    assert {request["model"] for request in pod.engine.requests} == {mail.sha256}
    state = await front.state()
    assert (state.waiting, state.running, state.engine_ready) == (0, 0, False)
    assert state.idle_seconds is not None


async def test_the_end_of_holding_and_a_full_room_are_503_with_a_time_to_come_again(
    world: conftest.World, mail: conftest.Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = await Front(world).start(hold=0.5)
    monkeypatch.setattr(activator, "HELD", 1)
    first = asyncio.create_task(front.ask())
    await front.held()
    for answer in (await front.ask(), await first):
        assert (answer.status, answer.headers["Retry-After"], answer.error["code"]) == (503, "20", "not_ready")
    await front.held(0)


async def test_an_owner_who_prefers_it_has_requests_refused_which_still_count_as_requests(
    world: conftest.World, mail: conftest.Folder
) -> None:
    front = await Front(world).start(hold=0)
    answer = await front.ask()
    assert (answer.status, answer.headers["Retry-After"]) == (503, "20")
    assert "is not held" in answer.error["message"]
    assert (await front.state()).idle_seconds is not None


async def test_who_has_no_key_or_names_no_model_wakes_nobody(world: conftest.World, mail: conftest.Folder) -> None:
    keys = world.folder / "keys"
    keys.mkdir()
    (keys / "ml").write_text("mine")
    front = await Front(world).start(keys=keys)
    assert (await front.ask(key="guessed")).status == 401
    assert (await front.ask("unknown", key="mine")).status == 404
    assert (await front.state()).idle_seconds is None
    async with world.http.get(f"{front.clients}/v1/models", headers={"Authorization": "Bearer mine"}) as answer:
        assert [one["id"] for one in (await answer.json())["data"]] == ["mail"]


async def test_a_pod_that_cannot_answer_after_all_loses_no_request(
    world: conftest.World, mail: conftest.Folder
) -> None:
    """It reports that it can, and its port for clients is closed; then another pod comes."""
    front = await Front(world).start()
    ready = {"sha256": mail.sha256, "state": "Ready"}
    report = {"pool": conftest.POOL, "etag": "1", "engineReady": True, "adapters": [ready]}
    looks = 0

    async def state(_: web.Request) -> web.Response:
        nonlocal looks
        looks += 1
        return web.json_response(report)

    app = web.Application()
    app.router.add_get("/state", state)
    await world.listen(app, "127.0.0.3", world.port)
    world.addresses = ["127.0.0.3"]
    asked = asyncio.create_task(front.ask())
    await world.until(lambda: looks > 2)
    await front.pod(mail)
    assert (await asked).says == "tuned"


async def test_an_address_that_belongs_to_another_pool_by_now_gets_no_request(
    world: conftest.World, mail: conftest.Folder
) -> None:
    front = await Front(world).start(hold=0.3)
    seen: list[str] = []

    async def anything(request: web.Request) -> web.Response:
        seen.append(request.path)
        ready = {"sha256": mail.sha256, "state": "Ready"}
        return web.json_response({"pool": "ml/other", "etag": "1", "engineReady": True, "adapters": [ready]})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", anything)
    await world.listen(app, "127.0.0.3", world.port)
    await world.listen(app, "127.0.0.3", front.port)
    world.addresses = ["127.0.0.3"]
    assert (await front.ask()).status == 503
    assert set(seen) == {"/state"}


async def test_a_client_that_leaves_leaves_room(world: conftest.World, mail: conftest.Folder) -> None:
    front = await Front(world).start()
    asked = asyncio.create_task(front.ask())
    await front.held()
    asked.cancel()
    await front.held(0)


async def test_a_pod_says_how_long_no_client_asked(world: conftest.World, mail: conftest.Folder) -> None:
    pod = await world.pod()
    assert (await world.state(pod)).idle_seconds is None, "it was never ready"
    await world.delivered(pod, mail)
    async with world.http.get(f"{pod.deliveries}/readyz") as answer:
        assert answer.status == 200
    await asyncio.sleep(0.2)
    before = (await world.state(pod)).idle_seconds
    assert (await world.ask(pod, "unknown")).status == 404
    again = (await world.state(pod)).idle_seconds
    pod.engine.gate.clear()
    asked = asyncio.create_task(world.ask(pod, "mail"))
    await world.until(lambda: pod.engine.requests)
    assert before is not None
    assert again is not None
    assert 0.2 <= before <= again
    assert (await world.state(pod)).idle_seconds == 0
    pod.engine.gate.set()
    assert json.loads((await asked).text)["model"] == "mail"
    after = (await world.state(pod)).idle_seconds
    assert after is not None
    assert after < again


class Server:
    """vLLM of one job: its /health, and what it was asked."""

    def __init__(self) -> None:
        self.healthy, self.asked = False, list[tuple[str, str, str]]()

    async def start(self, world: conftest.World, port: int) -> "Server":
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_post("/v1/{path:.*}", self._answer)
        await world.listen(app, "127.0.0.3", port)
        world.addresses = ["127.0.0.3"]
        return self

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def _answer(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, request.headers.get("Authorization", ""), await request.text()))
        return web.json_response({"says": "tuned"})


async def test_a_request_for_servers_of_one_job_is_held_until_one_is_healthy_and_comes_as_it_was_sent(
    world: conftest.World,
) -> None:
    front = await Front(world).of_job()
    asked = [asyncio.create_task(front.ask(key="k")), asyncio.create_task(front.ask(double.BASE))]
    await front.held(2)
    server = await Server().start(world, front.port)
    await asyncio.sleep(0.1)
    assert not server.asked, "it starts"
    server.healthy = True
    assert [(await one).json for one in asked] == [{"says": "tuned"}] * 2
    path, key, body = server.asked[0]
    assert (path, key, json.loads(body)["model"]) == ("/v1/chat/completions", "Bearer k", "mail")
    async with world.http.post(f"{front.clients}/v1/responses", data=b'{"input": "hello"}') as answer:
        assert answer.status == 200, "vLLM's other paths, and a request without a name, are its own servers' to judge"
    assert (await front.state()).idle_seconds is not None


async def test_whoever_lacks_the_jobs_key_or_names_another_model_or_only_looks_wakes_nobody(
    world: conftest.World,
) -> None:
    keys = world.folder / "keys"
    keys.mkdir()
    (keys / "ml").write_text("mine\n")
    front = await Front(world).of_job(hold=0, keys=keys)
    assert (await front.ask(key="guessed")).status == 401
    assert (await front.ask()).error["message"].startswith("a key is needed")
    assert (await front.ask("unknown", key="mine")).status == 404
    mine = {"Authorization": "Bearer mine"}
    async with world.http.post(f"{front.clients}/v1/completions", data=b"{", headers=mine) as answer:
        assert answer.status == 400
    async with world.http.get(f"{front.clients}/v1/models", headers=mine) as answer:
        assert [one["id"] for one in (await answer.json())["data"]] == ["mail", double.BASE]
    for path, status in (("/health", 200), ("/v1/models", 401), ("/metrics", 404), ("/v1/../metrics", 404)):
        async with world.http.get(front.clients + path) as answer:
            assert answer.status == status, path
    assert (await front.state()).idle_seconds is None
    refused = await front.ask(key="mine")
    assert (refused.status, refused.headers["Retry-After"]) == (503, "20")
    assert (await front.state()).idle_seconds is not None


def test_options_that_do_not_go_together_are_refused() -> None:
    parser = argparse.ArgumentParser()
    settings.add_arguments(parser)
    common = ["--pool=ml/mail", "--peers=mail-servers.ml.svc", "--base-model=base"]
    made = settings.of(parser.parse_args([*common, "--model=mail", "--hold=0"]))
    assert (made.models, made.hold, made.namespace) == (("mail",), 0, "ml")
    for more in ([], ["--model=mail"], ["--hold=5"], ["--index=http://operator:9500"]):
        with pytest.raises(SystemExit, match="gateway: "):
            settings.of(parser.parse_args([*common, *more]))
