"""Jobs in a queue: held back until there is quota, taken off it and let in again, and never an attempt the more."""

import datetime

import pytest

from finetune_api.reasons import WAITING, Phase, Reason
from finetune_operator import metrics
from finetune_operator.observe import label
from flow import world
from flow.fakecluster import Ends, Evicted, Hangs, Raw
from support import queue

CONDITION = {"baseline": "BaselineMeasured", "train": "Trained", "evaluate": "Evaluated"}


def start(
    script: dict | None = None, room: int = 0, chart: dict | None = None, **changes
) -> tuple[world.World, queue.Queues]:
    """A job in LocalQueue team-a, which has room for so many pods."""
    played = world.World(script, world.KUEUE if chart is None else chart)
    kueue = world.queues(played.cluster, {"team-a": room})
    played.add_model()
    played.apply(**world.TEAM, **changes)
    return played, kueue


def asked(played: world.World) -> list[str]:
    """What the operator did to Jobs."""
    return [verb for verb, kind, _ in played.cluster.requests if kind == "Job" and verb != "refusal"]


def job_of(played: world.World, stage: str) -> Raw:
    return played.cluster.get("Job", played.attempts(stage)[-1])


# -- success --


@pytest.mark.parametrize("stage", ["baseline", "train", "evaluate"])
async def test_a_stage_waits_for_its_quota_with_kueues_message_and_continues_automatically(stage: str) -> None:
    played, kueue = start(room=1, **world.ASKED)
    await played.settle(until=lambda: bool(played.attempts(stage)))
    kueue.held.add(played.attempts(stage)[0])
    await played.rest()
    assert played.phase == Phase.QUEUED
    assert played.reason("Ready") == played.reason(CONDITION[stage]) == Reason.QUEUED
    shown = played.condition("Ready").message
    assert shown.startswith(f"{stage} attempt 1 waits in LocalQueue team-a: ")
    assert "insufficient unused quota for nvidia.com/gpu in flavor default-flavor, 1 more needed" in shown
    assert world.kstatus(played.job) == "InProgress"
    assert not played.pods(stage)
    kueue.held.clear()
    played.cluster.now += datetime.timedelta(hours=5)
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts(stage)) == 1


async def test_what_loads_the_model_is_queued_and_nothing_else() -> None:
    played, _ = start(room=1, **world.ASKED)
    await played.rest()
    assert played.phase == Phase.READY
    queues = {
        raw["metadata"]["labels"][label.STAGE]: raw["metadata"]["labels"].get(queue.LABEL)
        for raw in played.cluster.of("Job")
    }
    assert queues == {
        "preflight": None, "baseline": "team-a", "train": "team-a", "evaluate": "team-a", "verify": None
    }  # fmt: skip
    for raw in played.cluster.of("Deployment"):
        assert queue.LABEL not in str(raw)


async def test_a_job_without_a_queue_is_never_suspended() -> None:
    played = world.World(chart=world.KUEUE)
    played.add_model()
    played.apply()
    await played.rest()
    assert played.phase == Phase.READY
    assert not [raw for raw in played.cluster.of("Job") if "suspend" in raw["spec"]]


async def test_a_job_is_written_once_and_what_admission_made_of_it_stays() -> None:
    played, _ = start({"train": [Hangs()]}, room=1)
    await played.settle(until=played.runs("train"))
    # an edit that changes nothing of the training, a new operator, a job that is looked at again and again
    played.apply(**world.TEAM, **{"spec.deployment.replicas": 2})
    played.boot()
    await played.wait(3600)
    admitted = job_of(played, "train")["spec"]
    assert admitted["suspend"] is False
    assert admitted["template"]["spec"]["nodeSelector"] == queue.FLAVOR
    assert queue.TAINT in admitted["template"]["spec"]["tolerations"]
    assert admitted["template"]["metadata"]["labels"].items() >= queue.PODSET.items()
    played.let_go("train")
    await played.rest()
    assert played.phase == Phase.READY
    assert asked(played) == ["create"] * 4


async def test_a_create_whose_answer_was_lost_does_not_take_the_job_back_out_of_the_queue() -> None:
    played, _ = start({"train": [Hangs()]}, room=1)
    await played.settle(until=played.runs("train"))
    made = played.cluster.objects["Job", "ml", played.attempts("train")[0]]
    again = await played.cluster.create({**made, "spec": {**made["spec"], "suspend": True}})
    assert again["spec"]["suspend"] is False


async def test_all_pods_of_several_nodes_are_let_in_at_once() -> None:
    played, kueue = start(room=1, **{"spec.resources.nodes": 2})
    await played.rest()
    assert played.reason("Trained") == Reason.QUEUED
    assert not played.pods("train")
    kueue.room["team-a"] = 2
    played.cluster.now += datetime.timedelta(minutes=1)
    await played.rest()
    assert played.phase == Phase.READY


# -- taken off --


