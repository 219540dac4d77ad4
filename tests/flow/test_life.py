"""Suspension, deadlines, time to live, and what is never done twice."""

import collections
import random

import pytest

from finetune_api.reasons import Phase, Reason, Stage
from flow import world
from flow.fakecluster import Ends, Hangs


def start(script: dict | None = None, **changes) -> world.World:
    played = world.World(script)
    played.add_model()
    played.apply(**changes)
    return played


# -- suspend and resume --


@pytest.mark.parametrize("stage", list(Stage))
async def test_suspending_stops_the_stage_and_resuming_starts_the_next_attempt(stage: Stage) -> None:
    played = start({stage: [Hangs()]}, **world.ASKED)
    await played.settle(until=played.runs(stage))
    played.apply(**world.ASKED, **{"spec.suspend": True})
    await played.rest()
    assert (played.phase, played.reason("Ready")) == (Phase.SUSPENDED, Reason.SUSPENDED)
    assert not played.pods(stage)
    assert not played.pods("server")
    assert world.kstatus(played.job) == "InProgress"
    played.apply(**world.ASKED)
    await played.rest()
    assert played.phase == Phase.READY
    assert [name.rpartition("-")[2] for name in played.attempts(stage)] == ["1", "2"]
    assert played.reason("Suspended") == Reason.RESUMED


async def test_a_job_that_is_suspended_from_the_start_starts_nothing() -> None:
    played = start(**{"spec.suspend": True})
    await played.rest()
    assert played.phase == Phase.SUSPENDED
    assert not played.cluster.names("Job")
    played.apply()
    await played.rest()
    assert played.phase == Phase.READY


async def test_a_suspended_model_keeps_serving() -> None:
    played = start()
    await played.rest()
    served = played.serving()
    played.apply(**{"spec.suspend": True})
    await played.rest()
    assert (played.phase, played.serving()) == (Phase.READY, served)
    assert len(played.pods("server")) == 1


async def test_resuming_waits_for_the_old_pod_to_save_its_checkpoint() -> None:
    played = start({"train": [Hangs()]})
    await played.settle(until=played.runs("train"))
    played.cluster.stop_slowly = True
    played.apply(**{"spec.suspend": True})
    await played.rest()
    played.apply()
    await played.rest()
    assert len(played.pods("train")) == 1
    assert len(played.attempts("train")) == 1
    played.cluster.stop_slowly = False
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts("train")) == 2


async def test_flapping_suspension_never_runs_two_pods() -> None:
    played = start({"train": [Hangs()] * 5})
    await played.settle(until=played.runs("train"))
    played.cluster.stop_slowly = True
    for number in range(8):
        played.apply(**{"spec.suspend": number % 2 == 0})
        await played.tick()
    played.cluster.stop_slowly = False
    await played.rest()
    played.let_go("train")
    await played.rest()
    assert played.phase == Phase.READY


async def test_a_new_job_is_known_before_its_watch_event() -> None:
    played = start()
    await played.settle(until=lambda: bool(played.attempts("train")))
    for suspend in (True, False, True, False):
        played.apply(**{"spec.suspend": suspend})
        for news in [n for n in played.cluster.undelivered if n[1] == "FineTuneJob"]:
            played.cluster.undelivered.remove(news)
            played.deliver_one(*news)
        for uid in sorted(played.dirty):
            await played.reconcile(uid)  # which asserts that no two Jobs are active
    await played.rest()
    assert played.phase == Phase.READY


async def test_a_stage_that_ended_before_it_could_be_suspended_is_not_run_again() -> None:
    played = start({"train": [Hangs()]})
    await played.settle(until=played.runs("train"))
    played.let_go("train")
    played.cluster.step()
    played.cluster.step()
    played.apply(**{"spec.suspend": True})
    await played.rest()
    assert played.phase == Phase.SUSPENDED
    played.apply()
    await played.rest()
    assert len(played.attempts("train")) == 1
    assert played.phase == Phase.READY


async def test_suspension_does_not_count_against_the_deadline() -> None:
    played = start({"train": [Hangs()]}, **{"spec.activeDeadlineSeconds": 3600})
    await played.settle(until=played.runs("train"))
    played.apply(**{"spec.activeDeadlineSeconds": 3600, "spec.suspend": True})
    await played.wait(10_000)
    assert played.phase == Phase.SUSPENDED
    played.apply(**{"spec.activeDeadlineSeconds": 3600})
    await played.rest()
    assert played.phase == Phase.READY


