"""What clients of a pool may do, and what they get: real sockets, a double of the engine behind the gateway."""

import asyncio
import contextlib
import hashlib
import json
import pathlib
import types
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.trainer.gateway import double
from tests.trainer.gateway.conftest import Running, World

from finetune_trainer.gateway import loading, proxy


async def test_an_answer_has_the_served_name_and_comes_from_the_adapter(world: World) -> None:
    desk = world.adapter("answers of the desk")
    world.serve("desk", (desk, 100))
    pod = await world.pod()
    await world.delivered(pod, desk)
    answer = await world.ask(pod, "desk")
    assert answer.status == 200
    assert answer.says == "answers of the desk"
    assert answer.json["model"] == "desk"
    assert pod.engine.requests[-1]["model"] == desk.sha256


async def test_a_stream_has_the_served_name_in_every_chunk_and_usage_only_on_request(world: World) -> None:
    desk = world.adapter("streamed words of the desk")
    world.serve("desk", (desk, 100))
    pod = await world.pod()
    await world.delivered(pod, desk)
    answer = await world.ask(pod, "desk", stream=True)
    assert answer.says == "streamed words of the desk"
    assert {event["model"] for event in answer.events} == {"desk"}
    assert answer.text.endswith("data: [DONE]\n\n")
    assert not any(event.get("usage") for event in answer.events)
    assert desk.sha256 not in answer.text
    counted = await world.ask(pod, "desk", stream=True, stream_options={"include_usage": True})
    assert counted.events[-1]["usage"]["completion_tokens"] == pod.engine.tokens
    traffic = (await world.state(pod)).traffic[0]
    assert (traffic.requests, traffic.prompt_tokens, traffic.answer_tokens) == (2, 14, 6)
    assert sum(traffic.first_token.counts) == 2


async def test_a_stream_arrives_piece_by_piece(world: World) -> None:
    desk = world.adapter("one two three")
    world.serve("desk", (desk, 100))
    pod = await world.pod()
    await world.delivered(pod, desk)
    pod.engine.gate.clear()
    body = {"model": "desk", "messages": [], "stream": True}
    answer = await world.http.post(f"{pod.clients}/v1/chat/completions", json=body)
    assert b'"model":"desk"' in await answer.content.readuntil(b"\n\n")
    assert pod.pod._proxy.running == 1
    pod.engine.gate.set()
    assert b"[DONE]" in await answer.content.read()


async def test_completions_are_passed_on_as_well(world: World) -> None:
    desk = world.adapter("continued")
    world.serve("desk", (desk, 100))
    pod = await world.pod()
    await world.delivered(pod, desk)
    async with world.http.post(f"{pod.clients}/v1/completions", json={"model": "desk", "prompt": "x"}) as answer:
        document = await answer.json()
    assert (document["choices"][0]["text"], document["model"]) == ("continued", "desk")


@pytest.mark.parametrize(
    "name",
    [
        "../desk",
        "/adapters/x",
        "..%2fdesk",
        "nothing",
        double.BASE,
        "other/../ml/desk",
        "ml",
        "desk\0",
        "DESK",
        "ml//desk",
    ],
)
async def test_names_that_the_index_has_not_do_not_exist(world: World, name: str) -> None:
    desk = world.adapter("x")
    world.serve("desk", (desk, 100))
    pod = await world.pod()
    await world.delivered(pod, desk)
    answer = await world.ask(pod, name)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
    assert (await world.ask(pod, desk.sha256)).status == 404, "the engine's names are not the clients'"
    assert not pod.engine.requests


