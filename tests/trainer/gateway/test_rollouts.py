"""Which revision answers, what is counted, and that no answer ever comes from a wrong adapter."""

import asyncio
import collections
import json
import random
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.trainer.gateway.conftest import World

from finetune_api import metrics, serving
from finetune_trainer.gateway import answers, routing
from finetune_trainer.gateway import pod as gateway


def served(**weights: int) -> serving.Served:
    routes = [serving.Route(revision=name, sha256="0" * 64, weight=weight) for name, weight in weights.items()]
    return serving.Served(namespace="ml", job="job", name="desk", routes=routes)


def test_a_growing_weight_takes_values_over_and_never_gives_them_back() -> None:
    values = [f"user-{number}" for number in range(1000)]
    before: set[str] = set()
    for weight in (0, 1, 5, 10, 25, 50, 75, 99, 100):
        new = {
            value for value in values if routing.choose(served(old=100 - weight, new=weight), value).revision == "new"
        }
        assert before <= new
        assert abs(len(new) / len(values) - weight / 100) < 0.05
        assert new == {
            value for value in values if routing.choose(served(new=weight, old=100 - weight), value).revision == "new"
        }
        before = new


@given(st.text(), st.integers(0, 100), st.integers(0, 100))
@settings(max_examples=200, deadline=None)
def test_every_value_is_monotone(value: str, one: int, other: int) -> None:
    less, more = sorted((one, other))
    if routing.choose(served(old=100 - less, new=less), value).revision == "new":
        assert routing.choose(served(old=100 - more, new=more), value).revision == "new" or not value


def test_requests_without_a_value_follow_the_weights() -> None:
    model = served(old=80, new=20)
    count = collections.Counter(routing.choose(model, None).revision for _ in range(4000))
    assert 600 < count["new"] < 1000


def test_a_weight_of_nothing_gets_nothing() -> None:
    assert {routing.choose(served(old=100, new=0), None).revision for _ in range(200)} == {"old"}


def test_the_first_header_decides_then_the_user() -> None:
    def request(**headers: str) -> types.SimpleNamespace:
        return types.SimpleNamespace(headers={name.replace("_", "-"): value for name, value in headers.items()})

    both = request(x_conversation_id="a", x_user_id="b")
    assert gateway.sticky(both, {"user": "c"}) == "x-conversation-id=a"
    assert gateway.sticky(request(x_user_id="b"), {"user": "c"}) == "x-user-id=b"
    assert gateway.sticky(request(), {"user": "c"}) == "user=c"
    assert gateway.sticky(request(), {"user": 3}) is None


async def test_a_conversation_stays_at_its_revision_while_the_weight_grows(world: World) -> None:
    old, new = world.adapter("old"), world.adapter("new")
    world.serve("desk", (old, 100), (new, 0))
    pod = await world.pod()
    await world.delivered(pod, old, new)
    users = [f"user-{number}" for number in range(20)]
    before: set[str] = set()
    for weight in (0, 30, 60, 100):
        world.serve("desk", (old, 100 - weight), (new, weight))
        await world.delivered(pod)
        answered = {user: (await world.ask(pod, "desk", user=user)).says for user in users}
        assert answered == {user: (await world.ask(pod, "desk", user=user)).says for user in users}
        now = {user for user in users if answered[user] == "new"}
        assert before <= now
        before = now
    assert len(before) == 20


async def test_traffic_is_counted_by_revision_and_from_each_step(world: World) -> None:
    schema = json.dumps({"type": "object", "required": ["intent"]})
    desk = world.adapter('{"intent": "refund"}')
    world.serve("desk", (desk, 100), step="1", json_schema=schema)
    pod = await world.pod()
    await world.delivered(pod, desk)
    for stream in (False, True):
        assert (await world.ask(pod, "desk", stream=stream)).status == 200
    pod.engine.text = '{"topic": "refund"}'
    await world.ask(pod, "desk")
    pod.engine.text = "no JSON"
    pod.engine.finish = "length"
    await world.ask(pod, "desk", stream=True)
    pod.engine.text = "  "
    await world.ask(pod, "desk")
    async with asyncio.timeout(10):
        while (traffic := (await world.state(pod)).traffic[0]).checked < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert (traffic.requests, traffic.errors, traffic.empty, traffic.cut) == (5, 0, 1, 2)
    assert (traffic.checked, traffic.invalid) == (5, 3)
    assert (traffic.job, traffic.revision, traffic.step) == ("job", desk.held["revision"], "1")
    assert sum(traffic.seconds.counts) == 5
    world.serve("desk", (desk, 100), step="2", json_schema=schema)
    await world.delivered(pod)
    await world.ask(pod, "desk")
    traffic = (await world.state(pod)).traffic[0]
    assert (traffic.step, traffic.requests) == ("2", 1)