async def test_a_job_that_is_resumed_and_edited_to_an_unknown_model_does_not_look_suspended() -> None:
    played = start(**{"spec.suspend": True})
    await played.rest()
    played.apply(**{"spec.baseModel.name": "none"})
    await played.rest()
    assert played.phase == Phase.PENDING
    assert world.kstatus(played.job) == "InProgress"


async def test_a_candidate_is_removed_by_suspension_and_restored_by_resuming() -> None:
    played = start()
    await played.rest()
    served = played.serving()
    played.script["server"] = [Hangs()]
    played.apply(**{"spec.deployment.extraArgs": ["--max-model-len=512"]})
    await played.rest()
    assert len(played.cluster.names("Deployment")) == 2
    played.apply(**{"spec.deployment.extraArgs": ["--max-model-len=512"], "spec.suspend": True})
    await played.rest()
    assert played.cluster.names("Deployment") == [served]
    assert played.phase == Phase.SUSPENDED
    assert f"(revision {played.state.deployment.revision} " in played.condition("Ready").message
    played.apply(**{"spec.deployment.extraArgs": ["--max-model-len=512"]})
    await played.rest()
    assert played.phase == Phase.READY
    assert played.serving() != served


# -- time to live --


async def test_a_failed_job_is_deleted_when_its_time_to_live_is_over() -> None:
    ended = Ends(2, world.refusal(Stage.PREFLIGHT, Reason.DATASET_INVALID))
    played = start({"preflight": [ended]}, **{"spec.ttlSecondsAfterFinished": 3000})
    await played.wait(2900)
    assert played.phase == Phase.FAILED
    await played.wait(200)
    await played.settle()
    assert played.cluster.objects.keys() == {("BaseModel", "", "qwen2.5-7b-instruct")}


async def test_a_complete_job_is_deleted_when_its_time_to_live_is_over() -> None:
    played = start(**{"spec.deployment.enabled": False, "spec.ttlSecondsAfterFinished": 0})
    await played.settle()
    assert not played.cluster.names("FineTuneJob")


async def test_time_to_live_never_removes_a_job_that_serves() -> None:
    played = start(**{"spec.ttlSecondsAfterFinished": 0})
    await played.wait(5000)
    assert played.phase == Phase.READY


async def test_time_to_live_never_removes_a_failed_job_whose_former_revision_serves() -> None:
    played = start(**{"spec.ttlSecondsAfterFinished": 0})
    await played.rest()
    played.script["evaluate"] = [Ends(0, world.evaluate(passed=False))]
    played.apply(**{"spec.ttlSecondsAfterFinished": 0, "spec.training.seed": 7})
    await played.wait(5000)
    assert played.phase == Phase.FAILED
    assert played.serving()


async def test_an_edit_in_the_last_moment_saves_the_job() -> None:
    ended = Ends(2, world.refusal(Stage.PREFLIGHT, Reason.DATASET_INVALID))
    played = start({"preflight": [ended]}, **{"spec.ttlSecondsAfterFinished": 3000})
    await played.wait(2900)
    played.cluster.now += world.datetime.timedelta(seconds=200)
    played.apply(**{"spec.ttlSecondsAfterFinished": 3000, "spec.training.seed": 7})  # not heard of yet
    for uid in list(played.cache.parents):
        await played.reconcile(uid)
    assert played.cluster.names("FineTuneJob")
    await played.rest()
    assert played.phase == Phase.READY


# -- what is over stays over --


@pytest.mark.parametrize("serves", [True, False])
async def test_finished_jobs_that_are_removed_start_nothing_again(serves: bool) -> None:
    played = start(**{"spec.deployment.enabled": serves})
    await played.rest()
    before = list(played.cluster.created)
    for name in played.cluster.names("Job"):
        played.cluster.remove("Job", name)
    played.boot()
    await played.rest()
    assert not played.cluster.names("Job")
    assert played.cluster.created == before


async def test_a_failure_is_final_for_a_restarted_operator_too() -> None:
    ended = Ends(2, world.refusal(Stage.TRAIN, Reason.MODEL_INVALID))
    played = start({"train": [ended]})
    await played.rest()
    for name in played.cluster.names("Job"):
        played.cluster.remove("Job", name)
    before = list(played.cluster.created)
    played.boot({"images": {"trainer": "new:2", "fetch": "new:2", "serving": "new:2"}})
    await played.wait(10_000)
    assert played.cluster.created == before
    assert played.phase == Phase.FAILED


