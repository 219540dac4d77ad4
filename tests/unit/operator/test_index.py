"""The index of a ServingPool over HTTP, and the reading of its pods' states."""

import asyncio
import contextlib
import datetime
import json
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from finetune_api import API_VERSION, serving
from finetune_operator import cache, index, poolstates, progress
from finetune_operator.observe import label, members
from finetune_trainer.gateway import index as gateway_index

POOL = {
    "apiVersion": API_VERSION,
    "kind": "ServingPool",
    "metadata": {"name": "chat", "namespace": "ml", "uid": "pool", "resourceVersion": "1", "generation": 1},
    "spec": {"baseModel": {"name": "llama"}},
}


def part(number: int) -> members.Member:
    sha = f"{number:064x}"
    place = {"namespace": "ml", "job": f"job-{number}"}
    route = serving.Route(revision="r", sha256=sha, weight=100)
    return members.Member(
        "ml/chat",
        (serving.Served(**place, name=f"job-{number}", routes=[route]),),
        (serving.Held(**place, revision="r", sha256=sha, rank=8, bytes=10),),
    )


class Served:
    """An endpoint with one pool, and the requests of a gateway."""

    def __init__(self) -> None:
        self.changed: list[str] = []
        self.facts = cache.Cache(self.changed.append)
        self.leads = True
        self.indexes = index.Indexes(self.facts, lambda: self.leads)
        self.facts.put_pool(POOL)
        self.port = 0

    def job(self, number: int) -> None:
        self.facts._keep_members(f"uid-{number}", (), (part(number),))

    async def get(self, path: str = "/pools/ml/chat") -> tuple[int, Any]:
        url = f"http://127.0.0.1:{self.port}{path}"
        async with aiohttp.ClientSession() as http, http.get(url) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if answer.status == 200 else text


@contextlib.asynccontextmanager
async def endpoint() -> AsyncIterator[Served]:
    served = Served()
    runner = await served.indexes.serve("127.0.0.1", 0)
    served.port = runner.addresses[0][1]
    try:
        yield served
    finally:
        await runner.cleanup()


async def test_a_gateway_gets_what_its_pool_is_to_hold() -> None:
    async with endpoint() as served:
        served.job(1)
        status, found = await served.get()
        assert status == 200
        read = serving.Index.model_validate(found)
        assert (read.pool, [one.name for one in read.models], [one.rank for one in read.adapters]) == (
            "ml/chat",
            ["job-1"],
            [8],
        )


async def test_only_a_leader_that_knows_all_jobs_answers() -> None:
    async with endpoint() as served:
        served.leads = False
        assert (await served.get())[0] == 503


async def test_a_pool_that_does_not_exist_has_no_index() -> None:
    async with endpoint() as served:
        assert (await served.get("/pools/ml/other"))[0] == 404
        served.facts.receive(
            "ServingPool", None, "DELETED", POOL | {"metadata": POOL["metadata"] | {"resourceVersion": "2"}}
        )
        assert (await served.get())[0] == 404


async def test_a_poll_with_the_current_etag_waits_for_the_next_change() -> None:
    async with endpoint() as served:
        served.job(1)
        _, first = await served.get()
        polls = [asyncio.create_task(served.get(f"/pools/ml/chat?after={first['etag']}")) for _ in range(5)]
        await asyncio.sleep(0.2)
        assert not any(poll.done() for poll in polls)
        builds = served.indexes.builds
        served.job(2)
        served.job(3)
        answers = await asyncio.gather(*polls)
        assert {(status, len(found["models"])) for status, found in answers} == {(200, 3)}
        assert served.indexes.builds - builds == 1, "changes that come together are one index for all gateways"


async def test_a_poll_ends_without_a_change_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "WAIT_SECONDS", 0.1)
    async with endpoint() as served:
        _, found = await served.get()
        assert (await served.get(f"/pools/ml/chat?after={found['etag']}"))[0] == 304


async def test_a_replica_that_stops_leading_does_not_answer_those_who_wait_with_an_old_index() -> None:
    async with endpoint() as served:
        _, found = await served.get()
        poll = asyncio.create_task(served.get(f"/pools/ml/chat?after={found['etag']}"))
        await asyncio.sleep(0.1)
        served.leads = False
        served.job(1)
        assert (await poll)[0] == 503