async def test_metrics_have_name_namespace_and_revision_and_end_with_the_model(world: World) -> None:
    desk = world.adapter("x")
    world.serve("desk", (desk, 100))
    pod = await world.pod()
    await world.delivered(pod, desk)
    await world.ask(pod, "desk")
    await world.ask(pod, "nothing")

    async def scraped() -> str:
        async with world.http.get(f"{pod.deliveries}/metrics") as answer:
            return await answer.text()

    labels = f'finetunejob="job",model="desk",namespace="ml",revision="{desk.held["revision"]}"'
    text = await scraped()
    requests = labels.replace(",revision", ',result="Answered",revision')
    assert f"finetune_gateway_requests_total{{{requests}}} 1.0" in text
    tokens = labels.replace(",model", ',kind="Answer",model')
    assert f"finetune_gateway_tokens_total{{{tokens}}} 3.0" in text
    assert 'finetune_gateway_refused_total{status="404"} 1.0' in text
    assert "finetune_gateway_engine_ready 1.0" in text
    assert 'finetune_gateway_adapters{state="Ready"} 1.0' in text
    assert "finetune_gateway_resident_adapters 1.0" in text
    assert 'vllm:num_requests_waiting{engine="0",model_name="tiny-base"} 7.0' in text, "the engine's load is passed on"
    assert "# TYPE vllm:kv_cache_usage_perc gauge" in text
    assert "by_reason" not in text
    assert "lora_requests_info" not in text
    assert "process_open_fds 41" not in text
    world.models = []
    await world.delivered(pod)
    assert 'model="desk"' not in await scraped()


async def test_an_endpoint_picker_gets_the_adapters_in_use_besides_the_load_and_nothing_of_the_jobs(
    world: World,
) -> None:
    desk = world.adapter("x")
    world.serve("desk", (desk, 100))
    pod = await world.pod()
    await world.delivered(pod, desk)
    await world.ask(pod, "desk")
    async with world.http.get(f"{pod.deliveries}/engine/metrics") as answer:
        names = {line.split()[2] for line in (await answer.text()).splitlines() if line.startswith("# TYPE")}
    assert names == set(metrics.ENDPOINT_PICKER) - {"vllm:num_requests_running"}, "the double has no more of them"


async def test_an_adapter_in_place_of_the_name_answers_as_its_model_while_it_has_a_share(world: World) -> None:
    """As llm-d's endpoint picker sends it."""
    old, new, other = world.adapter("old"), world.adapter("new"), world.adapter("other", namespace="secret")
    world.serve("desk", (new, 10), (old, 90))
    world.serve("hidden", (other, 100), namespace="secret")
    pod = await world.pod()
    await world.delivered(pod, old, new, other)
    assert (await world.ask(pod, new.sha256)).status == 404, "the pool's models are not rewritten"
    world.rewritten = True
    await world.delivered(pod)
    for adapter, text in ((old, "old"), (new, "new")) * 3:
        answer = await world.ask(pod, adapter.sha256)
        assert (answer.says, answer.json["model"]) == (text, "desk")
    assert {one.revision: one.requests for one in (await world.state(pod)).traffic} == {
        old.held["revision"]: 3,
        new.held["revision"]: 3,
    }
    assert (await world.ask(pod, other.sha256)).status == 404, "of a namespace that the client may not use"
    world.models = []
    world.serve("desk", (new, 0), (old, 100))
    world.hold(new)
    await world.delivered(pod)
    assert (await world.ask(pod, new.sha256)).says == "old", "rolled back, before the endpoint picker knows"


@pytest.mark.parametrize("names", [("mood", "tone"), ("tone", "mood")])
def test_while_a_former_name_drains_each_adapter_is_that_of_its_own_name(names: tuple[str, str]) -> None:
    """The index has two models of the job."""
    adapters = [
        {"namespace": "ml", "job": "job", "revision": one, "sha256": one * 64, "rank": 8, "bytes": 9} for one in "abc"
    ]
    models = [
        {
            "namespace": "ml",
            "job": "job",
            "name": name,
            "routes": [{"revision": one, "sha256": one * 64, "weight": 100}],
        }
        for name, one in zip(names, "ab", strict=True)
    ]
    document = {
        "pool": "ml/p",
        "etag": "e",
        "adapters": adapters,
        "models": sorted(models, key=lambda one: str(one["name"])),
        "rewritten": True,
    }
    table = routing.Table(serving.Index.model_validate(document))
    for name, one in zip(names, "ab", strict=True):
        found = table.find(one * 64, frozenset({"ml"}))
        assert found is not None
        assert found.name == name
        assert routing.choose(found, None, one * 64).sha256 == one * 64
    assert table.find("c" * 64, frozenset({"ml"})) is not None, "rolled back: one of the job's"