@pytest.mark.parametrize(
    "method, path",
    [
        ("POST", "/v1/load_lora_adapter"), ("POST", "/v1/unload_lora_adapter"), ("POST", "/v1/responses"),
        ("POST", "/v1/embeddings"), ("POST", "/tokenize"), ("GET", "/metrics"), ("GET", "/state"), ("GET", "/health"),
        ("POST", "/v1/chat/completions/../load_lora_adapter"), ("POST", "/v1/%6coad_lora_adapter"),
        ("PUT", "/adapters/" + "0" * 64), ("GET", "/v1/chat/completions"), ("POST", "/v1//load_lora_adapter"),
    ],
)  # fmt: skip
async def test_other_paths_of_the_engine_are_out_of_reach(world: World, method: str, path: str) -> None:
    pod = await world.pod()
    await world.delivered(pod)
    calls = list(pod.engine.calls)
    async with world.http.request(method, f"{pod.clients}{path}", json={"lora_name": "x", "lora_path": "/"}) as answer:
        assert answer.status in (404, 405)
        assert (await answer.json())["error"]["message"]
    assert pod.engine.calls == calls


@pytest.mark.parametrize(
    "body, status", [(b"{", 400), (b"[]", 400), (b"{}", 400), (b'{"model": 3}', 400), (b'{"model": ""}', 400)]
)
async def test_a_request_without_a_document_or_a_model_is_refused(world: World, body: bytes, status: int) -> None:
    pod = await world.pod()
    await world.delivered(pod)
    async with world.http.post(f"{pod.clients}/v1/chat/completions", data=body) as answer:
        assert answer.status == status
        assert (await answer.json())["error"]["type"] == "invalid_request_error"


async def test_the_last_of_two_models_in_one_document_is_the_only_one(world: World) -> None:
    """What is checked is what is sent."""
    own, other = world.adapter("own"), world.adapter("other", namespace="secret")
    world.serve("desk", (own, 100))
    world.serve("hidden", (other, 100), namespace="secret")
    pod = await world.pod()
    await world.delivered(pod, own, other)
    body = b'{"model": "hidden", "model": "desk", "messages": []}'
    async with world.http.post(f"{pod.clients}/v1/chat/completions", data=body) as answer:
        assert (await answer.json())["choices"][0]["message"]["content"] == "own"
    assert list(pod.engine.requests[-1]) == ["model", "messages"]


async def test_the_adapters_template_is_sent_and_one_of_a_client_refused(world: World) -> None:
    desk = world.adapter("x", chat_template_jinja="{{ messages }}")
    world.serve("desk", (desk, 100))
    pod = await world.pod()
    await world.delivered(pod, desk)
    await world.ask(pod, "desk")
    assert pod.engine.requests[-1]["chat_template"] == "{{ messages }}"
    for more in ({"chat_template": "{{ x }}"}, {"chat_template_kwargs": {"chat_template": "{{ x }}"}}):
        answer = await world.ask(pod, "desk", **more)
        assert (answer.status, answer.error["param"]) == (400, "chat_template")


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("chat/completions", {"prompt_logprobs": 0}),
        ("completions", {"prompt_logprobs": -1}),
        ("completions", {"echo": True, "logprobs": 0}),
        ("chat/completions", {"echo": True}),
    ],
)
async def test_log_probabilities_of_prompts_are_refused(world: World, path: str, more: dict[str, Any]) -> None:
    desk = world.adapter("x")
    world.serve("desk", (desk, 100))
    pod = await world.pod()
    await world.delivered(pod, desk)
    body = {"model": "desk", "messages": [], "prompt": "hello", **more}
    async with world.http.post(f"{pod.clients}/v1/{path}", json=body) as answer:
        assert (answer.status, (await answer.json())["error"]["param"]) == (400, next(iter(more)))
    assert pod.engine.requests == []
    plain = {"model": "desk", "prompt": "hello", "echo": True, "prompt_logprobs": None}
    async with world.http.post(f"{pod.clients}/v1/completions", json=plain) as answer:
        assert answer.status == 200


async def test_requests_beyond_the_memory_are_asked_to_come_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "ROOM", 500_000)
    desk = world.adapter("x")
    world.serve("desk", (desk, 100))
    pod = await world.pod()
    await world.delivered(pod, desk)
    pod.engine.gate.clear()
    asking = asyncio.create_task(world.ask(pod, "desk", user="u" * 100_000))
    await world.until(lambda: pod.engine.requests)
    more = await world.ask(pod, "desk", user="u" * 100_000)
    assert (more.status, more.headers["Retry-After"], more.error["code"]) == (503, "5", "busy")
    pod.engine.gate.set()
    assert (await asking).says == "x"
    for _ in range(5):
        assert (await world.ask(pod, "desk", user="u" * 100_000)).says == "x", "what is over leaves room"
    pod.engine.text = "long" * 100_000
    assert (await world.ask(pod, "desk")).error["code"] == "answer_too_large"
    assert (await world.ask(pod, "desk", stream=True)).says == pod.engine.text
    pod.engine.text = "long" * 30_000
    for _ in range(3):
        assert (await world.ask(pod, "desk")).says == pod.engine.text
    assert [one.requests for one in (await world.state(pod)).traffic] == [11]


