"""Attempts: what is repeated, how, and what never is."""

import pytest

from finetune_api.reasons import Condition, Phase, Reason, Stage
from flow import world
from flow.fakecluster import Ends, Evicted, Hangs


def start(script: dict, chart: dict | None = None, **changes) -> world.World:
    played = world.World(script, chart)
    played.add_model()
    played.apply(**changes)
    return played


@pytest.mark.parametrize("code", [1, 137, 143, 255])
async def test_a_failure_that_may_pass_is_repeated(code: int) -> None:
    played = start({"train": [Ends(code, "Traceback: boom")]})
    await played.rest()
    assert played.phase == Phase.READY
    assert [name[-7:] for name in played.attempts("train")] == ["train-1", "train-2"]


async def test_a_failure_that_may_pass_is_repeated_as_often_as_retries_allow() -> None:
    played = start({"train": [Ends(1, "Traceback: boom")] * 9}, **{"spec.training.retries": 3})
    await played.rest()
    assert len(played.attempts("train")) == 4
    assert (played.phase, played.reason("Failed")) == (Phase.FAILED, Reason.TRAINER_ERROR)
    failure = played.state.failure
    assert failure is not None
    assert (failure.exit_code, failure.attempt, failure.log_tail) == (1, 4, "Traceback: boom")


async def test_without_retries_the_first_failure_is_the_last() -> None:
    played = start({"preflight": [Ends(1)]}, **{"spec.training.retries": 0})
    await played.rest()
    assert len(played.attempts("preflight")) == 1
    assert played.reason("Failed") == Reason.TRAINER_ERROR


@pytest.mark.parametrize(
    "stage, code, reason",
    [
        (Stage.PREFLIGHT, 2, Reason.DATASET_NOT_FOUND),
        (Stage.PREFLIGHT, 2, Reason.DATASET_INVALID),
        (Stage.PREFLIGHT, 2, Reason.S3_ACCESS_DENIED),
        (Stage.PREFLIGHT, 2, Reason.BUCKET_NOT_FOUND),
        (Stage.TRAIN, 2, Reason.MODEL_INVALID),
        (Stage.TRAIN, 4, Reason.LOSS_DIVERGED),
        (Stage.EVALUATE, 2, Reason.ADAPTER_INCOMPATIBLE),
        (Stage.VERIFY, 2, Reason.ADAPTER_NOT_SERVED),
    ],
)
async def test_what_would_end_the_same_again_is_never_repeated(stage: Stage, code: int, reason: Reason) -> None:
    played = start({stage: [Ends(code, world.refusal(stage, reason, "seen; do this"))]})
    await played.rest()
    assert len(played.attempts(stage)) == 1
    assert (played.phase, played.reason("Failed")) == (Phase.FAILED, reason)
    assert played.condition("Failed").message == "seen; do this"
    assert world.kstatus(played.job) == "Failed"


async def test_exit_code_2_is_final_even_without_an_outcome() -> None:
    played = start({"train": [Ends(2, "ValueError")]})
    await played.rest()
    assert len(played.attempts("train")) == 1
    assert "ValueError" in played.condition("Failed").message


@pytest.mark.parametrize(
    "end", [Ends(3, world.refusal(Stage.TRAIN, Reason.TRAINER_OUT_OF_MEMORY)), Ends(3), Ends(137, "", "OOMKilled")]
)
async def test_out_of_memory_is_repeated_once_with_half_the_micro_batch(end: Ends) -> None:
    played = start({"train": [end, end]}, **{"spec.training.retries": 5})
    await played.rest()
    first, second = (arguments(played, name) for name in played.attempts("train"))
    assert "--micro-batch-scale" not in first
    assert second[second.index("--micro-batch-scale") + 1] == "0.5"
    assert len(played.attempts("train")) == 2
    notified = played.run_file("Job", played.attempts("train")[1])
    assert notified["training"]["batchSize"] == 16, "the effective batch stays"
    assert (played.phase, played.reason("Failed")) == (Phase.FAILED, Reason.TRAINER_OUT_OF_MEMORY)


@pytest.mark.parametrize("stage", [Stage.BASELINE, Stage.EVALUATE])
async def test_a_measurement_that_runs_out_of_memory_takes_half_as_much_at_once(stage: Stage) -> None:
    end = Ends(3, world.refusal(stage, Reason.TRAINER_OUT_OF_MEMORY))
    played = start({stage: [end, end]}, **world.ASKED)
    await played.rest()
    first, second = (arguments(played, name) for name in played.attempts(stage))
    assert "--micro-batch-scale" not in first
    assert second[second.index("--micro-batch-scale") + 1] == "0.5"
    assert (played.phase, played.reason("Failed")) == (Phase.FAILED, Reason.TRAINER_OUT_OF_MEMORY)


async def test_out_of_memory_is_repeated_even_without_retries() -> None:
    played = start({"train": [Ends(137, "", "OOMKilled")]}, **{"spec.training.retries": 0})
    await played.rest()
    assert played.phase == Phase.READY


async def test_the_smaller_micro_batch_ends_with_training() -> None:
    oom = Ends(137, "", "OOMKilled")
    played = start({"train": [oom], "evaluate": [oom]})
    await played.rest()
    assert len(played.attempts("evaluate")) == 2
    assert played.phase == Phase.READY