@pytest.mark.parametrize("nodes", [1, 2])
async def test_a_stage_that_is_preempted_waits_again_and_no_attempt_is_counted(nodes: int) -> None:
    played, kueue = start({"train": [Hangs()] * nodes}, room=2, **{"spec.resources.nodes": nodes})
    await played.settle(until=played.runs("train"))
    await played.settle()
    assert played.reason("Trained") == Reason.RUNNING
    kueue.evict(played.attempts("train")[0])
    await played.rest()
    assert played.phase == Phase.QUEUED
    assert played.reason("Ready") == Reason.EVICTED
    shown = played.condition("Trained").message
    assert "waits in LocalQueue team-a: evicted (Preempted: Preempted to accommodate a workload" in shown
    assert "newest checkpoint" in shown
    assert not played.pods("train")
    assert ("Warning", "Evicted") in [(kind, reason) for kind, reason, _ in played.cluster.events]
    kueue.held.clear()
    played.cluster.now += datetime.timedelta(hours=1)
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts("train")) == 1
    assert (played.state.failed_attempts, played.state.failure) == (0, None)


async def test_pods_that_save_their_checkpoint_while_they_are_preempted_do_not_fail_the_job() -> None:
    played, kueue = start({"train": [Hangs()]}, room=1, **{"spec.training.retries": 0})
    await played.settle(until=played.runs("train"))
    played.cluster.stop_slowly = True
    kueue.evict(played.attempts("train")[0])
    await played.wait(60)
    assert played.reason("Trained") == Reason.EVICTED
    assert len(played.pods("train")) == 1
    # let in again while the old pod is still there: the new one comes after it
    kueue.held.clear()
    await played.wait(60)
    assert len(played.pods("train")) == 1
    played.cluster.stop_slowly = False
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts("train")) == 1


async def test_a_drain_of_a_waiting_training_does_not_count_as_a_failure() -> None:
    played, _ = start({"train": [Evicted()]}, room=1, **{"spec.training.retries": 0})
    await played.rest()
    assert played.phase == Phase.READY
    assert played.state.failed_attempts == 0


async def test_a_failure_of_a_queued_stage_is_repeated_in_the_queue() -> None:
    played, _ = start({"train": [Ends(1, "Traceback: boom")]}, room=1)
    await played.rest()
    assert played.phase == Phase.READY
    assert [
        played.cluster.get("Job", name)["metadata"]["labels"][queue.LABEL] for name in played.attempts("train")
    ] == [
        "team-a",
        "team-a",
    ]


async def test_nothing_promises_an_end_while_the_stage_waits() -> None:
    played, kueue = start({"train": [Hangs()]}, room=1)
    await played.settle(until=played.runs("train"))
    played.tell()
    await played.settle(until=lambda: played.state.progress is not None)
    assert played.state.progress.eta == "12m"
    kueue.evict(played.attempts("train")[0])
    await played.rest()
    assert (played.state.progress.percent, played.state.progress.eta) == (40, None)


# -- what is wrong with the queue --


async def test_a_queue_that_does_not_exist_is_named_and_waited_for() -> None:
    played, kueue = start(room=1)
    kueue.room = {}
    await played.rest()
    assert Reason.QUEUE_REFUSED in WAITING
    assert (played.phase, played.reason("Ready")) == (Phase.QUEUED, Reason.QUEUE_REFUSED)
    assert "waits in LocalQueue team-a: LocalQueue team-a doesn't exist" in played.condition("Ready").message
    kueue.room = {"team-a": 1}
    played.cluster.now += datetime.timedelta(seconds=1)
    await played.rest()
    assert played.phase == Phase.READY


async def test_a_job_that_kueue_does_not_notice_is_reported() -> None:
    played, kueue = start(room=1)
    played.cluster.controllers.clear()
    await played.settle(until=lambda: played.reason("Trained") == Reason.QUEUED)
    await played.rest()
    assert played.reason("Trained") == Reason.QUEUE_REFUSED
    assert "no Workload" in played.condition("Trained").message
    played.cluster.controllers.append(kueue.step)
    await played.rest()
    assert played.phase == Phase.READY


async def test_a_workload_that_was_deactivated_says_what_to_do() -> None:
    played, _ = start()
    await played.rest()
    name = f"job-{played.attempts('train')[0]}"
    played.cluster.edit("Workload", name, lambda raw: raw["spec"].update(active=False))
    await played.rest()
    assert played.reason("Trained") == Reason.QUEUE_REFUSED
    assert f"Workload {name} is deactivated: set its spec.active to true" in played.condition("Trained").message


async def test_admission_checks_that_are_not_done_are_named() -> None:
    played, _ = start()
    await played.rest()
    played.cluster.controllers.clear()
    check = {"name": "spot-capacity", "state": "Pending", "message": "no node so far"}
    reserved = {"type": "QuotaReserved", "status": "True", "reason": "QuotaReserved", "message": "so it is"}
    name = f"job-{played.attempts('train')[0]}"
    state = {"conditions": [reserved], "admissionChecks": [check, {"name": "done", "state": "Ready"}]}
    played.cluster.edit("Workload", name, lambda raw: raw.update(status=state))
    await played.rest()
    shown = played.condition("Trained").message
    assert shown.endswith("admission check spot-capacity is Pending (no node so far)")


