"""Containers that meshes, agents and policies inject into our pods: our own decides, and others are named if they block it."""

import pytest

from finetune_api.reasons import Phase, Reason, Stage
from flow import world
from flow.fakecluster import Ends, Hangs, ServerEnds, Waits


def start(sidecar: str, script: dict | None = None, **changes) -> world.World:
    played = world.World(script)
    played.cluster.sidecar = sidecar
    played.add_model()
    played.apply(**{"spec.training.retries": 0, **changes})
    return played


@pytest.mark.parametrize("sidecar", ["native", "classic"])
async def test_a_stage_succeeds_whatever_becomes_of_a_sidecar(sidecar: str) -> None:
    played = start(sidecar)
    await played.rest()
    assert played.phase == Phase.READY
    assert [len(played.attempts(stage)) for stage in world.ALWAYS] == [1, 1, 1, 1]
    assert played.state.failure is None


@pytest.mark.parametrize("sidecar", ["native", "classic"])
async def test_a_failed_stage_fails_by_its_own_exit_code(sidecar: str) -> None:
    played = start(sidecar, {"train": [Ends(4, "nan")]})
    await played.rest()
    assert (played.phase, played.reason("Failed")) == (Phase.FAILED, Reason.LOSS_DIVERGED)
    assert played.state.failure.exit_code == 4
    assert not played.runs("train")(), "its GPU is free"


async def test_a_classic_sidecar_holds_no_gpu_after_the_training_has_ended() -> None:
    played = start("classic", {"train": [Hangs()], "evaluate": [Hangs()]})
    await played.settle(until=played.runs("train"))
    played.let_go("train")
    before = played.cluster.now
    await played.settle(until=played.runs("evaluate"))
    assert (played.cluster.now - before).total_seconds() < 20
    await played.settle()
    assert not played.pods("train")


async def test_a_classic_sidecar_may_end_a_moment_later_and_the_job_is_complete() -> None:
    played = start("classic", {"train": [Hangs()]})
    await played.settle(until=played.runs("train"))
    played.let_go("train")
    await played.tick()
    played.cluster.sidecar = ""
    (pod,) = played.pods("train")

    def ends(raw: dict) -> None:
        raw["status"]["phase"] = "Succeeded"
        raw["status"]["containerStatuses"] = raw["status"]["containerStatuses"][:1]

    played.cluster.edit("Pod", pod["metadata"]["name"], ends)
    await played.rest()
    assert played.phase == Phase.READY
    assert any("train" in name for name in played.cluster.names("Job")), "it stays for inspection"


async def test_several_nodes_with_sidecars_are_done_when_the_first_is() -> None:
    played = start("classic", **{"spec.resources.nodes": 2})
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts("train")) == 1


async def test_a_sidecar_that_never_starts_is_named_and_waited_for() -> None:
    played = start("stuck")
    await played.wait(20)
    assert played.reason("Ready") == Reason.WAITING
    await played.wait(30)
    assert played.reason("PreflightPassed") == played.reason("Ready") == Reason.SIDECAR_NOT_READY
    assert "container agent does not start" in played.condition("Ready").message
    played.cluster.sidecar = "native"
    await played.rest()
    assert played.phase == Phase.READY


async def test_a_sidecar_whose_image_cannot_be_pulled_does_not_hide_that_the_stage_runs() -> None:
    played = start("classic", {"train": [Hangs()]})
    await played.settle(until=played.runs("train"))
    (pod,) = played.pods("train")

    def pulls(raw: dict) -> None:
        raw["status"]["containerStatuses"][1]["state"] = {"waiting": {"reason": "ImagePullBackOff", "message": "no"}}

    played.cluster.edit("Pod", pod["metadata"]["name"], pulls)
    await played.settle(until=lambda: played.reason("Trained") == Reason.RUNNING)
    played.let_go("train")
    await played.rest()
    assert played.phase == Phase.READY