async def test_finished_jobs_are_deleted_by_their_own_time_to_live_without_effects() -> None:
    played = start()
    await played.rest()
    assert len(played.cluster.names("Job")) == 4
    await played.wait(5000)
    assert not played.cluster.names("Job")
    assert played.phase == Phase.READY


async def test_the_run_annotation_asks_for_a_fresh_run_of_a_failed_job() -> None:
    ended = Ends(2, world.refusal(Stage.TRAIN, Reason.S3_ACCESS_DENIED))
    played = start({"train": [ended]})
    await played.rest()
    assert played.phase == Phase.FAILED
    first = played.state.revision
    played.cluster.put(
        world.finetunejob() | {"metadata": {"name": world.NAME, "annotations": {"finetune.dev/run": "2"}}}
    )
    await played.rest()
    assert played.phase == Phase.READY
    assert played.state.revision != first
    assert [(h.revision == first, h.outcome) for h in played.state.history] == [
        (False, Reason.SERVING),
        (True, Reason.S3_ACCESS_DENIED),
    ]


async def test_a_stage_whose_running_job_is_removed_starts_again() -> None:
    played = start({"train": [Hangs()]})
    await played.settle(until=played.runs("train"))
    played.cluster.remove("Job", played.attempts("train")[0])
    await played.rest()
    assert played.phase == Phase.READY


# -- the operator itself --


@pytest.mark.parametrize("after", range(0, 40, 3))
async def test_a_restart_at_any_moment_changes_nothing(after: int) -> None:
    played = start({"train": [Ends(1), Ends(137, "", "OOMKilled")]})
    for _ in range(after):
        await played.tick()
        played.cluster.now += world.datetime.timedelta(seconds=2)
    played.boot()
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts("train")) == 3
    assert len(played.attempts("evaluate")) == len(played.attempts("preflight")) == len(played.attempts("verify")) == 1


async def test_a_job_whose_deletion_was_missed_gets_no_children() -> None:
    played = start()
    await played.rest()
    played.cluster.remove("FineTuneJob", world.NAME)
    played.cluster.undelivered = [news for news in played.cluster.undelivered if news[1] != "FineTuneJob"]
    await played.settle()
    assert played.cluster.objects.keys() == {("BaseModel", "", "qwen2.5-7b-instruct")}
    assert not played.cache.parents


async def test_a_lost_child_is_not_made_again_for_a_job_whose_deletion_was_missed() -> None:
    played = start()
    await played.rest()
    await played.wait(5)
    asked = len(played.cluster.requests)
    played.cluster.remove("Service", world.NAME)
    played.cluster.remove("FineTuneJob", world.NAME)
    played.cluster.undelivered = [news for news in played.cluster.undelivered if news[1] != "FineTuneJob"]
    await played.settle()
    assert [verb for verb, _, _ in played.cluster.requests[asked:]] == ["exists"]
    assert not played.cache.parents


async def test_a_job_is_its_jobs_its_server_and_the_services_before_it_and_nothing_else() -> None:
    played = start()
    await played.rest()
    assert played.phase == Phase.READY
    made = collections.Counter(kind for kind, _, _ in played.cluster.created)
    assert set(made) == world.KINDS
    assert (made["Job"], made["Deployment"], made["Service"]) == (4, 1, 2)


async def test_a_life_takes_few_requests() -> None:
    played = start({"preflight": [Hangs()]}, **{"spec.deployment.enabled": False})
    await played.settle(until=played.runs("preflight"))
    begun = [verb for verb, _, _ in played.cluster.requests]
    assert begun[:2] == ["status", "create"], "the status first: a Job is on record before it exists"
    assert len(begun) + len(played.cluster.events) <= 4
    played.let_go("preflight")
    await played.rest()
    assert played.phase == Phase.COMPLETE
    assert len(played.cluster.requests) + len(played.cluster.events) <= 15
    assert [reason for _, reason, _ in played.cluster.events] == ["Succeeded"] * 4


async def test_deleting_the_job_removes_every_child() -> None:
    played = start({"train": [Hangs()]})
    await played.settle(until=played.runs("train"))
    played.cluster.remove("FineTuneJob", world.NAME)
    await played.settle()
    assert played.cluster.objects.keys() == {("BaseModel", "", "qwen2.5-7b-instruct")}
    assert not played.cache.children