async def test_a_storage_outage_is_repeated_with_growing_pauses_and_does_not_count() -> None:
    outage = Ends(5, world.refusal(Stage.TRAIN, Reason.STORAGE_UNAVAILABLE))
    played = start({"train": [outage] * 6 + [Ends(1)] * 2}, **{"spec.training.retries": 2})
    await played.settle(until=lambda: played.reason("Trained") == Reason.STORAGE_UNAVAILABLE)
    assert "starts in 10 s" in played.condition("Trained").message
    assert world.kstatus(played.job) == "InProgress"
    await played.rest()
    assert len(played.attempts("train")) == 9
    assert played.phase == Phase.READY


async def test_a_storage_outage_that_never_ends_ends_with_the_deadline() -> None:
    outage = Ends(5, world.refusal(Stage.PREFLIGHT, Reason.STORAGE_UNAVAILABLE))
    played = start({"preflight": [outage] * 99}, **{"spec.activeDeadlineSeconds": 3600})
    await played.wait(4000)
    assert played.reason("Failed") == Reason.DEADLINE_EXCEEDED
    assert "S3" in played.condition("Failed").message or "StorageUnavailable" in played.condition("Failed").message
    assert 10 < len(played.attempts("preflight")) < 20


async def test_pauses_grow_up_to_five_minutes() -> None:
    played = start({"train": [Ends(1)] * 9}, **{"spec.training.retries": 8})
    pauses = []

    def noted() -> bool:
        due = played.state.retry_at
        if due is not None and (not pauses or pauses[-1][0] != due):
            pauses.append((due, round((due - played.cluster.now).total_seconds())))
        return False

    await played.settle(until=lambda: noted() or played.phase == Phase.FAILED, patience=5000)
    assert [seconds // 10 for _, seconds in pauses] == pytest.approx([1, 2, 4, 8, 16, 30, 30, 30], abs=1)


async def test_an_eviction_is_answered_by_a_new_pod_and_not_counted() -> None:
    played = start({"train": [Evicted(), Evicted(), Evicted(), Evicted()]}, **{"spec.training.retries": 0})
    await played.rest()
    assert len(played.attempts("train")) == 1
    assert played.phase == Phase.READY
    assert played.state.failure is None


async def test_an_answer_that_was_lost_is_repeated() -> None:
    played = start({"train": [Ends(0, "no JSON")]})
    await played.rest()
    assert len(played.attempts("train")) == 2
    assert played.phase == Phase.READY


async def test_the_news_of_a_job_may_come_before_those_of_its_pod() -> None:
    played = start({"train": [Hangs()]})
    await played.settle(until=played.runs("train"))
    await played.rest()
    played.let_go("train")
    played.cluster.step()
    played.cluster.step()
    late = [news for news in played.cluster.undelivered if news[1] == "Pod"]
    played.cluster.undelivered = [news for news in played.cluster.undelivered if news[1] != "Pod"]
    await played.tick()
    await played.tick()
    assert not played.is_true(Condition.TRAINED)
    played.cluster.undelivered = [*late, *played.cluster.undelivered]
    await played.rest()
    assert len(played.attempts("train")) == 1
    assert played.phase == Phase.READY


def ends_without_its_pod(played: world.World, condition: str, reason: str) -> None:
    """The training Job is over, and the pod that would have said how is gone."""

    def over(raw: dict) -> None:
        when = world.fakecluster.stamp(played.cluster.now)
        raw["status"] = {
            "conditions": [{"type": condition, "status": "True", "reason": reason, "lastTransitionTime": when}]
        }

    pod = played.pods("train")[0]["metadata"]["name"]
    played.cluster.edit("Job", played.attempts("train")[0], over)
    played.cluster._drop("Pod", "ml", pod)


async def test_a_pod_that_disappeared_without_an_outcome_is_retried() -> None:
    played = start({"train": [Hangs()]})
    await played.settle(until=played.runs("train"))

    ends_without_its_pod(played, "Failed", "BackoffLimitExceeded")
    await played.rest()
    assert len(played.attempts("train")) == 2
    assert played.phase == Phase.READY


async def test_a_result_lost_with_its_pod_is_computed_again_and_is_no_failure() -> None:
    """Seen when a pod was evicted in the moment of its good end, while no replica led."""
    played = start({"train": [Hangs()]}, **{"spec.training.retries": 0})
    await played.settle(until=played.runs("train"))

    ends_without_its_pod(played, "Complete", "CompletionsReached")
    await played.rest()
    assert len(played.attempts("train")) == 2
    assert played.phase == Phase.READY
    assert not played.state.failed_attempts


async def test_the_jobs_name_fits_for_a_job_of_forty_characters_and_attempt_999() -> None:
    from finetune_operator import revisions
    from finetune_operator.manifests import meta
    from finetune_operator.observe import parents

    raw = {"metadata": {"name": "n" * 40, "namespace": "ml", "uid": "u"}, "spec": world.finetunejob()["spec"]}
    parent = parents.parent(raw)
    wanted = revisions.want(parent.spec, "", None)
    for stage in Stage:
        assert len(meta.stage_job(parent, wanted, stage, 999)) <= 63


def arguments(played: world.World, name: str) -> list[str]:
    manifest = played.cluster.applied.get(("Job", "ml", name)) or played.cluster.get("Job", name)
    return manifest["spec"]["template"]["spec"]["containers"][0]["args"]


@pytest.mark.parametrize("stage", [Stage.PREFLIGHT, Stage.VERIFY])
async def test_a_stage_that_loads_no_model_is_repeated_as_it_was_after_an_out_of_memory(stage: Stage) -> None:
    played = start({stage: [Ends(137, "", "OOMKilled")]})
    await played.rest()
    first, second = (arguments(played, name) for name in played.attempts(stage))
    assert first == second
    assert played.phase == Phase.READY