async def test_an_answer_for_which_there_is_no_memory_is_a_failure(world: World) -> None:
    desk = world.adapter("long" * 10_000)
    world.serve("desk", (desk, 100))
    pod = await world.pod()
    await world.delivered(pod, desk)
    pod.pod._proxy._room = proxy.Room(1000)
    answer = await world.ask(pod, "desk")
    assert (answer.status, answer.error["code"]) == (503, "busy")
    (traffic,) = (await world.state(pod)).traffic
    assert (traffic.requests, traffic.errors) == (1, 1)


async def test_a_request_that_does_not_come_whole_gives_its_memory_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "BODY_SECONDS", 0.3)
    pod = await world.pod()
    await world.delivered(pod)

    async def part() -> AsyncIterator[bytes]:
        yield b"x" * 100_000
        await asyncio.sleep(60)

    async with world.http.post(f"{pod.clients}/v1/chat/completions", data=part()) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (408, "timeout")
    assert pod.pod._room._left == proxy.ROOM


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_does_not_read_gives_the_memory_back(
    world: World, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(proxy, "UNREAD_SECONDS", 0.5)
    desk = world.adapter("x")
    world.serve("desk", (desk, 100))
    pod = await world.pod()
    await world.delivered(pod, desk)
    pod.engine.text, pod.engine.tokens = "long" * (3 << 20), 24
    lost: list[bool] = []
    monkeypatch.setattr(pod.pod._loading, "engine_lost", lambda: lost.append(True))
    body = json.dumps({"model": "desk", "messages": [], "stream": stream}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(pod.clients.rsplit(":", 1)[1]), limit=1024)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: pool\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await reader.readline()
    assert pod.pod._proxy.running == 1
    await world.until(lambda: pod.pod._proxy.running == 0)
    assert (pod.pod._room._left, pod.pod._proxy._room._left) == (proxy.ROOM, proxy.ROOM)
    assert not lost
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(64 << 20)
    writer.close()


async def test_a_document_of_too_many_values_is_not_read(world: World) -> None:
    desk = world.adapter("x")
    world.serve("desk", (desk, 100))
    pod = await world.pod()
    await world.delivered(pod, desk)
    lists = b'{"model": "desk", "messages": [' + b"[]," * 1_500_000 + b"[]]}"
    for body in (lists, b" " * (proxy.BODY_BYTES + 1)):
        async with world.http.post(f"{pod.clients}/v1/chat/completions", data=body) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (413, "request_too_large")
    assert (await world.ask(pod, "desk", user="ü" * 1000)).says == "x"


async def test_no_header_of_a_client_reaches_the_engine(world: World) -> None:
    desk = world.adapter("x")
    world.serve("desk", (desk, 100))
    pod = await world.pod()
    await world.delivered(pod, desk)
    await world.ask(
        pod, "desk", headers={"Authorization": "Bearer secret-key", "X-Request-Id": "1", "X-Data-Parallel-Rank": "3"}
    )
    sent = {name.lower() for name in pod.engine.headers[-1]}
    assert sent <= {"host", "accept", "accept-encoding", "content-type", "content-length", "user-agent"}


async def test_an_error_of_the_engine_keeps_its_words_and_the_clients_name(world: World) -> None:
    desk = world.adapter("x")
    world.serve("desk", (desk, 100))
    pod = await world.pod()
    await world.delivered(pod, desk)
    answer = await world.ask(pod, "desk", temperature=3)
    assert (answer.status, answer.error["message"]) == (400, "temperature must be at most 2 for desk")


# --- tenants ---


def keys(folder: pathlib.Path, **entries: str) -> pathlib.Path:
    folder.mkdir(exist_ok=True)
    for namespace, lines in entries.items():
        (folder / namespace).write_text(lines)
    return folder


async def tenants_of(world: World, tmp_path: pathlib.Path, **options: Any) -> Running:
    desk, shop = world.adapter("the desk's", namespace="one"), world.adapter("the shop's", namespace="two")
    world.serve("desk", (desk, 100), namespace="one")
    world.serve("shop", (shop, 100), namespace="two")
    hashed = hashlib.sha256(b"key-of-two").hexdigest()
    pod = await world.pod(
        keys=keys(tmp_path / "keys", one="key-of-one\nolder-key-of-one\n", two=f"sha256:{hashed}\n"), **options
    )
    await world.delivered(pod, desk, shop)
    return pod


async def test_a_key_reaches_its_namespaces_models_and_no_others(world: World, tmp_path: pathlib.Path) -> None:
    pod = await tenants_of(world, tmp_path)
    assert (await world.ask(pod, "desk", key="key-of-one")).says == "the desk's"
    assert (await world.ask(pod, "desk", key="older-key-of-one")).says == "the desk's"
    assert (await world.ask(pod, "shop", key="key-of-two")).says == "the shop's"
    other = await world.ask(pod, "shop", key="key-of-one")
    nothing = await world.ask(pod, "shoq", key="key-of-one")
    assert (other.status, other.text.replace("shop", "shoq")) == (404, nothing.text), "as if it did not exist"
    assert (await world.ask(pod, "two/shop", key="key-of-one")).status == 404
    async with world.http.get(f"{pod.clients}/v1/models", headers={"Authorization": "Bearer key-of-one"}) as answer:
        assert [entry["id"] for entry in (await answer.json())["data"]] == ["desk"]
    async with world.http.get(
        f"{pod.clients}/v1/models/shop", headers={"Authorization": "Bearer key-of-one"}
    ) as answer:
        assert answer.status == 404


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer wrong", "key-of-one", "Basic key-of-one", "Bearer key-of-on"]
)
async def test_a_request_without_a_known_key_is_refused(
    world: World, tmp_path: pathlib.Path, header: str | None
) -> None:
    pod = await tenants_of(world, tmp_path)
    answer = await world.ask(pod, "desk", headers={"Authorization": header} if header is not None else {})
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert "key-of-one" not in answer.text
    assert not pod.engine.requests


