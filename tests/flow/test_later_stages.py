"""Preflight is told where later stages will run, so that it judges their memory; no other stage depends on it."""

import pytest

from finetune_api import status
from finetune_api.reasons import Phase, Reason, Stage
from flow import world
from flow.fakecluster import Ends

CHART = {
    "gpuTypes": {"l4": {"memoryGiB": 22}, "h100": {"memoryGiB": 79}},
    "serving": {"args": ["--max-model-len=4096"]},
}
SPEC = {
    "spec.resources": {"gpus": 2, "gpuType": "h100"},
    "spec.evaluation.resources": {"gpus": 1, "gpuType": "l4"},
    "spec.deployment.resources": {"gpus": 2, "gpuType": "l4"},
    "spec.deployment.extraArgs": ["--max-model-len=8192"],
}


def start(script: dict | None = None, **changes: object) -> world.World:
    played = world.World(script, CHART)
    played.add_model()
    played.apply(**SPEC | changes)
    return played


async def test_preflight_learns_the_gpus_of_evaluation_and_server() -> None:
    played = start()
    await played.rest()
    (name,) = played.attempts("preflight")
    notified = played.run_file("Job", name)
    assert (notified["gpus"], notified["memory"]) == (2, "79Gi")
    assert (notified["evaluating"]["gpus"], notified["evaluating"]["memory"]) == (1, "22Gi")
    assert notified["gpuTypes"] == {"h100": 79, "l4": 22}
    assert notified["serving"]["gpus"] == 2
    assert notified["serving"]["memory"] == "22Gi"
    assert notified["serving"]["arguments"][-1] == "--max-model-len=8192", "the job's own arguments come last"
    for stage in (Stage.TRAIN, Stage.EVALUATE):
        (name,) = played.attempts(stage)
        assert not {"evaluating", "serving", "gpuTypes"} & set(played.run_file("Job", name)), stage


async def test_a_job_without_a_server_or_gpus_has_nothing_to_judge() -> None:
    played = start(
        **{
            "spec.resources": {"gpus": 0},
            "spec.evaluation.resources": {"gpus": 0},
            "spec.deployment": {"enabled": False},
        }
    )
    await played.rest()
    (name,) = played.attempts("preflight")
    assert not {"evaluating", "serving", "gpuTypes"} & set(played.run_file("Job", name))


async def test_a_larger_gpu_of_the_server_lets_preflight_run_again() -> None:
    end = Ends(2, world.refusal(Stage.PREFLIGHT, Reason.INSUFFICIENT_GPU_MEMORY))
    played = start({"preflight": [end]})
    await played.rest()
    assert (played.phase, played.reason("Failed")) == (Phase.FAILED, Reason.INSUFFICIENT_GPU_MEMORY)
    played.apply(**SPEC | {"spec.deployment.resources": {"gpus": 2, "gpuType": "h100"}})
    await played.rest()
    assert len(played.attempts("preflight")) == 2
    assert played.phase == Phase.READY


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"gpus": 1, "gpuType": "h100"}, "1"),
        ({"gpus": 4, "gpuType": "h100"}, "2"),
        ({"gpus": 1, "gpuType": "l4"}, "2"),
        (None, "2"),
    ],
)
async def test_an_evaluation_without_resources_requests_the_gpus_that_the_estimate_needs(
    known: dict | None, expected: str
) -> None:
    """Of the training's type, and never more than it has; an estimate for another type does not count."""
    found = status.Preflight(
        verdict="Recommended", examples=300, tokens=9, trainable_tokens=3,
        estimated_evaluation=None if known is None else status.EvaluationEstimate.model_validate(known),
    )  # fmt: skip
    played = start({"preflight": [Ends(0, world.preflight(preflight=found))]}, **{"spec.evaluation.resources": None})
    await played.rest()
    (name,) = played.attempts(Stage.EVALUATE)
    pod = played.cluster.get("Job", name)["spec"]["template"]["spec"]
    assert pod["initContainers"][-1]["resources"]["limits"]["nvidia.com/gpu"] == expected
    assert f"--tensor-parallel-size={expected}" in pod["initContainers"][-1]["args"]