async def test_a_sidecar_that_keeps_a_server_from_being_ready_is_quoted() -> None:
    played = start("")
    await played.rest()
    (pod,) = played.pods("server")
    words = "containers with unready status: [proxy]"

    def unready(raw: dict) -> None:
        raw["status"]["conditions"][-1] |= {"status": "False", "reason": "ContainersNotReady", "message": words}

    played._cast[pod["metadata"]["uid"]] = Waits("Nothing")
    played.cluster.edit("Pod", pod["metadata"]["name"], unready)
    played.cluster._pod = lambda raw: None
    await played.settle(until=lambda: not played.is_true("Ready"))
    assert words in played.condition("Ready").message


async def test_a_readiness_gate_of_others_is_not_an_unreachable_node() -> None:
    played = start("", {"train": [Hangs()]})
    await played.settle(until=played.runs("train"))
    (pod,) = played.pods("train")

    def gated(raw: dict) -> None:
        raw["status"]["conditions"][-1] |= {"status": "False", "reason": "ReadinessGatesNotReady", "message": "gate x"}

    played.cluster._pod = lambda raw: None
    played.cluster.edit("Pod", pod["metadata"]["name"], gated)
    await played.settle(until=lambda: played.reason("Trained") == Reason.RUNNING)
    await played.settle()
    assert played.reason("Trained") == Reason.RUNNING


@pytest.mark.parametrize("stage", list(Stage))
async def test_no_stage_runs_until_the_deadline_because_of_a_sidecar(stage: Stage) -> None:
    played = start("classic", **world.ASKED)
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts(stage)) == 1


@pytest.mark.parametrize("sidecar", ["native", "classic"])
async def test_a_sidecar_costs_hardly_a_write(sidecar: str) -> None:
    def writes(played: world.World) -> int:
        return len([verb for verb, _, _ in played.cluster.requests if verb in {"apply", "create", "status", "delete"}])

    usual, accompanied = start(""), start(sidecar)
    for played in (usual, accompanied):
        await played.rest()
    extra = 4 if sidecar == "classic" else 0  # the Job of each stage is deleted
    assert writes(accompanied) <= writes(usual) + extra


# -- our own sidecar: the server beside baseline and evaluation --


async def test_a_server_that_never_starts_fails_the_evaluation_in_its_own_last_words() -> None:
    played = start("", {"evaluate": [ServerEnds(1, "No available memory for the cache blocks")]})
    await played.rest()
    assert (played.phase, played.reason("Failed")) == (Phase.FAILED, Reason.SERVER_FAILED)
    failure = played.state.failure
    assert (failure.stage, failure.exit_code) == ("evaluate", 1)
    assert "No available memory for the cache blocks" in failure.message
    assert "evaluation.resources" in failure.message
    assert not played.runs("evaluate")(), "its GPUs are free"


async def test_a_server_that_does_not_start_is_tried_again_and_another_argument_helps_it() -> None:
    played = start("", {"evaluate": [ServerEnds(137, "", "OOMKilled")] * 2}, **{"spec.training.retries": 1})
    await played.rest()
    assert played.phase == Phase.FAILED
    assert "killed at its memory limit" in played.state.failure.message
    assert len(played.attempts("evaluate")) == 2
    played.apply(**{"spec.training.retries": 1, "spec.deployment.extraArgs": ["--max-model-len=1024"]})
    await played.rest()
    assert played.phase == Phase.READY


@pytest.mark.parametrize(("engine", "gpus", "asks"), [("Auto", 1, True), ("Auto", 0, False), ("InProcess", 1, False)])
async def test_an_evaluation_asks_a_server_where_it_has_gpus_unless_the_spec_names_another_engine(
    engine: str, gpus: int, asks: bool
) -> None:
    played = start("", {"evaluate": [Hangs()]}, **{"spec.evaluation.engine": engine, "spec.resources": {"gpus": gpus}})
    await played.settle(until=played.runs("evaluate"))
    (pod,) = played.pods("evaluate")
    assert [c["name"] for c in pod["spec"].get("initContainers", [])] == (["fetch", "server"] if asks else [])
    assert ("nvidia.com/gpu" in pod["spec"]["containers"][0]["resources"]["limits"]) is (gpus > 0 and not asks)