async def test_a_hash_in_the_secret_is_not_a_key(world: World, tmp_path: pathlib.Path) -> None:
    pod = await tenants_of(world, tmp_path)
    hashed = hashlib.sha256(b"key-of-two").hexdigest()
    assert (await world.ask(pod, "shop", key=f"sha256:{hashed}")).status == 401
    assert (await world.ask(pod, "shop", key=hashed)).status == 401


async def test_keys_rotate_and_tenants_come_without_a_restart(world: World, tmp_path: pathlib.Path) -> None:
    pod = await tenants_of(world, tmp_path)
    keys(tmp_path / "keys", one="a-newer-key\n", three="key-of-three\n")
    assert (await world.ask(pod, "desk", key="a-newer-key")).status == 200
    assert (await world.ask(pod, "desk", key="key-of-one")).status == 401
    third = world.adapter("the third's", namespace="three")
    world.serve("desk", (third, 100), namespace="three")
    await world.delivered(pod, third)
    assert (await world.ask(pod, "desk", key="key-of-three")).says == "the third's"
    (tmp_path / "keys" / "three").unlink()
    assert (await world.ask(pod, "desk", key="key-of-three")).status == 401


async def test_a_key_of_two_namespaces_names_the_namespace_where_both_have_the_model(
    world: World, tmp_path: pathlib.Path
) -> None:
    first, second = world.adapter("first", namespace="one"), world.adapter("second", namespace="two")
    world.serve("desk", (first, 100), namespace="one")
    world.serve("desk", (second, 100), namespace="two")
    pod = await world.pod(keys=keys(tmp_path / "keys", one="both-of-them", two="both-of-them"))
    await world.delivered(pod, first, second)
    assert (await world.ask(pod, "desk", key="both-of-them")).status == 404
    assert (await world.ask(pod, "two/desk", key="both-of-them")).says == "second"
    async with world.http.get(f"{pod.clients}/v1/models", headers={"Authorization": "Bearer both-of-them"}) as answer:
        assert [entry["id"] for entry in (await answer.json())["data"]] == ["one/desk", "two/desk"]


