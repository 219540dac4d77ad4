"""Progress: how the operator asks pods, and what it does not let them do."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from finetune_operator import cache, progress
from finetune_operator.observe import label, projections

REPORT = {
    "uid": "p",
    "revision": "12345678",
    "attempt": 1,
    "stage": "train",
    "progress": {"percent": 40, "step": 4, "totalSteps": 10, "loss": "0.7", "updatedAt": "2026-01-01T00:00:00Z"},
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def pod(handler: Handler, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """A pod's server; its port."""
    app = web.Application()
    app.add_routes([web.get("/{path:.*}", handler)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, host, 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def says(body: Any, status: int = 200, **headers: str) -> Handler:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def handler(request: web.Request) -> web.Response:
        assert request.path == "/progress"
        assert not {"Authorization", "Cookie"} & set(request.headers)
        return web.Response(body=text, status=status, headers=headers)

    return handler


async def asked(handler: Handler, host: str = "127.0.0.1") -> Any:
    async with pod(handler, host) as port, progress.session() as http:
        return await progress.ask(http, host, port)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_report_is_read_from_addresses_of_both_kinds(host: str) -> None:
    report = await asked(says(REPORT), host)
    assert (report.uid, report.attempt, report.progress.step) == ("p", 1, 4)


async def test_a_pod_that_has_nothing_to_say_yet_is_no_problem() -> None:
    assert await asked(says(b"", 204)) is None


@pytest.mark.parametrize(
    "handler, seen",
    [
        (says(b"# HELP finetune_trainer_step\n"), "not a progress report"),
        (says([]), "not a progress report"),
        (says(REPORT | {"attempt": "1"}), "not a progress report"),
        (says(REPORT | {"progress": REPORT["progress"] | {"percent": 101}}), "not a progress report"),
        (says(b"[" * 4000), "not a progress report"),
        (says(REPORT | {"padding": "x" * 5000}), "4096 bytes"),
        (says(REPORT, 500), "HTTP 500"),
        (says(b"", 302, Location="/elsewhere"), "HTTP 302"),
        (says(b"\x1f\x8b\x08\x00", **{"Content-Encoding": "gzip"}), "not a progress report"),
    ],
)
async def test_any_other_answer_is_a_problem_and_is_not_believed(handler: Handler, seen: str) -> None:
    with pytest.raises(progress.Unread, match=seen):
        await asked(handler)


async def test_an_endless_answer_is_left_at_the_limit() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await answer.write(b" " * 1024)
                await asyncio.sleep(0)
        return answer

    with pytest.raises(progress.Unread, match="4096 bytes"):
        await asyncio.wait_for(asked(handler), 1.5)


async def test_a_pod_that_does_not_answer_costs_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DEADLINE", 0.2)

    async def handler(_: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    with pytest.raises(progress.Unread, match=r"no answer within 0\.2 s"):
        await asked(handler)


async def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert await asked(says(REPORT)) is not None


@pytest.mark.parametrize("address", ["169.254.169.254", "fe80::1", "224.0.0.1", "0.0.0.0", "evil.example", "", "1/2"])
async def test_an_address_that_is_not_a_pods_is_never_read(address: str) -> None:
    async with progress.session() as http:
        with pytest.raises(progress.Unread, match="address"):
            await progress.ask(http, address, 9400)


# -- whose turn it is --


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def fleet(size: int) -> tuple[cache.Cache, progress.Reader, Clock]:
    facts, clock = cache.Cache(lambda _: None), Clock()
    pods = [training(str(number)) for number in range(size)]
    facts.listed("Pod", None, pods, "5")
    return facts, progress.Reader(facts, 3, monotonic=clock), clock


def training(uid: str) -> dict:
    running = {"name": "finetune", "ready": True, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
    meta = {"name": f"pod-{uid}", "namespace": "ml", "resourceVersion": "1"}
    state = {"phase": "Running", "podIP": "127.0.0.1", "containerStatuses": [running]}
    return {"metadata": meta | {"labels": {label.UID: uid, label.STAGE: "train"}}, "status": state}


class Answers(progress.Reader):
    """A reader whose pods answer at once, without a network."""

    def __init__(self, facts: cache.Cache, clock: Clock) -> None:
        super().__init__(facts, 3, monotonic=clock)
        self.reads: list[str] = []

    def pass_(self) -> None:
        for uid, one in self.due():
            self.reads.append(uid)
            self._turns[uid, one.name].due = self._monotonic() + self._pause


def test_the_rate_does_not_grow_with_the_number_of_trainings_and_each_has_its_turn() -> None:
    facts, _, clock = fleet(1000)
    reader = Answers(facts, clock)
    for _ in range(200):  # 100 seconds
        reader.pass_()
        clock.now += progress.TICK
    assert len(reader.reads) == progress.READS * 100
    assert {reader.reads.count(str(uid)) for uid in range(1000)} == {2}


def test_few_trainings_are_read_every_few_seconds_and_none_costs_nothing() -> None:
    facts, _, clock = fleet(2)
    reader = Answers(facts, clock)
    for _ in range(61):
        reader.pass_()
        clock.now += progress.TICK
    assert len(reader.reads) == 2 * 11
    facts.listed("Pod", None, [], "9")
    clock.now += 100
    assert reader.due() == []
    assert reader._turns == {}


def test_a_pod_that_is_being_read_is_not_read_twice() -> None:
    _, reader, clock = fleet(1)
    assert len(reader.due()) == 1
    clock.now += 1000
    assert reader.due() == []


async def test_a_pod_that_cannot_be_reached_is_read_less_often_and_reported_once() -> None:
    facts, reader, clock = fleet(1)
    reader._port = 1
    problems, reads, before = [], 0, clock.now
    async with progress.session() as http:
        while clock.now < before + 600:
            for uid, one in reader.due():
                await reader.read(http, uid, one)
                reads += 1
                problems.append(facts.readings[uid].problem)
            clock.now += 1
    assert 12 <= reads <= 16
    assert problems[0] == ""
    assert len(set(problems)) == 2, "the same words from then on"
    for words in ("127.0.0.1", "TCP port 1 ", "NetworkPolicy"):
        assert words in problems[-1]


async def test_a_pod_of_another_release_is_not_blamed_on_the_network() -> None:
    facts, reader, clock = fleet(1)
    async with progress.session() as http, pod(says(b"# HELP finetune_trainer_step\n")) as port:
        reader._port = port
        for _ in range(10):
            clock.now += 100
            for uid, one in reader.due():
                await reader.read(http, uid, one)
    assert "reports no progress" in facts.readings["0"].problem
    assert "NetworkPolicy" not in facts.readings["0"].problem


async def test_the_last_progress_stays_while_the_pod_does_not_respond_and_may_be_updated_later() -> None:
    facts, reader, clock = fleet(1)
    (known,) = facts.reporting.values()
    async with progress.session() as http:
        async with pod(says(REPORT)) as port:
            reader._port = port
            for uid, one in reader.due():
                await reader.read(http, uid, one)
        for _ in range(10):
            clock.now += 100
            for uid, one in reader.due():
                await reader.read(http, uid, one)
        silent = facts.readings["0"]
        assert silent.problem
        assert silent.report is not None
        async with pod(says(REPORT | {"attempt": 2})) as port:
            reader._port = port
            clock.now += 100
            for uid, one in reader.due():
                await reader.read(http, uid, one)
    assert facts.readings["0"] == projections.Reading(known.name, facts.readings["0"].report, "")
    assert facts.readings["0"].report.attempt == 2


async def test_reading_continues_as_long_as_it_runs() -> None:
    facts, reader, _ = fleet(1)
    async with pod(says(REPORT)) as port:
        reader._port = port
        read = asyncio.Event()
        facts.changed = lambda _: read.set()
        task = asyncio.create_task(reader.run())
        try:
            await asyncio.wait_for(read.wait(), 5)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    assert facts.readings["0"].report.progress.percent == 40
