"""The traffic of servers of a job's own, from vLLM's metrics: what is counted, from when on, and whom the operator believes."""

import datetime
import itertools
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as some

from finetune_api import serving
from finetune_operator import cache, poolstates, progress, servertraffic
from finetune_operator.decide import traffic
from finetune_operator.observe import label, members, pools, shared

STATUS = {
    "serving": '{"name":"tone-aaaa-1111","revision":"aaaa","pool":null}',
    "rollout": {"release": "tone-bbbb-2222", "revision": "bbbb", "step": 1, "weight": 10},
}
BOTH = (("tone-aaaa-1111", "aaaa"), ("tone-bbbb-2222", "bbbb"))


def job(version: int = 1, **changes: Any) -> dict[str, Any]:
    meta = {"name": "tone", "namespace": "ml", "uid": "u", "resourceVersion": str(version)}
    return {"metadata": meta, "spec": {}, "status": STATUS | changes}


def pod(name: str, release: str, address: str = "127.0.0.1", ready: bool = True) -> dict[str, Any]:
    labels = {label.UID: "u", label.RELEASE: release}
    conditions = [{"type": "Ready", "status": str(ready)}]
    return {
        "metadata": {"name": name, "namespace": "ml", "uid": name, "labels": labels, "resourceVersion": "5"},
        "status": {"phase": "Running", "podIP": address, "conditions": conditions},
    }


@pytest.fixture
def facts() -> cache.Cache:
    made = cache.Cache(lambda uid: None)
    made.put_parent(job())
    pods = [pod("old", "tone-aaaa-1111"), pod("new", "tone-bbbb-2222"), pod("other", "tone-cccc-3333")]
    made.listed("Pod", None, [*pods, pod("starting", "tone-bbbb-2222", ready=False)], "10")
    return made


def metrics(stop: int = 0, length: int = 0, error: int = 0, failed: int = 0, aborted: int = 0, slow: int = 0) -> str:
    """As vLLM writes them: `slow` of the answers took more than 10 s, all others between 0.3 s and 0.5 s."""
    ended = stop + length
    reasons = {"stop": stop, "length": length, "error": error, "abort": aborted, "repetition": 0}
    model = 'engine="0",model_name="/models/base"'
    return "\n".join(
        [
            "# HELP vllm:request_success_total Count of successfully processed requests.",
            "# TYPE vllm:request_success_total counter",
            *(f'vllm:request_success_total{{{model},finished_reason="{r}"}} {n}.0' for r, n in reasons.items()),
            f'vllm:request_success_created{{{model},finished_reason="stop"}} 1.79e+09',
            "# TYPE vllm:e2e_request_latency_seconds histogram",
            f'vllm:e2e_request_latency_seconds_bucket{{le="0.3",{model}}} 0.0',
            f'vllm:e2e_request_latency_seconds_bucket{{le="0.5",{model}}} {ended - slow}.0',
            f'vllm:e2e_request_latency_seconds_bucket{{le="10.0",{model}}} {ended - slow}.0',
            f'vllm:e2e_request_latency_seconds_bucket{{le="15.0",{model}}} {ended}.0',
            f'vllm:e2e_request_latency_seconds_bucket{{le="+Inf",{model}}} {ended}.0',
            f"vllm:e2e_request_latency_seconds_count{{{model}}} {ended}.0",
            "# TYPE http_requests_total counter",
            f'http_requests_total{{handler="/v1/chat/completions",method="POST",status="5xx"}} {failed}.0',
            'http_requests_total{handler="/v1/chat/completions",method="POST",status="4xx"} 900.0',
            'http_requests_total{handler="/health",method="GET",status="5xx"} 900.0',
        ]
    )


# -- which pods --


def test_the_ready_pods_of_both_releases_are_read_as_long_as_they_share_the_traffic(facts: cache.Cache) -> None:
    assert {name for _, name in facts.compared_pods()} == {"old", "new"}
    facts.put_counted("u", "old", shared.Counted(problem="x"))
    facts.put_parent(job(2, rollout=STATUS["rollout"] | {"weight": 100}))  # type: ignore[operator]
    assert facts.compared_pods() == {}
    assert facts.counted == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"serving": None},
        {"serving": "no JSON"},
        {"serving": "[]"},
        {"serving": '{"name":"a","revision":"b","pool":"ml/shared"}'},
        {"candidate": "{}"},
        {"rollout": None},
        {"rollout": {"release": "a", "step": 0}},
    ],
)
def test_nothing_is_compared_without_two_servers_of_the_jobs_own_in_a_step(changes: dict[str, Any]) -> None:
    assert members.compared(job(**changes)) is None


# -- what is counted --


