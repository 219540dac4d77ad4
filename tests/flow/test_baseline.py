"""A prompt may be enough: the stage before training, and what its answer means for the job."""

from typing import Any

import pytest

from finetune_api import job
from finetune_api.reasons import Phase, Reason, Stage
from flow import world
from flow.fakecluster import Ends, Hangs

ENOUGH = Ends(0, world.baseline(job.Contender.PROMPT))
ENFORCED: dict[str, Any] = {**world.ASKED, "spec.intent.advice": "Enforce"}


def start(script: dict | None = None, **changes: Any) -> world.World:
    played = world.World(script)
    played.add_model()
    played.apply(**changes)
    return played


async def test_the_baseline_runs_between_preflight_and_training_with_the_evaluations_resources() -> None:
    asked = {**world.ASKED, "spec.evaluation.resources": {"requests": {"cpu": "3"}}}
    played = start({Stage.BASELINE: [Hangs()]}, **asked)
    await played.settle(until=played.runs(Stage.BASELINE))
    await played.rest()
    assert played.phase == Phase.BASELINE
    assert not played.attempts(Stage.TRAIN)
    server = played.pods(Stage.BASELINE)[0]["spec"]["initContainers"][-1]
    assert (server["name"], server["resources"]["requests"]["cpu"]) == ("server", "3")
    assert world.kstatus(played.job) == "InProgress"
    played.let_go(Stage.BASELINE)
    await played.rest()
    assert played.phase == Phase.READY
    assert played.reason("BaselineMeasured") == Reason.SUCCEEDED
    assert played.state.baseline is not None


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"spec.evaluation.gates": [{"metric": "Loss", "over": "Base"}]},
        {"spec.evaluation.gates": [{"metric": "Forgetting", "maximum": 0.1}]},
        {**world.ASKED, "spec.intent.advice": "Ignore"},
    ],
)
async def test_no_baseline_runs_where_there_is_nothing_to_decide(changes: dict[str, Any]) -> None:
    played = start(**changes)
    await played.rest()
    assert played.phase == Phase.READY
    assert not played.attempts(Stage.BASELINE)
    assert played.condition("BaselineMeasured") is None


async def test_under_warn_a_prompt_that_is_enough_is_reported_and_training_continues() -> None:
    played = start({Stage.BASELINE: [ENOUGH]}, **world.ASKED)
    await played.rest()
    assert played.phase == Phase.READY
    assert played.reason("BaselineMeasured") == Reason.PROMPT_ALREADY_SUFFICIENT


async def test_under_enforce_the_job_ends_well_and_untrained() -> None:
    played = start({Stage.BASELINE: [ENOUGH]}, **ENFORCED)
    await played.rest()
    assert (played.phase, played.reason("Complete")) == (Phase.COMPLETE, Reason.PROMPT_ALREADY_SUFFICIENT)
    assert played.reason("Ready") == Reason.PROMPT_ALREADY_SUFFICIENT
    assert "set it to Warn" in played.condition("Complete").message
    assert world.kstatus(played.job) == "Current"
    assert not played.attempts(Stage.TRAIN)
    assert not played.pods("server")
    assert [entry.outcome for entry in played.state.history] == [Reason.PROMPT_ALREADY_SUFFICIENT]
    played.boot()
    await played.wait(100_000)
    assert (played.phase, played.attempts(Stage.TRAIN)) == (Phase.COMPLETE, [])


async def test_a_job_that_wants_fewer_tokens_is_trained_anyway() -> None:
    played = start({Stage.BASELINE: [ENOUGH]}, **ENFORCED, **{"spec.intent.goals": ["TokenReduction"]})
    await played.rest()
    assert played.phase == Phase.READY


async def test_a_changed_mind_trains_after_all_without_asking_again() -> None:
    played = start({Stage.BASELINE: [ENOUGH]}, **ENFORCED)
    await played.rest()
    played.apply(**world.ASKED)
    await played.rest()
    assert played.phase == Phase.READY
    assert played.condition("Complete") is None
    assert len(played.attempts(Stage.BASELINE)) == 1


async def test_stricter_gates_cause_another_evaluation() -> None:
    played = start({Stage.BASELINE: [ENOUGH]}, **ENFORCED)
    await played.rest()
    stricter = {"spec.evaluation.gates": [{"metric": "ExactMatch", "minimum": 0.95}]}
    played.apply(**ENFORCED | stricter)
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts(Stage.BASELINE)) == 2


async def test_enforcing_while_it_trains_stops_nothing() -> None:
    played = start({Stage.BASELINE: [ENOUGH], Stage.TRAIN: [Hangs()]}, **world.ASKED)
    await played.settle(until=played.runs(Stage.TRAIN))
    played.apply(**ENFORCED)
    await played.rest()
    assert played.phase == Phase.TRAINING
    played.let_go(Stage.TRAIN)
    await played.rest()
    assert played.phase == Phase.READY


async def test_gates_that_change_while_it_trains_ask_no_prompt_any_more() -> None:
    played = start({Stage.TRAIN: [Hangs()]})
    await played.settle(until=played.runs(Stage.TRAIN))
    played.apply(**world.ASKED)
    await played.rest()
    played.let_go(Stage.TRAIN)
    await played.rest()
    assert played.phase == Phase.READY
    assert not played.attempts(Stage.BASELINE)


async def test_a_second_revision_is_compared_with_the_one_that_serves() -> None:
    played = start()
    await played.rest()
    served = played.state.deployment
    assert served is not None
    played.apply(**{"spec.training.epochs": 5})
    await played.rest()
    first, second = (played.cluster.get("Job", name) for name in played.attempts(Stage.EVALUATE))
    words = [job_["spec"]["template"]["spec"]["containers"][0]["args"] for job_ in (first, second)]
    assert "--serving" not in words[0]
    uri = words[1][words[1].index("--serving") + 1]
    assert served.revision in uri
    assert words[1][words[1].index("--serving-sha256") + 1] == world.sha256_of(served.revision)