async def test_without_keys_only_the_pools_own_namespace_is_served(world: World) -> None:
    own, other = world.adapter("own"), world.adapter("other", namespace="other")
    world.serve("desk", (own, 100))
    world.serve("shop", (other, 100), namespace="other")
    pod = await world.pod()
    await world.delivered(pod, own, other)
    assert (await world.ask(pod, "desk")).status == 200
    assert (await world.ask(pod, "shop")).status == 404


async def test_the_base_model_is_served_only_where_the_pool_says_so(world: World, tmp_path: pathlib.Path) -> None:
    pod = await tenants_of(world, tmp_path, serve_base_model=True)
    answer = await world.ask(pod, double.BASE, key="key-of-one")
    assert (answer.says, answer.json["model"]) == ("base", double.BASE)
    assert (await world.ask(pod, double.BASE)).status == 401
    async with world.http.get(f"{pod.clients}/v1/models", headers={"Authorization": "Bearer key-of-one"}) as listed:
        assert [entry["id"] for entry in (await listed.json())["data"]] == ["desk", double.BASE]


# --- interruptions ---


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels_the_engines_work_and_is_counted_apart(world: World, stream: bool) -> None:
    desk = world.adapter("long answer")
    world.serve("desk", (desk, 100))
    pod = await world.pod()
    await world.delivered(pod, desk)
    pod.engine.pause = 30.0
    asking = asyncio.create_task(world.ask(pod, "desk", stream=stream))
    await world.until(lambda: pod.engine.requests)
    await asyncio.sleep(0.1)
    asking.cancel()
    await world.until(lambda: pod.engine.cancelled == 1)
    await world.until(lambda: pod.pod._proxy.running == 0)
    (traffic,) = (await world.state(pod)).traffic
    assert (traffic.requests, traffic.abandoned, traffic.errors, traffic.answers) == (1, 1, 0, 0)


