"""What others change in our objects: admission controllers, autoscalers, people. It is theirs, it is named, and nobody fights."""

import copy
from collections.abc import Callable

import pytest

from finetune_api.reasons import Phase, Reason
from finetune_operator import pace
from finetune_operator.observe import label
from flow import world
from flow.fakecluster import Hangs

MIRROR = "mirror.example/"


def start(**changes) -> world.World:
    played = world.World()
    played.add_model()
    played.apply(**changes)
    return played


async def served(**changes) -> world.World:
    played = start(**changes)
    await played.rest()
    assert played.phase == Phase.READY
    return played


def mirrored(raw: dict) -> dict:
    """What a registry-rewriting policy makes of every pod template."""
    for container in raw["spec"].get("template", {}).get("spec", {}).get("containers", []):
        if not container["image"].startswith(MIRROR):
            container["image"] = MIRROR + container["image"]
    return raw


def writes(played: world.World) -> int:
    return len([verb for verb, _, _ in played.cluster.requests if verb in {"apply", "create", "status", "delete"}])


def server(played: world.World) -> dict:
    return played.cluster.get("Deployment", played.serving())["spec"]


async def test_a_policy_that_rewrites_images_costs_no_write_and_is_named() -> None:
    usual = await served()
    played = start()
    played.cluster.admit = mirrored
    await played.rest()
    assert played.phase == Phase.READY
    assert server(played)["template"]["spec"]["containers"][0]["image"] == f"{MIRROR}registry/vllm:1"
    shown = played.condition("Overridden")
    assert (shown.status, shown.reason) == ("True", Reason.CHANGED_BY_OTHERS)
    assert f"on admission, to {MIRROR}registry/vllm:1" in shown.message
    assert writes(played) <= writes(usual) * 1.1


async def test_an_edit_of_the_spec_reaches_a_server_whose_image_is_rewritten() -> None:
    played = start()
    played.cluster.admit = mirrored
    await played.rest()
    played.apply(**{"spec.deployment.replicas": 2})
    await played.rest()
    assert server(played)["replicas"] == 2
    played.apply(**{"spec.deployment.image": "registry/vllm:2"})
    await played.rest()
    assert server(played)["template"]["spec"]["containers"][0]["image"] == f"{MIRROR}registry/vllm:2"


def another_image(raw: dict) -> None:
    raw["spec"]["template"]["spec"]["containers"][0]["image"] = "patched:1"


def more_arguments(raw: dict) -> None:
    raw["spec"]["template"]["spec"]["containers"][0]["args"].append("--enforce-eager")


def scaled(number: int) -> Callable[[dict], None]:
    return lambda raw: raw["spec"].update(replicas=number)


@pytest.mark.parametrize(
    "change, field",
    [
        (another_image, "template.spec.containers[server].image"),
        (more_arguments, "template.spec.containers[server].args"),
        (scaled(3), "replicas"),
    ],
    ids=["image", "args", "replicas"],
)
async def test_what_another_manager_changes_in_a_server_is_left_and_named_with_its_name(change, field: str) -> None:
    played = await served()
    played.cluster.edit("Deployment", played.serving(), change, manager="image-updater")
    changed = copy.deepcopy(server(played))
    await played.rest()
    assert server(played) == changed
    assert f"{field} of Deployment {played.serving()} by image-updater" in played.condition("Overridden").message
    assert played.phase == Phase.READY
    assert not [text for *_, text in played.cluster.events if "image-updater" in text]


async def test_an_autoscaler_owns_the_replicas_until_the_job_requests_another_number() -> None:
    played = await served()
    played.cluster.edit("Deployment", played.serving(), scaled(3), manager="kube-controller-manager")
    await played.rest()
    assert "3 of 3 pods" in played.condition("Ready").message
    assert (played.state.deployment.replicas, played.state.deployment.ready_replicas) == (3, 3)
    played.apply(**{"spec.deployment.replicas": 2})
    await played.rest()
    assert server(played)["replicas"] == 2
    assert played.condition("Overridden") is None


