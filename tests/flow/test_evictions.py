"""Pods that the kubelet ends or refuses: in its words, and counted only where the pod itself is the cause."""

import pytest

from finetune_api.reasons import Phase, Reason
from flow import world
from flow.fakecluster import Crashes, Ends, Hangs, KubeletEnds

LIMIT = KubeletEnds("Evicted", "Pod ephemeral local storage usage exceeds the total limit of containers 200Mi. ")
CONTAINER = KubeletEnds("Evicted", 'Container finetune exceeded its local ephemeral storage limit "200Mi". ', code=143)
VOLUME = KubeletEnds("Evicted", 'Usage of EmptyDir volume "tmp" exceeds the limit "1Gi". ')
NODE_DISK = KubeletEnds(
    "Evicted",
    "The node was low on resource: ephemeral-storage. Threshold quantity: 1Gi, available: 900Mi. Container finetune was using "
    "19Gi, request is 0, has larger consumption of ephemeral-storage. ",
    disrupted=True,
)
NODE_MEMORY = KubeletEnds(
    "Evicted",
    "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container finetune was using 3Gi, request "
    "is 1Gi, has larger consumption of memory. ",
    disrupted=True,
)
NEIGHBOURS = KubeletEnds(
    "Evicted", "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. ", disrupted=True
)
REFUSED = [
    KubeletEnds("UnexpectedAdmissionError", "Allocate failed due to no healthy devices present", code=None),
    KubeletEnds("OutOfcpu", "Node didn't have enough resource: cpu, requested: 4000, used: 3900, capacity: 4000", None),
    KubeletEnds("NodeAffinity", "Predicate NodeAffinity failed", None),
    KubeletEnds("Terminated", "Pod was terminated in response to imminent node shutdown.", 143),
]


def start(*plays, role: str = "train", **changes) -> world.World:
    played = world.World({role: list(plays)})
    played.add_model()
    played.apply(**{"spec.training.retries": 0, **changes})
    return played


@pytest.mark.parametrize("play", [LIMIT, CONTAINER, VOLUME, NODE_DISK])
async def test_a_pod_that_used_too_much_disk_counts_and_says_what_to_request(play: KubeletEnds) -> None:
    played = start(play)
    await played.rest()
    assert (played.phase, played.reason("Failed")) == (Phase.FAILED, Reason.DISK_EXCEEDED)
    shown = played.condition("Failed").message
    assert play.message.strip() in shown
    assert "resources.requests.ephemeralStorage" in shown
    assert played.state.failure.exit_code == play.code


@pytest.mark.parametrize("play", [LIMIT, NODE_DISK])
async def test_such_an_eviction_is_retried_as_often_as_the_job_allows(play: KubeletEnds) -> None:
    played = start(play, play, play, play, **{"spec.training.retries": 2})
    await played.rest()
    assert played.phase == Phase.FAILED
    assert len(played.attempts("train")) == 3


async def test_a_pod_that_used_more_memory_than_it_requested_is_out_of_memory() -> None:
    played = start(NODE_MEMORY, NODE_MEMORY)
    await played.rest()
    assert (played.phase, played.reason("Failed")) == (Phase.FAILED, Reason.TRAINER_OUT_OF_MEMORY)
    assert "resources.requests.memory" in played.condition("Failed").message
    assert len(played.attempts("train")) == 2


async def test_what_its_neighbours_caused_is_quoted_and_does_not_count() -> None:
    played = start(NEIGHBOURS, Hangs())
    quoted = NEIGHBOURS.message.strip()
    await played.settle(until=lambda: quoted in getattr(played.condition("Trained"), "message", ""))
    await played.settle(until=played.runs("train"))
    played.let_go("train")
    await played.rest()
    assert played.phase == Phase.READY
    assert (played.state.failed_attempts, len(played.attempts("train"))) == (0, 1)


@pytest.mark.parametrize("play", REFUSED, ids=lambda play: play.reason)
async def test_a_pod_that_the_kubelet_refuses_or_stops_with_its_node_does_not_count(play: KubeletEnds) -> None:
    played = start(play)
    await played.settle(until=lambda: played.state.attempt == 2)
    assert play.message.strip() in played.condition("Trained").message
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts("train")) == 2
    assert (played.state.failed_attempts, played.state.failure) == (0, None)


async def test_what_others_cause_again_and_again_ends_with_the_deadline() -> None:
    played = start(*REFUSED[:1] * 500, **{"spec.activeDeadlineSeconds": 7200})
    await played.wait(7300)
    assert (played.phase, played.reason("Failed")) == (Phase.FAILED, Reason.DEADLINE_EXCEEDED)
    assert "no healthy devices" in played.condition("Failed").message
    assert len(played.attempts("train")) < 40, "the pauses grow"


async def test_a_server_whose_base_model_is_larger_than_its_disk_ends_the_revision() -> None:
    words = "Pod ephemeral local storage usage exceeds the total limit of containers 200Mi. "
    played = start(*[KubeletEnds("Evicted", words)] * 9, role="server", **{"spec.training.retries": 1})
    await played.rest()
    assert (played.phase, played.reason("Failed")) == (Phase.FAILED, Reason.DISK_EXCEEDED)
    assert "deployment.resources.requests.ephemeralStorage" in played.condition("Failed").message


async def test_one_of_several_nodes_that_used_too_much_is_the_cause() -> None:
    played = start(Hangs(), LIMIT, **{"spec.resources.nodes": 2})
    await played.rest()
    assert (played.phase, played.reason("Failed")) == (Phase.FAILED, Reason.DISK_EXCEEDED)


async def test_a_cause_that_another_node_names_counts_although_one_was_refused() -> None:
    played = start(Ends(4, "nan"), REFUSED[0], **{"spec.resources.nodes": 2})
    await played.rest()
    assert (played.phase, played.reason("Failed")) == (Phase.FAILED, Reason.LOSS_DIVERGED)


async def test_a_server_that_is_killed_at_its_memory_limit_says_so() -> None:
    played = start(Crashes(137, "Killed"), role="server")
    await played.rest()
    assert played.reason("Failed") == Reason.SERVER_FAILED