def test_broken_off_requests_are_counted_apart_and_a_failed_one_once() -> None:
    reader = servertraffic.Reader(cache.Cache(lambda uid: None))
    both = members.Compared("tone", BOTH, "tone-bbbb-2222/1")
    seen: list[serving.Traffic] = []
    for text in (metrics(stop=100), metrics(stop=140, length=5, error=3, failed=4, aborted=50, slow=10)):
        counts = servertraffic.counts(text.encode())
        seen.append(reader._traffic(("u", "new"), projected("new"), both, counts))
    assert (seen[0].requests, sum(seen[0].seconds.counts)) == (0, 0), "what was before the step is not compared"
    last = seen[1]
    assert (last.requests, last.errors, last.cut, last.revision) == (99, 4, 5, "bbbb")
    assert last.abandoned == 50
    assert (last.step, sum(last.seconds.counts)) == ("tone-bbbb-2222/1", 45)
    assert sum(last.seconds.counts[: serving.BOUNDS.index(0.5) + 1]) == 35
    again = servertraffic.counts(metrics(stop=7).encode())
    assert reader._traffic(("u", "new"), projected("new"), both, again).requests == 7, "the server started again"
    following = members.Compared("tone", BOTH, "tone-bbbb-2222/2")
    assert reader._traffic(("u", "new"), projected("new"), following, again).requests == 0


def projected(name: str) -> Any:
    made = cache.Cache(lambda uid: None)
    made.put_parent(job())
    made.listed("Pod", None, [pod(name, "tone-bbbb-2222")], "10")
    return made.children["u"]["Pod", name]


@given(some.lists(some.integers(0, 500), min_size=2, max_size=22))
def test_a_rebinned_histogram_has_every_value_once(values: list[int]) -> None:
    bounds = [0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680]
    buckets = dict(zip([*bounds, float("inf")], itertools.accumulate(values), strict=False))
    made = servertraffic.rebinned(buckets)
    assert sum(made) == sum(values)
    assert all(count >= 0 for count in made)
    assert len(made) == len(serving.BOUNDS) + 1


def test_a_value_on_the_other_side_of_a_bound_is_not_shown_to_be_slower() -> None:
    """vLLM's bounds are up to 2.5 times apart (0.1 s, 0.25 s): all of the former answers just below one, all new ones above."""
    bounds = [0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5]

    def within(place: int) -> serving.Histogram:
        buckets = {bound: 400.0 * (index >= place) for index, bound in enumerate(bounds)}
        return serving.Histogram(counts=servertraffic.rebinned(buckets | {float("inf"): 400.0}))

    for place in range(1, len(bounds) - 1):
        old, new = (serving.Counts(requests=400, seconds=within(at)) for at in (place, place + 1))
        assert traffic.worse(traffic.findings(new, old, traffic.BY_ENGINE), traffic.level(1)) == [], bounds[place]
    old, new = (serving.Counts(requests=400, seconds=within(at)) for at in (4, 7))
    assert traffic.worse(traffic.findings(new, old, traffic.BY_ENGINE), traffic.level(1))


# -- whom the operator believes --


class Server:
    """vLLM's metrics on loopback."""

    def __init__(self) -> None:
        self.text, self.status = metrics(), 200

    async def __aenter__(self) -> "Server":
        application = web.Application()
        application.router.add_get("/metrics", self._answer)
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _answer(self, _: web.Request) -> web.Response:
        return web.Response(text=self.text, status=self.status)


async def test_servers_are_read_one_after_the_other_and_the_last_counts_stay_through_failures(
    facts: cache.Cache,
) -> None:
    now = [0.0]
    async with Server() as server, progress.session() as http:
        reader = servertraffic.Reader(
            facts, port=server.port, monotonic=lambda: now[0], now=lambda: datetime.datetime.now(datetime.UTC)
        )

        async def read(seconds: float) -> int:
            now[0] += seconds
            due = reader.due()
            for key, one, compared in due:
                await reader.read(http, key, one, compared)
            return len(due)

        assert await read(0) == 2
        assert await read(1) == 0
        server.text = metrics(stop=30)
        assert await read(5) == 2
        assert facts.counted["u"]["new"].traffic.requests == 30  # type: ignore[union-attr]
        for text, status, words in (
            ("x" * (servertraffic.BYTES + 1), 200, "more than"),
            (metrics(), 503, "HTTP 503"),
            ("python_info 1.0\n", 200, "no vllm:request_success_total, which vLLM has"),
            ("vllm:request_success_total{a= 1\n", 200, "not metrics"),
            (metrics().replace("0.0", "1e99"), 200, "no vllm:request_success_total"),
        ):
            server.text, server.status = text, status
            await read(5)
            found = facts.counted["u"]["new"]
            assert words in found.problem
            assert found.traffic is not None
            assert found.traffic.requests == 30