async def test_an_autoscaler_keeps_its_replicas_when_the_operator_writes_the_server_again() -> None:
    played = await served()
    name = played.serving()
    played.cluster.edit("Deployment", name, scaled(3), manager="kube-controller-manager")
    await played.rest()
    played.cluster.edit("Deployment", name, lambda raw: raw["metadata"]["annotations"].update({label.HASH: "another"}))
    await played.rest()
    assert server(played)["replicas"] == 3
    assert played.cluster.get("Deployment", name)["metadata"]["annotations"][label.HASH] != "another"


async def test_the_status_has_what_an_autoscaler_of_the_job_needs() -> None:
    played = await served(**{"spec.deployment.replicas": 2})
    wanted = dict(pair.split("=") for pair in played.state.deployment.selector.split(","))
    assert len([p for p in played.pods("server") if wanted.items() <= p["metadata"]["labels"].items()]) == 2
    assert played.state.deployment.replicas == 2


async def test_an_autoscaler_of_the_job_starts_no_release() -> None:
    played = await served()
    before = played.serving()
    played.apply(**{"spec.deployment.replicas": 4})
    await played.rest()
    assert (played.serving(), server(played)["replicas"]) == (before, 4)
    assert len(played.attempts("verify")) == 1


def elsewhere(raw: dict) -> None:
    raw["spec"]["selector"][label.RELEASE] = "elsewhere"


async def test_a_service_is_taken_back_once_and_then_left_to_who_changes_it_again() -> None:
    played = await served()
    good = played.cluster.get("Service", world.NAME)["spec"]
    played.cluster.edit("Service", world.NAME, elsewhere, manager="flagger")
    await played.rest()
    assert played.cluster.get("Service", world.NAME)["spec"] == good
    assert played.condition("Overridden") is None
    played.cluster.edit("Service", world.NAME, elsewhere, manager="flagger")
    await played.rest()
    assert played.cluster.get("Service", world.NAME)["spec"] != good
    assert f"selector of Service {world.NAME} by flagger" in played.condition("Overridden").message
    assert "flagger" in played.condition("Ready").message
    assert not played.is_true("Ready")
    played.cluster.remove("Service", world.NAME)
    await played.rest()
    assert played.cluster.get("Service", world.NAME)["spec"] == good
    assert played.phase == Phase.READY


async def test_the_next_release_takes_its_service_back_from_everybody() -> None:
    played = await served()
    for _ in range(2):
        played.cluster.edit("Service", world.NAME, elsewhere, manager="flagger")
        await played.rest()
    played.apply(**{"spec.deployment.image": "registry/vllm:2"})
    await played.rest()
    assert played.serving() == played.state.release
    assert played.phase == Phase.READY


async def test_a_policy_that_removes_the_operators_annotations_causes_no_flood() -> None:
    def bare(raw: dict) -> dict:
        raw["metadata"].pop("annotations", None)
        return mirrored(raw)

    played = start()
    played.cluster.admit = bare
    await played.wait(600)
    assert played.phase in {Phase.READY, Phase.DEPLOYING}
    for name in played.cluster.names("Deployment"):
        assert played.cluster.requests.count(("apply", "Deployment", name)) <= pace.MOST * 11
    assert len(played.attempts("train")) == 1


@pytest.mark.parametrize("kind", ["Deployment", "Service"])
async def test_an_object_that_is_removed_all_the_time_is_written_a_few_times_a_minute(kind: str) -> None:
    played = await served()
    before = len(played.cluster.requests)
    for _ in range(300):
        for name in played.cluster.names(kind):
            played.cluster.remove(kind, name)
        await played.wait(1)
    for name in {name for _, of, name in played.cluster.requests if of == kind}:
        assert 2 < played.cluster.requests[before:].count(("apply", kind, name)) <= pace.MOST * 6


async def test_the_hash_of_a_stages_job_that_is_removed_by_others_starts_no_attempt() -> None:
    played = world.World({"train": [Hangs()]})
    played.add_model()
    played.cluster.admit = lambda raw: (raw["metadata"].pop("annotations", None) and raw) or raw
    played.apply()
    await played.settle(until=played.runs("train"))
    played.let_go("train")
    await played.wait(300)
    assert len(played.attempts("train")) == len(played.attempts("preflight")) == 1
