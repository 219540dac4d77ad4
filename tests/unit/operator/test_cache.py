"""The caches: what was heard, what was written by ourselves, and how a watch survives."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest

from finetune_operator import cache, cluster, kueue, stored, watches
from finetune_operator.observe import label, projections
from support import manifests

Step = tuple[str, Any]


def child(name: str, version: int, uid: str = "p", **data: str) -> dict:
    meta = {"name": name, "namespace": "ml", "resourceVersion": str(version), "labels": {label.UID: uid}}
    annotations = {label.HASH: data.get("hash", str(version))}
    return {"kind": "Job", "metadata": meta | {"annotations": annotations}}


def job(version: int, phase: str | None = None) -> dict:
    status = {"phase": phase} if phase else {}
    meta = {"uid": "p", "namespace": "ml", "name": "web", "resourceVersion": str(version)}
    return {"metadata": meta, "status": status}


def workload(version: int, message: str, uid: str = "job-uid", name: str = "w") -> dict:
    owner = {"kind": "Job", "name": "train", "uid": uid}
    meta = {"name": name, "namespace": "ml", "resourceVersion": str(version), "ownerReferences": [owner]}
    waits = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": message}
    return {"kind": "Workload", "metadata": meta, "status": {"conditions": [waits]}}


def stage_job(version: int) -> dict:
    meta = {"name": "train", "namespace": "ml", "uid": "job-uid", "resourceVersion": str(version)}
    return {"kind": "Job", "metadata": meta | {"labels": {label.UID: "p"}}, "spec": {"suspend": True}}


class Notified(cache.Cache):
    """A cache that notes whom it told."""

    def __init__(self) -> None:
        self.changes: list[str] = []
        super().__init__(self.changes.append)

    def names(self, uid: str = "p") -> list[str]:
        return sorted(name for _, name in self.children.get(uid, {}))

    def hash(self, name: str) -> str:
        return self.children["p"]["Job", name].hash


def test_a_list_says_who_is_there_and_who_is_gone() -> None:
    facts = Notified()
    facts.listed("Job", None, [child("a", 1), child("b", 2)], "5")
    assert facts.names() == ["a", "b"]
    facts.listed("Job", None, [child("b", 2)], "6")
    assert facts.names() == ["b"]
    facts.listed("Job", None, [], "7")
    assert facts.children == {}


def test_a_list_is_the_same_in_pages() -> None:
    facts = Notified()
    facts.listed("Job", None, [child("a", 1), child("z", 1)], "5")
    found = facts.put("Job", [child("a", 1)]) | facts.put("Job", [child("b", 6)])
    assert facts.names() == ["a", "b", "z"]
    facts.complete("Job", None, found, "7")
    assert facts.names() == ["a", "b"]


def test_unused_fields_of_a_job_are_not_stored() -> None:
    facts = Notified()
    raw = job(9)
    raw["metadata"]["managedFields"] = [{"manager": "kubectl"}]
    facts.put_parent(raw)
    assert facts.parents["p"].raw == job(9)


def test_a_list_of_one_namespace_says_nothing_of_another() -> None:
    facts = Notified()
    facts.listed("Job", "ml", [child("a", 1)], "5")
    facts.listed("Job", "other", [], "6")
    assert facts.names() == ["a"]


def test_an_unchanged_object_triggers_no_reconcile() -> None:
    facts = Notified()
    facts.listed("Job", None, [child("a", 1, hash="h")], "5")
    facts.receive("Job", None, "MODIFIED", child("a", 6, hash="h"))
    facts.listed("Job", None, [child("a", 6, hash="h")], "7")
    assert facts.changes == ["p"]
    facts.receive("Job", None, "MODIFIED", child("a", 8, hash="other"))
    facts.receive("Job", None, "DELETED", child("a", 9))
    assert facts.changes == ["p", "p", "p"]


def test_objects_without_the_operators_label_are_ignored() -> None:
    facts = Notified()
    stranger = child("a", 1)
    del stranger["metadata"]["labels"]
    facts.listed("Job", None, [stranger], "5")
    assert facts.children == {}


def test_the_workload_of_a_stage_triggers_a_reconcile_whichever_event_comes_first() -> None:
    facts = Notified()
    assert facts.workloads is None
    facts.listed("Workload", None, [workload(1, "no room")], "5")
    assert facts.changes == []
    facts.receive("Job", None, "ADDED", stage_job(6))
    assert facts.changes == ["p"]
    assert facts.workloads["job-uid"].pending.message == "no room"
    facts.receive("Workload", None, "MODIFIED", workload(7, "no room"))
    assert facts.changes == ["p"], "nothing new"
    facts.receive("Workload", None, "MODIFIED", workload(8, "1 more needed"))
    facts.receive("Workload", None, "DELETED", workload(9, "1 more needed"))
    assert facts.changes == ["p", "p", "p"]
    facts.receive("Workload", None, "ADDED", workload(10, "of a pod group", uid=""))
    assert facts.workloads == {}


def test_a_deleted_workload_does_not_remove_its_successor() -> None:
    facts = Notified()
    facts.listed("Workload", None, [workload(1, "old")], "5")
    facts.receive("Workload", None, "ADDED", workload(6, "new", name="w2"))
    facts.receive("Workload", None, "DELETED", workload(7, "old"))
    assert facts.workloads["job-uid"].pending.message == "new"


def test_a_list_of_workloads_of_one_namespace_says_nothing_of_another() -> None:
    facts = Notified()
    facts.receive("Job", None, "ADDED", stage_job(1))
    facts.listed("Workload", "ml", [workload(1, "no room")], "5")
    facts.listed("Workload", "other", [], "6")
    assert set(facts.workloads) == {"job-uid"}
    facts.listed("Workload", "ml", [], "7")
    assert facts.workloads == {}
    assert facts.changes == ["p", "p", "p"]


def test_an_object_that_changes_its_owner_moves() -> None:
    facts = Notified()
    facts.listed("Job", None, [child("a", 1)], "5")
    facts.receive("Job", None, "MODIFIED", child("a", 6, uid="q"))
    assert (facts.names("p"), facts.names("q")) == ([], ["a"])
    assert set(facts.changes) == {"p", "q"}


def test_what_we_wrote_is_known_at_once_and_a_slow_watch_does_not_undo_it() -> None:
    facts = Notified()
    facts.listed("Job", None, [child("a", 1, hash="old")], "5")
    facts.wrote_child(child("a", 9, hash="new"))
    assert facts.hash("a") == "new"
    facts.receive("Job", None, "MODIFIED", child("a", 7, hash="middle"))
    assert facts.hash("a") == "new"
    facts.receive("Job", None, "MODIFIED", child("a", 9, hash="new"))
    assert facts.hash("a") == "new"


def test_a_write_before_a_deletion_that_was_already_received_does_not_come_back() -> None:
    facts = Notified()
    facts.listed("Job", None, [], "5")
    facts.receive("Job", None, "ADDED", child("a", 9))
    facts.receive("Job", None, "DELETED", child("a", 10))
    facts.wrote_child(child("a", 9))
    assert facts.names() == []


def test_a_list_from_before_our_write_does_not_drop_it() -> None:
    facts = Notified()
    facts.listed("Job", None, [], "5")
    facts.wrote_child(child("a", 9))
    facts.listed("Job", None, [], "8")
    assert facts.names() == ["a"]
    facts.listed("Job", None, [], "10")
    assert facts.names() == []


def test_kinds_that_are_not_watched_are_not_stored() -> None:
    facts = Notified()
    facts.wrote_child(child("a", 9) | {"kind": "Role"})
    assert facts.children == {}


def test_bookmarks_say_how_far_the_watch_is_and_nothing_else() -> None:
    facts = Notified()
    facts.listed("Job", None, [], "5")
    facts.receive("Job", None, "BOOKMARK", {"metadata": {"resourceVersion": "20"}})
    facts.wrote_child(child("a", 9))
    assert facts.names() == []


def test_an_older_version_of_a_job_never_replaces_a_newer_one() -> None:
    facts = Notified()
    facts.put_parent(job(9))
    facts.put_parent(job(10))
    facts.put_parent(job(9))
    assert facts.parents["p"].version == "10"
    facts.wrote_parent(job(12))
    facts.put_parent(job(11))
    assert facts.parents["p"].version == "12"


def test_the_echo_of_the_operators_own_write_triggers_no_reconcile() -> None:
    facts = Notified()
    facts.put_parent(job(9))
    facts.listed("Job", None, [], "5")
    facts.changes.clear()
    with facts.writing("FineTuneJob", "ml", "web"):
        facts.wrote_parent(job(10))
    facts.put_parent(job(10))
    with facts.writing("FineTuneJob", "ml", "web"):
        facts.put_parent(job(11))
        facts.wrote_parent(job(11))
    with facts.writing("Job", "ml", "a"):
        facts.wrote_child(child("a", 12))
    facts.receive("Job", None, "ADDED", child("a", 12))
    with facts.writing("Job", "ml", "b"):
        facts.receive("Job", None, "ADDED", child("b", 13))
        facts.wrote_child(child("b", 13))
    assert facts.changes == []
    assert facts.names() == ["a", "b"]


def test_a_change_by_others_during_a_write_triggers_a_reconcile() -> None:
    facts = Notified()
    facts.put_parent(job(9))
    facts.changes.clear()
    with facts.writing("FineTuneJob", "ml", "web"):
        facts.put_parent(job(11))
        facts.wrote_parent(job(10))
    assert facts.changes == ["p"]
    assert facts.parents["p"].version == "11"


def test_an_unchanged_job_in_a_new_list_triggers_no_reconcile() -> None:
    facts = Notified()
    facts.put_parent(job(9))
    facts.put_parent(job(9))
    assert facts.changes == ["p"]


def test_what_we_wrote_does_not_bring_a_deleted_job_back() -> None:
    facts = Notified()
    facts.put_parent(job(9))
    facts.drop_parent("p")
    facts.wrote_parent(job(10))
    assert facts.parents == {}


@pytest.mark.parametrize(
    "known, received, behind", [("9", "10", False), ("10", "9", True), ("9", "9", False), ("x", "y", False)]
)
def test_versions_are_compared_as_numbers(known: str, received: str, behind: bool) -> None:
    first, second = ({"metadata": {"resourceVersion": text}} for text in (known, received))
    assert stored.is_behind(second, stored.keep(first)) is behind


@pytest.mark.parametrize("phase, woken", [(None, True), ("Pending", True), ("Training", False), ("Ready", False)])
def test_a_new_base_model_wakes_the_jobs_that_wait(phase: str | None, woken: bool) -> None:
    facts = Notified()
    facts.put_parent(job(1, phase))
    facts.changes.clear()
    facts.receive("BaseModel", None, "ADDED", manifests.changed(manifests.ENTRY, **{"metadata.resourceVersion": "2"}))
    assert bool(facts.changes) is woken
    assert list(facts.catalogue) == ["qwen2.5-7b-instruct"]


def test_an_entry_of_a_newer_crd_is_read_and_a_broken_one_is_left_out() -> None:
    facts = Notified()
    newer = manifests.changed(manifests.ENTRY, **{"metadata.resourceVersion": "2", "spec.new": 1})
    broken = manifests.changed(newer, **{"metadata.name": "broken", "spec.source": "ftp://x"})
    facts.listed("BaseModel", None, [newer, broken], "3")
    assert list(facts.catalogue) == ["qwen2.5-7b-instruct"]
    facts.listed("BaseModel", None, [], "4")
    assert facts.catalogue == {}


class Server:
    """Answers lists and watches by a script, then hangs."""

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.asked: list[str] = []
        self.hangs = asyncio.Event()

    async def _next(self, verb: str) -> Any:
        self.asked.append(verb)
        if not self.steps:
            self.hangs.set()
            await asyncio.Event().wait()
        expected, answer = self.steps.pop(0)
        assert expected == verb.split()[0], f"{verb} instead of {expected}"
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def pages(
        self, kind: str, namespace: str | None, selector: str = ""
    ) -> AsyncIterator[tuple[list[dict], str]]:
        items, version = await self._next("list")
        for item in items:
            if isinstance(item, Exception):
                raise item
            yield [item], version
        yield [], version

    async def watch(
        self, kind: str, namespace: str | None, selector: str, version: str
    ) -> AsyncIterator[tuple[str, dict]]:
        for item in await self._next(f"watch {version}"):
            if isinstance(item, Exception):
                raise item
            yield item


async def follow(server: Server, facts: cache.Cache, listed: Callable[[], None] = lambda: None) -> None:
    """Until the server's script is at its end."""
    tasks = [
        asyncio.ensure_future(watches.follow(server, facts, "Job", None, listed)),
        asyncio.ensure_future(server.hangs.wait()),
    ]
    done, _ = await asyncio.wait(tasks, timeout=30, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    assert [await task for task in done] == [True], "it neither ends on its own nor stops asking"


async def test_a_watch_resumes_where_the_last_one_ended() -> None:
    server = Server(
        ("list", ([child("a", 1)], "5")),
        ("watch", [("ADDED", child("b", 6)), ("BOOKMARK", {"metadata": {"resourceVersion": "8"}})]),
        ("watch", [("DELETED", child("a", 9))]),
    )
    facts = Notified()
    await follow(server, facts)
    assert server.asked == ["list", "watch 5", "watch 8", "watch 9"]
    assert facts.names() == ["b"]


@pytest.mark.parametrize("where", ["at its start", "in its middle"])
async def test_an_expired_watch_lists_again_at_once(where: str) -> None:
    broken = cluster.Expired() if where == "at its start" else [("ADDED", child("b", 6)), cluster.Expired()]
    server = Server(("list", ([child("a", 1)], "5")), ("watch", broken), ("list", ([child("c", 7)], "9")))
    facts = Notified()
    await follow(server, facts)
    assert server.asked[-2:] == ["list", "watch 9"]
    assert facts.names() == ["c"]


@pytest.mark.parametrize(
    "outage", [aiohttp.ClientConnectionError(), TimeoutError(), ConnectionResetError(), cluster.Failure(503, "busy")]
)
async def test_an_outage_is_followed_by_a_new_list(outage: Exception) -> None:
    server = Server(
        ("list", outage), ("list", ([child("a", 1)], "5")), ("watch", outage), ("list", ([child("b", 7)], "9"))
    )
    facts = Notified()
    times = []
    await follow(server, facts, lambda: times.append(1))
    assert facts.names() == ["b"]
    assert len(times) == 2


async def test_an_interrupted_list_removes_nothing() -> None:
    server = Server(
        ("list", ([child("a", 1), child("b", 2)], "5")),
        ("watch", cluster.Expired()),
        ("list", ([child("a", 1), TimeoutError()], "9")),
    )
    facts = Notified()
    await follow(server, facts)
    assert facts.names() == ["a", "b"]


async def test_all_kinds_are_listed_before_anything_is_decided() -> None:
    class Everything(Server):
        async def pages(
            self, kind: str, namespace: str | None, selector: str = ""
        ) -> AsyncIterator[tuple[list[dict], str]]:
            self.asked.append(f"{kind} {namespace}")
            if kind == "Pod" and not gate.is_set():
                await gate.wait()
            yield [], "1"

    gate, synced = asyncio.Event(), asyncio.Event()
    server = Everything()
    task = asyncio.create_task(watches.follow_all(server, Notified(), ["ml", "other"], synced))
    await asyncio.sleep(0.05)
    assert not synced.is_set()
    gate.set()
    await asyncio.wait_for(synced.wait(), 30)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert {"BaseModel None", "Job ml", "Job other", "Deployment ml"} <= set(server.asked)


async def test_nothing_waits_for_a_kueue_that_is_not_installed() -> None:
    class WithoutKueue(Server):
        async def pages(self, kind: str, namespace: str | None, selector: str) -> AsyncIterator[tuple[list[dict], str]]:
            self.asked.append(f"{kind} {selector}")
            if kind == "Workload":
                raise cluster.Failure(404, "the server could not find the requested resource")
            yield [], "1"

    server, facts, synced = WithoutKueue(), Notified(), asyncio.Event()
    task = asyncio.create_task(watches.follow_all(server, facts, [], synced, queues=True))
    await asyncio.wait_for(synced.wait(), 30)
    await asyncio.sleep(0.2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert server.asked.count(f"Workload {kueue.QUEUED_JOB}") >= 2, "it is looked for again"
    assert facts.workloads is None


async def test_without_the_crds_of_gateway_api_the_caches_are_filled_and_jobs_with_a_route_look_again() -> None:
    class WithoutRoutes(Server):
        async def pages(self, kind: str, namespace: str | None, selector: str) -> AsyncIterator[tuple[list[dict], str]]:
            if kind == "HTTPRoute":
                raise cluster.Failure(404, "the server could not find the requested resource")
            yield [], "1"

    facts, synced = Notified(), asyncio.Event()
    for uid, deployment in (("routed", {"route": {"host": "a.b"}}), ("other", {})):
        meta = {"name": uid, "namespace": "ml", "uid": uid, "resourceVersion": "1"}
        facts.put_parent({"metadata": meta, "spec": {"deployment": deployment}})
    facts.changes.clear()
    task = asyncio.create_task(watches.follow_all(WithoutRoutes(), facts, [], synced, routes=True))
    await asyncio.wait_for(synced.wait(), 30)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (facts.lacking, facts.changes) == ({"HTTPRoute"}, ["routed"])


async def test_a_defect_in_a_watch_ends_all_of_them() -> None:
    with pytest.raises(KeyError):
        await watches.follow_all(Server(("list", KeyError("defect"))), Notified(), [], asyncio.Event())


def pod(version: int, name: str = "a", **status: Any) -> dict:
    running = {"name": "finetune", "ready": True, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
    meta = {"name": name, "namespace": "ml", "resourceVersion": str(version)}
    labels = {label.UID: "p", label.STAGE: "train", label.COMPLETION_INDEX: "0"}
    state = {"phase": "Running", "podIP": "10.0.0.7", "containerStatuses": [running]}
    return {"kind": "Pod", "metadata": meta | {"labels": labels}, "status": state | status}


def test_the_first_pod_of_a_training_tells_as_long_as_it_runs() -> None:
    facts = Notified()
    facts.listed("Pod", None, [pod(1, phase="Pending")], "5")
    assert facts.reporting == {}
    facts.receive("Pod", None, "MODIFIED", pod(6))
    assert facts.reporting["p"].address == "10.0.0.7"
    second = pod(7, "b")
    second["metadata"]["labels"][label.COMPLETION_INDEX] = "1"
    facts.receive("Pod", None, "ADDED", second)
    assert facts.reporting["p"].name == "a"
    facts.receive("Pod", None, "MODIFIED", pod(8, phase="Failed"))
    assert facts.reporting == {}


@pytest.mark.parametrize("change", [{"podIP": ""}, {"containerStatuses": []}, {"phase": "Succeeded"}])
def test_a_pod_that_cannot_be_read_does_not_report(change: dict) -> None:
    facts = Notified()
    facts.listed("Pod", None, [pod(1, **change)], "5")
    assert facts.reporting == {}


def test_a_pod_that_replaces_another_tells_in_its_place() -> None:
    facts = Notified()
    facts.listed("Pod", None, [pod(1)], "5")
    facts.receive("Pod", None, "ADDED", pod(6, "b", podIP="10.0.0.8"))
    facts.receive("Pod", None, "DELETED", pod(7))
    assert facts.reporting["p"].address == "10.0.0.8"


def test_a_new_progress_report_triggers_a_reconcile_and_is_dropped_with_its_pod() -> None:
    facts = Notified()
    facts.listed("Pod", None, [pod(1)], "5")
    facts.changes.clear()
    for problem in ("", "", "no answer"):
        facts.put_reading("p", projections.Reading("a", None, problem))
    assert facts.changes == ["p", "p"]
    facts.receive("Pod", None, "DELETED", pod(6))
    assert facts.readings == {}
    facts.put_reading("p", projections.Reading("a"))
    assert facts.readings == {}, "the answer of a pod whose job is gone"


def test_a_job_that_ended_is_reconciled_before_others() -> None:
    later: list[str] = []
    first: list[str] = []
    facts = cache.Cache(later.append, first.append)
    facts.listed("Job", None, [stage_job(1)], "5")
    done = stage_job(6) | {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}
    facts.receive("Job", None, "MODIFIED", done)
    assert (later, first) == (["p"], ["p"])


@pytest.mark.parametrize("first", ["job", "pod"])
def test_a_pod_of_another_namespace_with_the_labels_of_a_job_is_not_its_own(first: str) -> None:
    """Whoever may create pods somewhere may copy the labels of a job that they can read elsewhere."""
    facts = Notified()
    forged = pod(6)
    forged["metadata"]["namespace"] = "elsewhere"
    if first == "job":
        facts.put_parent(job(1))
        facts.listed("Pod", None, [forged], "7")
    else:
        facts.listed("Pod", None, [forged], "7")
        facts.put_parent(job(1))
    assert facts.children == facts.reporting == {}
    facts.receive("Pod", None, "MODIFIED", {**forged, "metadata": forged["metadata"] | {"resourceVersion": "8"}})
    facts.receive("Pod", None, "ADDED", pod(9, "real"))
    assert facts.names() == ["real"]
    facts.receive("Pod", None, "DELETED", {**forged, "metadata": forged["metadata"] | {"resourceVersion": "10"}})
    assert facts.names() == ["real"]