async def test_the_gateways_own_client_follows_the_index(tmp_path: pathlib.Path) -> None:
    async with endpoint() as served:
        served.job(1)
        news = asyncio.Event()
        follower = gateway_index.Follower(f"http://127.0.0.1:{served.port}", "ml/chat", tmp_path, news.set)
        following = asyncio.create_task(follower.follow())
        try:
            for expected in (1, 2):
                await asyncio.wait_for(news.wait(), 20)
                assert follower.table is not None
                assert len(follower.table.index.models) == expected
                news.clear()
                served.job(2)
        finally:
            following.cancel()
        restarted = gateway_index.Follower("http://127.0.0.1:1", "ml/chat", tmp_path, lambda: None)
        restarted.restore()
        assert restarted.table is not None
        assert len(restarted.table.index.models) == 2, "a pod that starts without the operator serves what it knew"


async def test_two_namespaces_may_hold_the_same_adapter() -> None:
    async with endpoint() as served:
        served.facts.put_pool(
            {
                **POOL,
                "metadata": {**POOL["metadata"], "resourceVersion": "2"},
                "spec": {**POOL["spec"], "allowedNamespaces": ["*"], "keysSecret": "keys"},
            }
        )
        ours = part(1)
        theirs = members.Member(
            "ml/chat",
            tuple(one.model_copy(update={"namespace": "support"}) for one in ours.models),
            tuple(one.model_copy(update={"namespace": "support"}) for one in ours.adapters),
        )
        served.facts._keep_members("uid-1", (), (ours,))
        served.facts._keep_members("uid-2", (), (theirs,))
        _, found = await served.get()
        read = gateway_index.parse(json.dumps(found).encode(), "ml/chat")
        assert [one.namespace for one in read.models] == ["ml", "support"]


# -- states of pods --


def pod(name: str, address: str = "127.0.0.1", version: int = 2) -> dict[str, Any]:
    labels = {label.UID: "pool", label.POOL: "chat", label.MANAGED_BY: label.MANAGER}
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "ml", "labels": labels, "resourceVersion": str(version)},
        "status": {"phase": "Running", "podIP": address, "conditions": [{"type": "Ready", "status": "True"}]},
    }


