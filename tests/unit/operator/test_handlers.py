"""The controller: whom it knows at its start, before Kopf has told of anybody."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from finetune_operator import clock, handlers, settings
from flow import world
from flow.test_pools import job_in


def job(name: str, phase: str | None) -> dict:
    meta = {"namespace": "ml", "name": name, "uid": name, "resourceVersion": "1"}
    return {"metadata": meta, "status": {"phase": phase} if phase else {"observedGeneration": -1}}


class Server:
    """Has these jobs when it is listed; of those of `left` it still knows later."""

    def __init__(self, *jobs: dict, left: set[str]) -> None:
        self.jobs, self.left = jobs, left
        self.clock = clock.Clock()

    async def pages(self, kind: str, namespace: str | None) -> AsyncIterator[tuple[list[dict], str]]:
        for raw in self.jobs:
            yield [raw], "9"

    async def exists(self, kind: str, namespace: str, name: str, uid: str) -> bool:
        return uid in self.left


def controller(server: Server) -> handlers.Controller:
    return handlers.Controller(server, settings.Settings.model_validate(world.SETTINGS), lambda: None)


async def test_running_jobs_are_known_before_finished_ones() -> None:
    jobs = [job("new", None), job("done", "Complete"), job("trains", "Training"), job("serves", "Ready")]
    found = controller(Server(*jobs, left=set()))
    await found._unfinished_first()
    assert set(found.facts.parents) == {"new", "trains"}


async def test_jobs_in_pools_are_known_before_an_index_is_served_however_often_the_list_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = job_in("ml/chat", "tone", "ab" * 32)
    server = Server(job("done", "Complete"), served, left=set())
    found = controller(server)
    found.leads = True
    listed, failures = server.pages, [OSError("away"), OSError("away")]

    def pages(kind: str, namespace: str | None) -> AsyncIterator[tuple[list[dict], str]]:
        assert not found.indexes._complete()
        if failures:
            raise failures.pop()
        return listed(kind, namespace)

    async def at_once(seconds: float) -> None:
        return None

    monkeypatch.setattr(server, "pages", pages)
    monkeypatch.setattr(asyncio, "sleep", at_once)
    await found._unfinished_first()
    assert set(found.facts.parents) == {served["metadata"]["uid"]}
    assert len(found.facts.members["ml/chat"]) == 1
    assert found.indexes._complete()


async def test_a_job_that_was_deleted_before_kopf_listed_it_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "CONFIRMED", 0.01)
    found = controller(Server(job("gone", None), job("late", None), job("told", None), left={"late"}))
    await found._unfinished_first()
    found.receive(None, job("told", None))
    checks = asyncio.create_task(found._confirm())
    await asyncio.sleep(0.1)
    checks.cancel()
    assert set(found.facts.parents) == {"late", "told"}