async def test_a_thousand_adapters_fit_the_state(world: World) -> None:
    held = [
        {"namespace": "ml", "job": "job", "revision": f"r{n}", "sha256": f"{n:064x}", "rank": 8, "bytes": 9}
        for n in range(1000)
    ]
    world.adapters = held
    world.models = [
        {
            "namespace": "ml",
            "job": "job",
            "name": f"m{n}",
            "routes": [{"revision": f"r{n}", "sha256": f"{n:064x}", "weight": 100}],
        }
        for n in range(1000)
    ]
    pod = await world.pod()
    await world.delivered(pod)
    for model in pod.pod._index.table.index.models:
        pod.pod._traffic.count(model, model.routes[0].revision)
    async with world.http.get(f"{pod.deliveries}/state") as answer:
        content = await answer.read()
    assert len(serving.State.model_validate_json(content).traffic) == 1000
    assert len(content) < serving.STATE_BYTES


@pytest.mark.slow
async def test_no_answer_comes_from_a_wrong_adapter_while_adapters_come_change_and_go(world: World) -> None:
    """2,000 requests of three tenants while models are added, replaced and removed, and the engine forgets its adapters."""
    chance = random.Random(7)
    pod = await world.pod()
    await world.delivered(pod)
    made = {
        f"model-{name}": [world.adapter(f"model-{name} revision {number}") for number in range(4)] for name in range(6)
    }
    for name in made:
        world.serve(name, (made[name][0], 100))
    await world.delivered(pod, *(folders[0] for folders in made.values()))
    wrong, right, other = [], 0, collections.Counter[int]()
    done = asyncio.Event()

    async def change() -> None:
        while not done.is_set():
            name = chance.choice(list(made))
            old, new = chance.sample(made[name], 2)
            if chance.random() < 0.2:
                world.models = [one for one in world.models if one["name"] != name]
                routed = {route["sha256"] for one in world.models for route in one["routes"]}
                world.adapters = [one for one in world.adapters if one["sha256"] in routed]
            else:
                weight = chance.choice([0, 30, 100])
                world.serve(name, (old, 100 - weight), (new, weight))
            await world.publish()
            await asyncio.sleep(0.02)
            for held in list(world.adapters):
                if chance.random() < 0.5:
                    folder = next(one for folders in made.values() for one in folders if one.sha256 == held["sha256"])
                    await world.put(pod, folder)
            if chance.random() < 0.1:
                pod.engine.adapters.clear()
                pod.engine.memory.clear()

    async def ask(number: int) -> None:
        nonlocal right
        name = chance.choice(list(made))
        answer = await world.ask(pod, name, stream=number % 2 == 0)
        if answer.status != 200:
            other[answer.status] += 1
        elif answer.says.startswith(f"{name} revision ") and answer.says in {
            f"{name} revision {at}" for at in range(4)
        }:
            right += 1
        else:
            wrong.append((name, answer.text))

    changing = asyncio.create_task(change())
    for begin in range(0, 2000, 40):
        await asyncio.gather(*(ask(number) for number in range(begin, begin + 40)))
    done.set()
    await changing
    assert wrong == []
    assert right > 500
    assert set(other) <= {404, 503}, other


def test_a_stream_in_any_pieces_is_the_same_stream() -> None:
    lines = [
        {"model": "sha", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
        for text in ("Grüße", "\ud83d", "x")
    ]
    lines += [{"model": "sha", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 3}}]
    whole = (
        b"".join(b"data: " + json.dumps(line).encode() + b"\n\n" for line in lines) + b": a comment\n\ndata: [DONE]\n\n"
    )
    wanted = answers.Rewriter("desk", answers.Reading(), usage=False).feed(whole)
    assert b"sha" not in wanted
    assert b"usage" not in wanted
    for size in (1, 2, 7, 64):
        rewriter = answers.Rewriter("desk", answers.Reading(), usage=False)
        assert b"".join(rewriter.feed(whole[at : at + size]) for at in range(0, len(whole), size)) == wanted
        assert rewriter.done
        assert rewriter.reading.answer_tokens == 3
    document = json.loads(wanted.split(b"\n\n")[1].removeprefix(b"data: "))
    assert document["choices"][0]["delta"]["content"] == "\ud83d", "halves of characters arrive as they were"
