"""Settings of pods in the life of a job: whose amounts a stage takes, and what new settings of the operator change."""

from typing import Any

from finetune_api.reasons import Phase
from flow import world
from flow.fakecluster import Ends, Hangs, Unschedulable

LARGE = {"spec.parameters": 8_000_000_000}
MARK = {"pods": {"runtimeClassName": "new"}}


def amounts(played: world.World, role: str) -> dict[str, Any]:
    """Of the newest pod of a stage, or of the server."""
    return dict(played.pods(role)[-1]["spec"]["containers"][0]["resources"])


def marked(played: world.World, role: str) -> list[bool]:
    return [pod["spec"].get("runtimeClassName") == "new" for pod in played.pods(role)]


def start(script: dict[str, Any] | None = None, **changes: Any) -> world.World:
    played = world.World(script)
    played.add_model(**LARGE)
    played.apply(**changes)
    return played


async def test_a_stage_without_the_model_takes_its_amounts_from_the_chart() -> None:
    own = {"requests": {"memory": "64Gi"}, "limits": {"cpu": "8"}}
    played = start({"train": [Hangs()]}, **{"spec.resources": {"gpus": 0, **own}})
    await played.rest()
    preflight, train = amounts(played, "preflight"), amounts(played, "train")
    assert preflight == {"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"memory": "2Gi"}}
    assert (train["requests"]["memory"], train["limits"]["cpu"]) == ("64Gi", "8")


async def test_a_training_requests_disk_for_its_model_and_the_tokens_that_preflight_counted() -> None:
    counted = world.preflight(preflight=world.FOUND.model_copy(update={"tokens": 1_000_000_000}))
    played = start({"preflight": [Ends(0, counted)], "train": [Hangs()]})
    await played.rest()
    assert amounts(played, "train")["requests"]["ephemeral-storage"] == "34Gi"


async def test_new_settings_replace_a_waiting_pod_and_leave_a_running_one() -> None:
    waiting = start({"train": [Unschedulable()]})
    await waiting.rest()
    waiting.boot(MARK)
    await waiting.rest()
    assert marked(waiting, "train")[-1]
    running = start({"train": [Hangs()]})
    await running.rest()
    running.boot(MARK)
    await running.rest()
    assert marked(running, "train") == [False]
    assert len(running.attempts("train")) == 1


async def test_a_server_keeps_its_settings_until_it_is_written_again() -> None:
    played = start()
    await played.rest()
    release = played.serving()
    assert release is not None
    before = played.cluster.get("Deployment", release)
    played.boot(MARK)
    await played.rest()
    assert played.cluster.get("Deployment", release) == before
    played.cluster.remove("Deployment", release)
    await played.rest()
    assert played.phase == Phase.READY
    assert played.serving() == release
    assert played.cluster.get("Deployment", release)["spec"]["template"]["spec"]["runtimeClassName"] == "new"
