"""Each scenario of the drawing in `finetune_operator.gather`, and the rule that decides in it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from finetune_api.reasons import Condition, Phase, Reason, Stage
from finetune_operator.decide import core, edits, life, rollout, stages, verdict
from finetune_operator.observe import parents
from flow import fakecluster, test_rollouts, world
from flow.fakecluster import Ends, Hangs

Scenario = Callable[[], Awaitable[world.World]]


async def reach(until: str = "", script: dict[str, Any] | None = None, **changes: Any) -> world.World:
    """A job that was followed until a pod of this role runs, or to its rest."""
    played = world.World(script, chart=world.KUEUE)
    played.add_model()
    played.apply(**changes)
    await (played.settle(until=played.runs(until)) if until else played.settle())
    return played


async def steps(played: world.World) -> list[core.Step]:
    """What the rules say of the job as it is now."""
    played.deliver()
    (known,) = played.cache.parents.values()
    parent = parents.parent(known.raw)
    assert parent.unreadable == ""
    return core.journey(await played.reconciler._gatherer.gather(parent, played.cluster.now))


async def new() -> world.World:
    played = world.World()
    played.add_model()
    played.apply()
    return played


async def without_a_base_model() -> world.World:
    played = world.World()
    played.apply()
    return played


async def queued() -> world.World:
    played = world.World(chart=world.KUEUE)
    world.queues(played.cluster, {})
    played.add_model()
    played.apply(**world.TEAM)
    await played.settle(until=lambda: played.phase == Phase.QUEUED)
    return played


async def running() -> world.World:
    return await reach("train", {"train": [Hangs()]})


async def ended() -> world.World:
    """The Job of the training is over, and nobody has looked yet."""
    played = await running()
    played.let_go("train")
    while not any(fakecluster.over(j) and "-train-" in j["metadata"]["name"] for j in played.cluster.of("Job")):
        played.cluster.step()
    return played


async def between_attempts() -> world.World:
    played = world.World({"train": [Ends(1, "")]})
    played.add_model()
    played.apply()
    await played.settle(until=lambda: played.state.retry_at is not None)
    return played


async def candidate_starting() -> world.World:
    played = await new()
    await played.settle(until=lambda: bool(played.cluster.names("Deployment")))
    return played


async def candidate_verified() -> world.World:
    return await reach("verify", {"verify": [Hangs()]})


async def candidate_delivered() -> world.World:
    pooled = test_rollouts.Played({"verify": [Hangs()]})
    pooled.world.apply(**test_rollouts.IN_POOL)
    await pooled.until(pooled.world.runs("verify"))
    return pooled.world


async def candidate_with_a_share_of_the_traffic() -> world.World:
    return (await test_rollouts.rolling())[0].world


async def serving_and_watched() -> world.World:
    return (await test_rollouts.watched())[0].world


async def serving() -> world.World:
    return await reach()


async def serving_while_another_trains() -> world.World:
    played = await reach()
    played.script["train"] = [Hangs()]
    played.apply(**{"spec.training.seed": 1})
    await played.settle(until=played.runs("train"))
    return played


async def failed() -> world.World:
    return await reach(script={"evaluate": [Ends(0, world.evaluate(passed=False))]})


async def failed_while_the_former_serves() -> world.World:
    played = await reach()
    played.script["evaluate"] = [Ends(0, world.evaluate(passed=False))]
    played.apply(**{"spec.training.seed": 1})
    await played.settle()
    return played


async def complete() -> world.World:
    return await reach(**{"spec.deployment.enabled": False})


async def suspended() -> world.World:
    played = await running()
    played.apply(**{"spec.suspend": True})
    await played.settle()
    return played


async def edited() -> world.World:
    played = await reach()
    played.apply(**{"spec.training.lora.rank": 32})
    return played


WORLDS: dict[str, tuple[Scenario, core.Rule, str | None]] = {
    "A: new": (new, stages.preflight_is_not_done, Reason.WAITING),
    "A: its base model is missing": (
        without_a_base_model,
        life.base_model_is_not_in_the_catalogue,
        Reason.BASE_MODEL_NOT_FOUND,
    ),
    "B: queued": (queued, stages.training_is_not_done, Reason.QUEUED),
    "C: running": (running, stages.training_is_not_done, Reason.RUNNING),
    "D: stage ended": (ended, stages.evaluation_is_not_done, Reason.WAITING),
    "E: between attempts": (between_attempts, stages.training_is_not_done, None),
    "F: candidate starting": (candidate_starting, rollout.the_release_is_not_rolled_out, Reason.STARTING),
    "G: candidate verified": (candidate_verified, rollout.the_release_is_not_rolled_out, Reason.RUNNING),
    "P: candidate delivered to its pool": (candidate_delivered, rollout.the_release_is_not_rolled_out, Reason.RUNNING),
    "Q: candidate in its first step": (
        candidate_with_a_share_of_the_traffic,
        rollout.the_release_is_not_rolled_out,
        Reason.ROLLING_OUT,
    ),
    "R: serving in a pool, and watched": (serving_and_watched, life.everything_is_done, None),
    "H: serving": (serving, life.everything_is_done, None),
    "I: serving, another revision trains": (
        serving_while_another_trains,
        stages.training_is_not_done,
        Reason.RUNNING,
    ),
    "J: failed": (failed, life.failure_is_final, None),
    "K: failed while the former serves": (failed_while_the_former_serves, life.failure_is_final, None),
    "L: complete": (complete, life.everything_is_done, None),
    "M: suspended": (suspended, life.job_is_suspended, Reason.SUSPENDED),
    "N: edited": (edited, stages.preflight_is_not_done, Reason.WAITING),
}


@pytest.mark.parametrize("scenario", WORLDS)
async def test_a_scenario_is_decided_by_its_rule(scenario: str) -> None:
    play, rule, reason = WORLDS[scenario]
    last = (await steps(await play()))[-1]
    assert last.rule is rule
    assert [say.reason for say in last.verdict.says] == ([] if reason is None else [reason])


async def test_in_scenario_d_the_answer_is_taken_and_the_next_stage_begins_in_the_same_pass() -> None:
    found = await steps(await ended())
    names = [step.rule.__name__ for step in found]
    assert names == ["training_is_not_done", *["evaluation_is_not_done"] * 2]
    assert [say.condition for say in found[0].verdict.says] == [Condition.TRAINED]
    assert [one.stage for one in found[0].verdict.ended] == [Stage.TRAIN]
    (made,) = (manifest for manifest in found[-1].verdict.apply if manifest["kind"] == "Job")
    assert made["metadata"]["name"] == found[-1].verdict.job


async def test_in_scenario_e_the_verdict_is_a_time_to_look_again() -> None:
    played = await between_attempts()
    (only,) = await steps(played)
    assert only.verdict.again == played.state.retry_at
    assert (only.verdict.job, only.verdict.apply) == (None, ())


async def test_in_scenario_n_the_record_is_written_again_before_anything_else() -> None:
    first = (await steps(await edited()))[0]
    assert first.rule is edits.the_spec_asks_for_other_work
    assert "spec.training.lora.rank changed" in first.verdict.says[0].message
    assert set(core.world.STAGES) <= set(first.verdict.forgets)


async def test_in_scenario_o_nothing_is_touched() -> None:
    played = await serving()
    raw = played.job | {"status": played.job["status"] | {"serving": "{"}}
    decision = core.refuse(parents.parent(raw), played.cluster.now)
    assert (decision.apply, decision.delete, decision.requeue) == ((), (), None)
    assert {c.type: c.reason for c in decision.status.conditions}["Accepted"] == Reason.INVALID_SPEC


def test_rules_that_undo_each_other_end_in_an_error_that_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def this_never_ends(_: core.World) -> verdict.Verdict:
        return verdict.Verdict(proceed=True)

    monkeypatch.setattr(core, "JOURNEY", (this_never_ends, *core.JOURNEY))
    with pytest.raises(RuntimeError, match="this_never_ends"):
        asyncio.run(new_steps())


async def new_steps() -> list[core.Step]:
    return await steps(await new())


def test_every_rule_is_a_fact_with_a_docstring_that_names_its_scenarios() -> None:
    assert [rule.__name__ for rule in core.JOURNEY if "cenario" not in str(rule.__doc__)] == []
