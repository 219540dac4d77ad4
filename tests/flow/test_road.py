"""The road of a job that goes well, from its spec to the requests that are answered."""

import pytest

from finetune_api import outcome
from finetune_api.reasons import Phase
from flow import world
from flow.fakecluster import Ends


@pytest.fixture
def happy() -> world.World:
    played = world.World()
    played.add_model()
    played.apply()
    return played


async def test_a_job_goes_from_its_spec_to_a_served_model(happy: world.World) -> None:
    phases = []
    await happy.settle(until=lambda: phases.append(happy.phase) or happy.phase == Phase.READY)
    await happy.rest()
    assert list(dict.fromkeys(phases)) == [
        None, Phase.PREFLIGHT, Phase.QUEUED, Phase.TRAINING, Phase.EVALUATING, Phase.DEPLOYING, Phase.READY
    ]  # fmt: skip
    for kind in ("Accepted", "PreflightPassed", "Trained", "Evaluated", "Deployed", "Ready"):
        assert happy.is_true(kind), kind
    assert happy.failures == []


async def test_what_stays_behind_in_the_store_and_how_it_was_trained_is_in_the_message_of_trained() -> None:
    answer = outcome.Outcome.model_validate_json(world.train())
    assert answer.training is not None
    notes = {"left_behind": "9 objects of checkpoints stay at s3://acme/c", "passes": "through transformers' passes"}
    left = answer.training.model_copy(update=notes)
    played = world.World({"train": [Ends(0, world.train(training=left))]})
    played.add_model()
    played.apply()
    await played.rest()
    assert "through transformers' passes; 9 objects of checkpoints stay at" in played.condition("Trained").message