async def test_a_job_of_the_same_name_waits_until_the_old_ones_children_are_gone() -> None:
    played = start({"train": [Hangs()]})
    await played.settle(until=played.runs("train"))
    played.cluster.stop_slowly = True
    played.cluster.remove("FineTuneJob", world.NAME)
    played.apply()
    for _ in range(20):
        await played.tick()
        played.cluster.now += world.datetime.timedelta(seconds=1)
    played.cluster.stop_slowly = False
    await played.rest()
    assert played.phase == Phase.READY


def service_of_others(played: world.World) -> None:
    meta = {"name": world.NAME, "namespace": "ml"}
    played.cluster._store("Service", {"kind": "Service", "metadata": meta, "spec": {"selector": {"app": "web"}}})


async def test_another_owners_service_of_the_same_name_is_named_before_anything_runs() -> None:
    played = start()
    service_of_others(played)
    await played.settle(until=lambda: played.is_true("Stalled"))
    assert played.reason("Accepted") == played.reason("Ready") == Reason.SERVED_NAME_TAKEN
    assert f"Service {world.NAME} exists and is not this job's" in played.condition("Ready").message
    assert played.cluster.names("Job") == []
    played.cluster.remove("Service", world.NAME)
    await played.rest()
    assert played.phase == Phase.READY


async def test_a_job_without_a_server_needs_no_service_until_an_edit_adds_one() -> None:
    played = start(**{"spec.deployment.enabled": False})
    service_of_others(played)
    await played.rest()
    assert played.phase == Phase.COMPLETE
    assert ("find", "Service", world.NAME) not in played.cluster.requests
    played.apply()
    await played.settle(until=lambda: played.reason("Accepted") == Reason.SERVED_NAME_TAKEN)
    played.cluster.remove("Service", world.NAME)
    await played.rest()
    assert played.phase == Phase.READY


async def test_the_services_of_others_are_read_once_for_each_edit() -> None:
    played = start()
    await played.rest()
    assert played.cluster.requests.count(("find", "Service", world.NAME)) <= 2


async def test_another_owners_service_of_the_same_name_is_not_taken_over() -> None:
    played = start({"train": [Hangs()]})
    await played.settle(until=played.runs("train"))
    service_of_others(played)
    played.let_go("train")
    await played.settle(until=lambda: played.reason("Ready") == Reason.POD_REFUSED)
    assert "exists and is not this job's" in played.condition("Ready").message
    assert played.cluster.get("Service", world.NAME)["spec"]["selector"] == {"app": "web"}
    played.cluster.remove("Service", world.NAME)
    await played.rest()
    assert played.phase == Phase.READY


async def test_an_unchanged_job_is_not_written() -> None:
    played = start()
    await played.rest()
    version = played.job["metadata"]["resourceVersion"]
    await played.wait(5000)
    assert played.job["metadata"]["resourceVersion"] == version


async def test_the_operator_writes_neither_the_spec_nor_annotations_nor_finalizers() -> None:
    played = start()
    await played.rest()
    written = {(verb, kind) for verb, kind, _ in played.cluster.requests if kind == "FineTuneJob"}
    assert written == {("status", "FineTuneJob")}
    assert set(played.job["metadata"]) == {
        "name", "namespace", "generation", "uid", "creationTimestamp", "resourceVersion",
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(10))
async def test_an_api_server_that_is_away_now_and_then_costs_time_only(seed: int) -> None:
    played = start()
    dice = random.Random(seed)

    def away(verb: str, kind: str, name: str) -> None:
        if dice.random() < 0.3:
            raise ConnectionResetError

    played.cluster.refuse = away
    await played.settle()
    assert played.failures
    played.cluster.refuse = lambda *_: None
    await played.rest()
    assert played.phase == Phase.READY
    assert [len(played.attempts(stage)) for stage in world.ALWAYS] == [1, 1, 1, 1]


async def test_the_status_stays_small() -> None:
    uris = [f"s3://acme/{'long/' * 100}{number}.jsonl" for number in range(64)]
    played = start(**{"spec.dataset.train": uris})
    await played.rest()
    assert len(str(played.job["status"])) < 100_000


async def test_a_life_makes_few_events() -> None:
    played = start()
    await played.rest()
    assert len(played.cluster.events) <= 4
    assert len(set(played.cluster.events)) == len(played.cluster.events)
    assert {kind for kind, _, _ in played.cluster.events} == {"Normal"}
