"""The road of a job that goes well, from its spec to the requests that are answered."""

import pytest

from finetune_api.reasons import Phase
from flow import world


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