@pytest.mark.parametrize("method", ["prepare", "write", "write_eof"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_cannot_be_written_to_is_no_engine_that_is_lost(
    world: World, monkeypatch: pytest.MonkeyPatch, stream: bool, method: str
) -> None:
    desk = world.adapter("answer")
    world.serve("desk", (desk, 100))
    pod = await world.pod()
    await world.delivered(pod, desk)

    async def gone(*_: Any) -> None:
        raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")

    lost: list[bool] = []
    monkeypatch.setattr(pod.pod._loading, "engine_lost", lambda: lost.append(True))
    made = {name: type(name, (getattr(web, name),), {method: gone}) for name in ("StreamResponse", "Response")}
    monkeypatch.setattr(proxy, "web", types.SimpleNamespace(**{**vars(web), **made}))
    with contextlib.suppress(aiohttp.ClientError):
        await world.ask(pod, "desk", stream=stream)
    await world.until(lambda: pod.pod._proxy.running == 0)
    assert not lost
    assert (await world.state(pod)).traffic[0].errors == 0


async def test_a_client_that_leaves_after_the_last_line_of_a_stream_has_its_answer(world: World) -> None:
    desk = world.adapter("answer")
    world.serve("desk", (desk, 100))
    pod = await world.pod()
    await world.delivered(pod, desk)
    pod.engine.lingers = 30.0
    body = {"model": "desk", "messages": [], "stream": True}
    async with world.http.post(f"{pod.clients}/v1/chat/completions", json=body) as answer:
        while b"[DONE]" not in await answer.content.readline():
            pass
        answer.close()
    await world.until(lambda: pod.pod._proxy.running == 0)
    (traffic,) = (await world.state(pod)).traffic
    assert (traffic.requests, traffic.abandoned, sum(traffic.seconds.counts)) == (1, 0, 1)


async def test_a_mistake_of_the_client_is_in_no_measure_of_the_revision(world: World) -> None:
    desk = world.adapter("x")
    world.serve("desk", (desk, 100))
    pod = await world.pod(serve_base_model=True)
    await world.delivered(pod, desk)
    assert (await world.ask(pod, "desk", temperature=3)).status == 400
    assert (await world.ask(pod, double.BASE)).status == 200
    state = await world.state(pod)
    assert [(one.requests, one.empty) for one in state.traffic] == [(0, 0)]
    assert state.requests == 2


async def test_a_stream_that_the_engine_interrupts_ends_with_an_error(world: World) -> None:
    desk = world.adapter("long answer")
    world.serve("desk", (desk, 100))
    pod = await world.pod()
    await world.delivered(pod, desk)
    pod.engine.broken = True
    answer = await world.ask(pod, "desk", stream=True)
    assert answer.events[-1]["error"]["code"] == "engine_lost"
    assert "[DONE]" not in answer.text
    traffic = (await world.state(pod)).traffic[0]
    assert (traffic.requests, traffic.errors) == (1, 1)


async def test_while_the_engine_is_away_clients_are_asked_to_come_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = world.adapter("x")
    world.serve("desk", (desk, 100))
    pod = await world.pod()
    await world.delivered(pod, desk)

    async def away(*_: Any) -> bool:
        return False

    monkeypatch.setattr(pod.pod._loading._engine, "healthy", away)
    await world.until(lambda: not pod.pod._loading.engine_ready)
    answer = await world.ask(pod, "desk")
    assert (answer.status, answer.headers["Retry-After"], answer.error["type"]) == (503, "5", "server_error")
    async with world.http.get(f"{pod.deliveries}/readyz") as ready:
        assert ready.status == 503


async def test_a_restarted_engine_gets_its_adapters_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faster than any check could notice it: the first request does."""
    desk = world.adapter("still here")
    world.serve("desk", (desk, 100))
    pod = await world.pod()
    await world.delivered(pod, desk)
    monkeypatch.setattr(loading, "LIST_EVERY", 3600.0)
    pod.engine.adapters.clear()
    pod.engine.memory.clear()
    answer = await world.ask(pod, "desk")
    assert (answer.status, answer.says) == (200, "still here")
    assert pod.engine.calls.count(("load", desk.sha256)) == 2


async def test_a_request_waits_for_its_adapter_and_not_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = world.adapter("late")
    world.serve("desk", (desk, 100))
    pod = await world.pod()
    await world.delivered(pod)
    asking = asyncio.create_task(world.ask(pod, "desk"))
    await world.until(lambda: pod.pod._loading.waiting[desk.sha256] == 1)
    assert (await world.state(pod)).waiting == 1
    assert (await world.put(pod, desk))[0] == 201
    assert (await asking).says == "late"
    never = world.adapter("never")
    world.serve("never", (never, 100))
    await world.delivered(pod)
    monkeypatch.setattr(proxy, "LOAD_SECONDS", 0.1)
    answer = await world.ask(pod, "never")
    assert (answer.status, answer.error["code"]) == (503, "not_ready")
    assert "Missing" in answer.error["message"]
    traffic = {one.name: one for one in (await world.state(pod)).traffic}
    assert (traffic["never"].requests, traffic["never"].errors) == (0, 0), "no revision can help that a pod lacks it"


async def test_an_adapter_that_the_engine_refuses_is_its_revisions_failure(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "LOAD_SECONDS", 0.5)
    large = world.adapter("x")
    world.serve("large", (large, 100))
    pod = await world.pod(engine=double.Engine(max_rank=4))
    await world.delivered(pod)
    assert (await world.put(pod, large))[0] == 201
    await world.until(lambda: pod.pod._loading.state_of(large.sha256).message)
    answer = await world.ask(pod, "large")
    assert (answer.status, answer.error["code"]) == (503, "not_ready")
    (traffic,) = (await world.state(pod)).traffic
    assert (traffic.requests, traffic.errors) == (1, 1)