def test_many_servers_are_read_at_the_operators_pace() -> None:
    facts = cache.Cache(lambda uid: None)
    facts.put_parent(job())
    facts.listed("Pod", None, [pod(f"p{index}", "tone-bbbb-2222") for index in range(50)], "10")
    reader = servertraffic.Reader(facts, monotonic=lambda: 0.0)
    assert len(reader.due()) == servertraffic.READS * servertraffic.TICK
    assert len(reader.due()) == servertraffic.READS * servertraffic.TICK, "and then the next ones"


# -- servers that may sleep --

IDLE = {"deployment": {"idle": {"after": "30m"}}}


def sleeper(version: int = 1, spec: dict[str, Any] = IDLE, **changes: Any) -> dict[str, Any]:
    return {**job(version, rollout=None, **changes), "spec": spec}


def activator(name: str = "holds") -> dict[str, Any]:
    made = pod(name, "")
    made["metadata"]["labels"] |= {label.ACTIVATOR: "tone", label.POOL: ""}
    return made


def test_activators_of_many_jobs_do_not_delay_the_pods_of_pools(sleeping: cache.Cache) -> None:
    sleeping.listed("Pod", None, [activator(f"holds-{index}") for index in range(50)], "11")
    reader = poolstates.Reader(sleeping, monotonic=lambda: 1.0)
    most = int(poolstates.READS * poolstates.TICK)
    assert len(reader.due()) == most
    sleeping.pods_of_pools = lambda: {("p", "chat-0"): next(iter(sleeping.activators().values()))}  # type: ignore[method-assign]
    due = [key for key, _ in reader.due()]
    assert due[0] == ("p", "chat-0")
    assert len(due) == 1 + most


@pytest.fixture
def sleeping() -> cache.Cache:
    made = cache.Cache(lambda uid: None)
    made.put_parent(sleeper())
    made.listed("Pod", None, [pod("old", "tone-aaaa-1111"), pod("new", "tone-bbbb-2222"), activator()], "10")
    return made


def test_the_servers_that_may_sleep_and_their_activators_are_read_as_long_as_the_job_wants_it(
    sleeping: cache.Cache,
) -> None:
    assert [name for _, name in sleeping.sleepers()] == ["old"]
    assert [name for _, name in sleeping.activators()] == ["holds"]
    sleeping.put_pool_state("u", "old", pools.Reading(problem="x"))
    assert sleeping.pool_states == {"u": {"old": pools.Reading(problem="x")}}
    for version, state in enumerate(
        (sleeper(spec={}), sleeper(serving='{"name":"a","pool":"ml/chat"}'), sleeper(serving="[")), 2
    ):
        state["metadata"]["resourceVersion"] = str(version)
        sleeping.put_parent(state)
        assert (sleeping.sleepers(), sleeping.activators(), sleeping.pool_states) == ({}, {}, {})
        sleeping.put_pool_state("u", "old", pools.Reading())
        assert sleeping.pool_states == {}


async def test_a_server_was_asked_when_requests_are_under_way_or_have_ended_since(sleeping: cache.Cache) -> None:
    shown, clock = {"text": metrics(5)}, itertools.count()
    start = datetime.datetime(2026, 5, 4, tzinfo=datetime.UTC)

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=shown["text"])

    app = web.Application()
    app.router.add_get("/metrics", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    asked = servertraffic.Asked(
        sleeping,
        port=runner.addresses[0][1],
        monotonic=lambda: 0.0,
        now=lambda: start + datetime.timedelta(minutes=next(clock)),
    )
    ((key, server),) = asked.due()
    assert asked.due() == [], "it is under way"

    async def read(text: str) -> pools.Reading:
        shown["text"] = text
        async with progress.session() as http:
            await asked.read(http, key, server)
        return sleeping.pool_states["u"]["old"]

    reading = await read(metrics(5))
    first = reading.last_request
    assert reading.read_at == start, "before the answer"
    assert (await read(metrics(5))).last_request == first, "nobody asked since"
    running = metrics(5) + '\nvllm:num_requests_running{engine="0"} 1.0'
    times = [(await read(text)).last_request for text in (running, metrics(5), metrics(5, aborted=1), metrics(1))]
    assert times[0] != first
    assert times[1] == times[0]
    assert len({first, *times}) == 4, "a broken-off request, and a server that started again, count"
    failed = [await read(text) for text in ("hello", "", metrics(1))]
    assert "not metrics" in failed[0].problem
    assert failed[0].failing_since == failed[1].failing_since is not None
    assert failed[2].failing_since is None
    assert failed[0].read_at is None
    await runner.cleanup()