async def test_an_operator_that_may_not_read_workloads_reports_it_and_works_anyway() -> None:
    played, kueue = start(chart={})
    await played.rest()
    assert (played.phase, played.reason("Trained")) == (Phase.QUEUED, Reason.QUEUED)
    assert "kueue.enabled" in played.condition("Trained").message
    kueue.room["team-a"] = 1
    played.cluster.now += datetime.timedelta(seconds=1)
    await played.rest()
    assert played.phase == Phase.READY


async def test_a_job_suspended_by_someone_else_reports_it() -> None:
    played = world.World({"train": [Hangs()]}, world.KUEUE)
    played.add_model()
    played.apply()
    await played.settle(until=played.runs("train"))
    name = played.attempts("train")[0]
    played.cluster.edit("Job", name, lambda raw: raw["spec"].update(suspend=True))
    await played.rest()
    assert played.reason("Trained") == Reason.QUEUED
    assert f"Job {name} was suspended" in played.condition("Trained").message
    assert played.state.queue.name is None
    played.cluster.edit("Job", name, lambda raw: raw["spec"].update(suspend=False))
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts("train")) == 1


# -- time --


async def test_the_deadline_does_not_run_in_the_queue() -> None:
    played, kueue = start({"train": [Hangs(), Hangs()]}, **{"spec.activeDeadlineSeconds": 3600})
    await played.wait(100_000)
    assert (played.phase, played.reason("Trained")) == (Phase.QUEUED, Reason.QUEUED)
    kueue.room["team-a"] = 1
    await played.wait(3400)
    assert played.reason("Trained") == Reason.RUNNING
    assert played.state.queue.since is None
    assert 99_900 < played.state.queue.waited_seconds < 100_100
    # taken off half an hour before its time is up, and let in again
    kueue.evict(played.attempts("train")[0])
    await played.wait(50_000)
    assert played.reason("Trained") == Reason.EVICTED
    kueue.held.clear()
    await played.wait(300)
    assert (played.phase, played.reason("Failed")) == (Phase.FAILED, Reason.DEADLINE_EXCEEDED)
    await played.rest()


async def test_what_a_revision_waited_is_not_granted_to_the_next_one() -> None:
    played, kueue = start()
    await played.wait(5000)
    assert played.state.queue.since is not None
    played.apply(**world.TEAM, **{"spec.training.seed": 7})
    await played.wait(1000)
    assert played.state.queue.waited_seconds == 0
    kueue.room["team-a"] = 1
    await played.rest()
    assert played.phase == Phase.READY


async def test_each_wait_is_counted_once_by_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[tuple[str, float]] = []
    monkeypatch.setattr(metrics, "waited", waits.extend)
    ends = []
    monkeypatch.setattr(metrics, "ended", ends.extend)
    played, kueue = start({"train": [Hangs()]})
    await played.wait(1000)
    kueue.room["team-a"] = 1
    await played.wait(100)
    kueue.evict(played.attempts("train")[0])
    await played.wait(500)
    kueue.held.clear()
    await played.rest()
    assert played.phase == Phase.READY
    of_training = [seconds for stage, seconds in waits if stage == "train"]
    assert len(of_training) == 2
    assert 900 < of_training[0] < 1100
    assert 400 < of_training[1] < 600
    assert {end.stage: end.waited is None for end in ends} == {
        "preflight": False, "train": True, "evaluate": True, "verify": False
    }  # fmt: skip


# -- edits --


async def test_suspending_the_finetunejob_takes_its_job_out_of_the_queue() -> None:
    played, kueue = start()
    await played.rest()
    played.apply(**world.TEAM, **{"spec.suspend": True})
    await played.rest()
    assert played.phase == Phase.SUSPENDED
    assert played.attempts("train")[0] not in played.cluster.names("Job")
    assert played.cluster.names("Workload") == []
    assert played.state.queue.since is None
    kueue.room["team-a"] = 1
    played.apply(**world.TEAM)
    await played.rest()
    assert played.phase == Phase.READY
    assert [name[-1] for name in played.attempts("train")] == ["1", "2"]


async def test_a_job_that_waits_moves_to_another_queue_and_one_that_runs_stays() -> None:
    played, kueue = start(room=0)
    await played.rest()
    kueue.room["team-b"] = 1
    played.script["train"] = [Hangs()]
    played.apply(**{"spec.resources.queueName": "team-b"})
    await played.settle(until=played.runs("train"))
    assert job_of(played, "train")["metadata"]["labels"][queue.LABEL] == "team-b"
    running = played.attempts("train")[-1]
    played.apply(**world.TEAM)
    await played.wait(100)
    assert played.attempts("train")[-1] == running
    played.let_go("train")
    kueue.room["team-a"] = 1
    await played.rest()
    assert played.phase == Phase.READY
    assert job_of(played, "evaluate")["metadata"]["labels"][queue.LABEL] == "team-a"
    assert played.state.failed_attempts == 0
