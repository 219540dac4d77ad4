"""What a job costs, over stages, attempts, revisions, evictions and an operator that was away."""

import pytest

from finetune_api.reasons import Phase
from flow import world
from flow.fakecluster import Ends, Evicted, Hangs

CHART = {"gpuTypes": {"nvidia-l4": {"nodeSelector": {"gpu": "l4"}, "pricePerHour": 0.8}}, "currency": "EUR"}
HOUR = 3600


def start(script: dict | None = None, **changes) -> world.World:
    played = world.World(script, CHART)
    played.add_model()
    played.apply(**{"spec.resources.gpus": 2, "spec.resources.gpuType": "nvidia-l4", **changes})
    return played


def hours(played: world.World) -> float:
    return float(played.state.cost.gpu_hours) if played.state.cost else 0.0


async def run_for(played: world.World, stage: str, seconds: float) -> None:
    await played.settle(until=played.runs(stage))
    await played.wait(seconds)


async def test_the_hours_of_training_and_evaluation_are_counted_with_their_price() -> None:
    played = start({"train": [Hangs()], "evaluate": [Hangs()]})
    await run_for(played, "train", HOUR)
    played.let_go("train")
    await run_for(played, "evaluate", HOUR / 2)
    played.let_go("evaluate")
    await played.rest()
    assert played.phase == Phase.READY
    assert hours(played) == pytest.approx(3.0, abs=0.01)
    assert played.state.cost is not None
    assert float(played.state.cost.amount or 0) == pytest.approx(2.4, abs=0.01)
    assert played.state.cost.currency == "EUR"


async def test_every_node_of_a_training_counts() -> None:
    played = start({"train": [Hangs(), Hangs()]}, **{"spec.resources.nodes": 2})
    await run_for(played, "train", HOUR)
    assert len(played.pods("train")) == 2
    played.let_go("train")
    await played.rest()
    assert hours(played) == pytest.approx(4.0, abs=0.01)


async def test_what_serves_is_not_counted() -> None:
    played = start(**{"spec.deployment.resources.gpus": 1})
    await played.rest()
    before = hours(played)
    await played.wait(10 * HOUR)
    assert played.phase == Phase.READY
    assert hours(played) == before


async def test_a_job_on_cpus_has_no_cost() -> None:
    played = start({"train": [Hangs()]}, **{"spec.resources": {"gpus": 0}})
    await run_for(played, "train", HOUR)
    played.let_go("train")
    await played.rest()
    assert played.state.cost is None


async def test_every_attempt_counts() -> None:
    played = start({"train": [Hangs(), Hangs()]})
    await run_for(played, "train", HOUR)
    played.recast("train", Ends(1, "Traceback"))
    await played.settle(until=lambda: len(played.attempts("train")) == 2)
    await run_for(played, "train", HOUR)
    played.let_go("train")
    await played.rest()
    assert hours(played) == pytest.approx(4.0, abs=0.01)


async def test_the_pod_before_an_eviction_counts_too() -> None:
    played = start({"train": [Hangs(), Hangs()]})
    await run_for(played, "train", HOUR)
    played.recast("train", Evicted())
    await played.tick()
    await run_for(played, "train", HOUR)
    played.let_go("train")
    await played.rest()
    assert len(played.attempts("train")) == 1
    assert hours(played) == pytest.approx(4.0, abs=0.01)


async def test_an_operator_that_was_away_counts_what_it_missed() -> None:
    played = start({"train": [Hangs()]})
    await played.settle(until=played.runs("train"))
    played.cluster.now += world.datetime.timedelta(seconds=HOUR)
    played.let_go("train")
    played.cluster.step()
    played.cluster.step()
    played.cluster.now += world.datetime.timedelta(seconds=HOUR / 2)
    played.boot(CHART)
    await played.rest()
    assert played.phase == Phase.READY
    assert hours(played) == pytest.approx(2.0, abs=0.01)


async def test_a_further_revision_adds_to_the_job() -> None:
    played = start({"train": [Hangs(), Hangs()]})
    for seed in (1, 2):
        played.apply(**{"spec.resources.gpus": 2, "spec.resources.gpuType": "nvidia-l4", "spec.training.seed": seed})
        await run_for(played, "train", HOUR)
        played.let_go("train")
        await played.rest()
    assert hours(played) == pytest.approx(4.0, abs=0.01)


async def test_counting_costs_few_writes() -> None:
    """A stage that says nothing for ten hours is counted with the slow resync; looks in between write at most once a minute."""
    played = start({"evaluate": [Hangs()]})
    await played.settle(until=played.runs("evaluate"))

    def writes() -> int:
        return len([request for request in played.cluster.requests if request[0] == "status"])

    before = writes()
    await played.wait(10 * HOUR)
    assert writes() - before <= 61
    assert hours(played) == pytest.approx(20.0, abs=0.4)
    before = writes()
    for _ in range(600):
        played.cluster.now += world.datetime.timedelta(seconds=1)
        for uid in list(played.cache.parents):
            await played.reconcile(uid)
    assert writes() - before <= 11