STATE = serving.State(
    pool="ml/chat",
    etag="e",
    engine_ready=True,
    adapters=[serving.AdapterState(sha256=f"{1:064x}", state="Ready")],
).wire()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@contextlib.asynccontextmanager
async def gateway(answers: list[web.Response]) -> AsyncIterator[int]:
    async def state(request: web.Request) -> web.Response:
        return answers.pop(0)

    app = web.Application()
    app.add_routes([web.get("/state", state)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def traffic(requests: int) -> dict[str, Any]:
    one = {"namespace": "ml", "job": "a", "name": "a", "revision": "r", "since": "2026-05-04T12:00:00Z"}
    return {**STATE, "traffic": [{**one, "requests": requests}]}


async def test_the_states_of_a_pools_pods_are_read_and_their_requests_counted_per_second() -> None:
    facts = cache.Cache(lambda uid: None)
    facts.put_pool(POOL)
    facts.put("Pod", [pod("chat-0")])
    answers = [web.json_response(traffic(n)) for n in (100, 130, 10)] + [
        web.Response(status=500),
        web.Response(body=b"{}"),
    ]
    clock = Clock()
    async with gateway(answers) as port, progress.session() as http:
        reader = poolstates.Reader(facts, port=port, monotonic=clock)
        rates, problems = [], []
        for _ in range(5):
            ((key, found),) = reader.due()
            assert reader.due() == [], "a pod that is being read is not read twice"
            await reader.read(http, key, found)
            reading = facts.pool_states["pool"]["chat-0"]
            rates.append(reading.requests_per_second)
            problems.append(reading.problem)
            assert reading.state is not None, "the last state stays"
            clock.now += 10
        assert rates[:3] == [0.0, 3.0, 0.0], "a gateway that starts again counts from there"
        assert problems[:3] == ["", "", ""]
        assert "HTTP 500" in problems[3]
        assert "not a state" in problems[4]


async def test_requests_for_the_base_model_and_a_new_step_are_in_the_rate() -> None:
    facts = cache.Cache(lambda uid: None)
    facts.put_pool(POOL)
    facts.put("Pod", [pod("chat-0")])
    clock = Clock()
    answers = [web.json_response({**traffic(n), "requests": total}) for n, total in ((100, 400), (0, 420))]
    async with gateway(answers) as port, progress.session() as http:
        reader = poolstates.Reader(facts, port=port, monotonic=clock)
        for _ in range(2):
            ((key, found),) = reader.due()
            await reader.read(http, key, found)
            clock.now += 10
        assert facts.pool_states["pool"]["chat-0"].requests_per_second == 2.0


async def test_an_activator_is_read_every_second_and_the_pool_looks_again_when_a_client_asked() -> None:
    changed: list[str] = []
    facts = cache.Cache(changed.append)
    facts.put_pool(POOL)
    server, other = pod("chat-0"), pod("chat-activator-0")
    other["metadata"]["labels"] |= {label.POOL: "", label.ACTIVATOR: "chat"}
    facts.put("Pod", [server, other])
    now = datetime.datetime(2026, 5, 4, 12, tzinfo=datetime.UTC)
    ago = [None, 100.0, 100.2, 3.0, "NaN", -1.0, 1e300]
    answers = [web.json_response({**STATE, "idleSeconds": one}) for one in ago]
    clock, found, asked = Clock(), [], []
    async with gateway(answers) as port, progress.session() as http:
        reader = poolstates.Reader(facts, port=port, monotonic=clock, now=lambda: now)
        for _ in ago:
            changed.clear()
            (due,) = [one for one in reader.due() if one[1].activator]
            await reader.read(http, *due)
            reading = facts.pool_states["pool"]["chat-activator-0"]
            found.append(reading.last_request and (now - reading.last_request).total_seconds())
            asked.append("pool" in changed)
            assert reading.read_at == (None if reading.problem else now)
            clock.now += 1
        assert found == [None, 100.0, 100.2, 3.0, None, None, poolstates.LONGEST]
        assert asked == [True, True, False, True, True, True, True], (
            "the first, a request, none, a request, two problems, a state"
        )
        assert [one.name for _, one in reader.due()] == ["chat-activator-0"], "its servers are read less often"


async def test_an_adapter_that_changes_its_state_wakes_its_job_and_the_pool_and_others_sleep() -> None:
    changed: list[str] = []
    facts = cache.Cache(changed.append)
    facts.put_pool(POOL)
    facts.put("Pod", [pod("chat-0")])
    for number in (1, 2):
        facts._keep_members(f"uid-{number}", (), (part(number),))
    changed.clear()
    state = serving.State.model_validate(STATE)
    facts.put_pool_state("pool", "chat-0", poolstates.pools.Reading(state))
    assert sorted(set(changed)) == ["pool", "uid-1"]
    changed.clear()
    facts.put_pool_state("pool", "chat-0", poolstates.pools.Reading(state))
    assert changed == []


async def test_jobs_look_again_when_their_pool_changes_and_not_when_it_is_scaled() -> None:
    changed: list[str] = []
    facts = cache.Cache(changed.append)
    facts.put_pool(POOL)
    facts._keep_members("uid-1", (), (part(1),))
    for version, spec, woken in (
        ("2", {"replicas": 5}, {"pool"}),
        ("3", {"replicas": 5, "contextLength": 4096}, {"pool", "uid-1"}),
    ):
        changed.clear()
        facts.put_pool(
            {**POOL, "metadata": {**POOL["metadata"], "resourceVersion": version}, "spec": {**POOL["spec"], **spec}}
        )
        assert set(changed) == woken


async def test_the_rate_of_reads_does_not_grow_with_the_number_of_pods() -> None:
    facts = cache.Cache(lambda uid: None)
    facts.put_pool(POOL)
    facts.put("Pod", [pod(f"chat-{number}", version=number + 2) for number in range(200)])
    reader = poolstates.Reader(facts, monotonic=Clock())
    assert len(reader.due()) == poolstates.READS * poolstates.TICK
    assert len(reader.due()) == poolstates.READS * poolstates.TICK
