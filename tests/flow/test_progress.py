"""Progress in the status: whose word is believed, and what is said where nobody can be asked."""

from typing import Any

import pytest

from finetune_api.reasons import Condition, Phase, Reason
from finetune_operator.observe import projections
from flow import world
from flow.fakecluster import Ends, Evicted, Hangs

SAVED = {"uri": "s3://acme/checkpoints/4", "step": 4, "savedAt": "2026-05-04T12:00:00Z"}


async def training(script: list | None = None, **changes: Any) -> world.World:
    played = world.World({"train": script or [Hangs()]})
    played.add_model()
    played.apply(**changes)
    await played.settle(until=played.runs("train"))
    played.deliver()
    return played


async def test_what_the_pod_says_stands_in_the_status() -> None:
    played = await training()
    played.tell(checkpoint=SAVED)
    await played.rest()
    assert (played.state.progress.percent, played.state.progress.eta) == (40, "12m")
    assert played.state.checkpoint.step == 4


@pytest.mark.parametrize(
    "change", [{"uid": "other"}, {"uid": None}, {"revision": "ffffffff"}, {"attempt": 2}, {"stage": "evaluate"}]
)
async def test_a_pod_is_believed_for_its_own_job_revision_attempt_and_stage_alone(change: dict) -> None:
    played = await training()
    played.tell(**change)
    await played.rest()
    assert played.state.progress is None


async def test_the_first_of_several_pods_tells_for_all() -> None:
    played = await training([Hangs(), Hangs()], **{"spec.resources.nodes": 2})
    await played.settle(until=lambda: played.reason("Trained") == Reason.RUNNING)
    played.tell()
    (uid,) = played.cache.readings
    assert "-train-1-0-" in played.cache.readings[uid].pod
    await played.rest()
    assert played.state.progress.percent == 40


async def test_a_new_attempt_does_not_inherit_the_words_of_the_last() -> None:
    played = await training([Evicted(), Hangs()])
    await played.settle(until=played.runs("train"))
    played.recast("train", Ends(1, "boom"))
    played.tell()
    await played.settle(until=lambda: len(played.attempts("train")) == 2)
    await played.settle(until=played.runs("train"))
    assert played.state.progress.eta is None, "nothing is promised before the new pod tells"
    played.let_go("train")
    await played.rest()
    assert played.phase == Phase.READY


async def test_a_pod_that_cannot_be_reached_costs_nothing_but_progress_and_is_reported_once() -> None:
    played = await training()
    await played.rest()
    before = len(played.cluster.events)
    words = "its progress cannot be read at 10.1.2.3 (no answer within 2 s): allow the operator's pods to reach TCP port 9400"
    uid = played.job["metadata"]["uid"]
    reading = projections.Reading(played.cache.reporting[uid].name, None, words)
    played.cache.put_reading(uid, reading)
    await played.rest()
    trained = played.condition(Condition.TRAINED)
    assert trained.reason == Reason.RUNNING
    assert words in trained.message
    assert len(played.cluster.events) == before, "a state, no event"
    played.let_go("train")
    await played.rest()
    assert played.phase == Phase.READY
    assert played.state.progress.percent == 100, "the end is told by the termination message"


async def test_it_is_taken_back_as_soon_as_the_pod_answers() -> None:
    played = await training()
    await played.rest()
    uid = played.job["metadata"]["uid"]
    played.cache.put_reading(uid, projections.Reading(played.cache.reporting[uid].name, None, "it is silent"))
    await played.rest()
    assert "it is silent" in played.condition(Condition.TRAINED).message
    played.tell()
    await played.rest()
    assert "it is silent" not in played.condition(Condition.TRAINED).message
    assert played.state.progress.percent == 40


async def test_a_new_leader_keeps_the_message_until_it_has_read_the_pod() -> None:
    played = await training()
    await played.rest()
    uid = played.job["metadata"]["uid"]
    name = played.cache.reporting[uid].name
    played.cache.put_reading(uid, projections.Reading(name, None, "it is silent"))
    await played.rest()
    before = played.job["metadata"]["resourceVersion"]
    played.boot()
    await played.rest()
    played.cache.put_reading(uid, projections.Reading(name))
    await played.rest()
    assert played.job["metadata"]["resourceVersion"] == before, "nothing is new"
    played.tell()
    await played.rest()
    assert "it is silent" not in played.condition(Condition.TRAINED).message


async def test_progress_is_written_no_more_often_than_the_chart_says() -> None:
    played = await training()
    await played.rest()
    written = sum(verb == "status" for verb, _, _ in played.cluster.requests)
    for step in range(30):
        at = world.fakecluster.stamp(played.cluster.now)
        played.tell(progress={"percent": step, "step": step, "totalSteps": 100, "updatedAt": at})
        await played.wait(0.5)
    again = sum(verb == "status" for verb, _, _ in played.cluster.requests) - written
    assert 4 <= again <= 8, "15 seconds, every 3 of them"


# -- what is too large for an annotation --


async def test_a_spec_that_is_too_large_is_refused_by_its_largest_field_and_makes_nothing() -> None:
    schema = {"type": "object", "properties": {f"field{n}": {"description": "x" * 100} for n in range(2000)}}
    played = world.World()
    played.add_model()
    played.apply(**{"spec.evaluation.outputSchema": schema})
    await played.rest()
    refused = played.condition(Condition.ACCEPTED)
    assert (refused.status, refused.reason) == ("False", Reason.INVALID_SPEC)
    assert "spec.evaluation.outputSchema.properties takes" in refused.message
    assert "192 KiB" in refused.message
    assert {kind for kind, _, _ in played.cluster.created} == {"BaseModel", "FineTuneJob"}
    played.apply()
    await played.rest()
    assert played.phase == Phase.READY


async def test_a_spec_below_the_limit_fits_into_the_annotations_of_a_pod() -> None:
    schema = {"type": "object", "description": "é" * (95 * 1024)}
    played = world.World()
    played.add_model()
    played.apply(**{"spec.evaluation.outputSchema": schema})
    await played.rest()
    assert played.phase == Phase.READY
    for name in played.cluster.names("Job"):
        annotations = played.cluster.get("Job", name)["spec"]["template"]["metadata"]["annotations"]
        assert sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items()) < 256 * 1024
