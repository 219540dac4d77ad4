"""Lost nodes: drained, reclaimed, unreachable, or back without their containers. Reported, and not counted as failures."""

import pytest

from finetune_api.reasons import Phase, Reason
from finetune_operator.observe import label
from flow import world
from flow.fakecluster import Ends, Hangs, Silent

LOST = Ends(255, "", "Unknown")
"""What containerd says of a container that a reboot ended."""


def start(*plays, nodes: int = 1, **changes) -> world.World:
    """`plays` of the training pods. No failure is forgiven: what counts as one ends the job."""
    played = world.World({"train": list(plays)})
    played.add_model()
    played.apply(**{"spec.resources.nodes": nodes, "spec.training.retries": 0, **changes})
    return played


def train(played: world.World, number: int = 0) -> str:
    """The name of a training pod."""
    pods = [p for p in played.pods("train") if p["metadata"]["labels"].get(label.COMPLETION_INDEX, "0") == str(number)]
    return pods[-1]["metadata"]["name"]


def falls_silent(played: world.World, number: int = 0) -> str:
    name = train(played, number)
    played._cast[played.cluster.get("Pod", name)["metadata"]["uid"]] = Silent()
    return name


async def at_work(played: world.World, nodes: int = 1) -> None:
    await played.settle(until=lambda: played.reason("Trained") == Reason.RUNNING and len(played.pods("train")) == nodes)


async def test_an_unreachable_node_is_reported_and_training_continues_when_it_is_back() -> None:
    played = start(Hangs())
    await at_work(played)
    pod = falls_silent(played)
    await played.rest()
    assert (played.phase, played.reason("Trained")) == (Phase.TRAINING, Reason.DISRUPTED)
    assert f"pod {pod} is unreachable" in played.condition("Ready").message
    assert "five minutes by default" in played.condition("Ready").message
    assert world.kstatus(played.job) == "InProgress"
    played.recast("train", Hangs())
    await played.rest()
    assert played.reason("Trained") == Reason.RUNNING
    played.let_go("train")
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts("train")) == 1


async def test_a_pod_on_an_unreachable_node_is_replaced_only_once_it_has_ended() -> None:
    played = start(Hangs())
    await at_work(played)
    pod = falls_silent(played)
    await played.settle()
    played.cluster.taint(pod)
    await played.wait(3000)
    assert played.reason("Trained") == Reason.DISRUPTED
    shown = played.condition("Trained").message
    assert all(word in shown for word in (f"pod {pod} ", "(DeletionByTaintManager)", "unreachable"))
    assert "node.kubernetes.io/out-of-service" in shown
    assert [p["metadata"]["name"] for p in played.pods("train")] == [pod]
    # the machine is back, and its kubelet ends the pod; or the Node is deleted, and the garbage collector does
    played.recast("train", Hangs())
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts("train")) == 1
    assert (played.state.failed_attempts, played.state.failure) == (0, None)


async def test_the_next_attempt_of_several_pods_waits_for_one_on_an_unreachable_node_and_names_it() -> None:
    played = start(Hangs(), Hangs(), nodes=2)
    await at_work(played, 2)
    pod = falls_silent(played, 1)
    await played.settle()
    assert played.reason("Trained") == Reason.DISRUPTED
    played.cluster.taint(pod)
    await played.wait(600)
    assert played.state.attempt == 2
    assert len(played.attempts("train")) == 1
    assert played.reason("Trained") == Reason.DISRUPTED
    assert f"attempt 2 of train waits: pod {pod} " in played.condition("Trained").message
    played.recast("train", Hangs())
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts("train")) == 2
    assert (played.state.failed_attempts, played.state.failure) == (0, None)


async def test_a_pod_that_fails_because_its_peer_is_unreachable_is_no_failure() -> None:
    played = start(Hangs(), Hangs(), nodes=2)
    await at_work(played, 2)
    falls_silent(played, 1)
    await played.settle()
    first = played.cluster.get("Pod", train(played, 0))
    played._cast[first["metadata"]["uid"]] = Ends(1, "ConnectionResetError: the peer closed the connection")
    await played.settle(until=lambda: played.state.attempt == 2)
    await played.settle()
    assert (played.state.failed_attempts, played.state.failure) == (0, None)
    assert "unreachable" in played.condition("Trained").message
    played.recast("train", Hangs())
    await played.rest()
    assert played.phase == Phase.READY


@pytest.mark.parametrize("end", [LOST, Ends(137, "", "ContainerStatusUnknown")])
async def test_containers_that_a_node_lost_do_not_count_as_a_failure(end: Ends) -> None:
    played = start(end)
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts("train")) == 2
    assert (played.state.failed_attempts, played.state.failure) == (0, None)


async def test_a_container_that_was_created_twice_ends_only_once() -> None:
    """Seen when containerd died while it made a container: the kubelet made another, which did its work."""
    played = start(Hangs())
    await at_work(played)

    def made_twice(raw: dict) -> None:
        (state,) = raw["status"]["containerStatuses"]
        state["lastState"] = {"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown"}}

    played.cluster.edit("Pod", train(played), made_twice)
    await played.settle()
    assert played.phase == Phase.TRAINING
    played.let_go("train")
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts("train")) == 1


async def test_containers_that_one_of_two_nodes_lost_do_not_count_as_a_failure_of_the_other() -> None:
    played = start(Ends(1, "ConnectionResetError"), LOST, nodes=2)
    await played.rest()
    assert played.phase == Phase.READY
    assert (played.state.failed_attempts, played.state.failure) == (0, None)


async def test_a_cause_that_one_pod_names_counts_even_if_others_were_lost() -> None:
    played = start(Ends(137, "", "OOMKilled"), LOST, nodes=2)
    await played.settle(until=lambda: played.state.attempt == 2)
    assert played.state.failure.reason == Reason.TRAINER_OUT_OF_MEMORY
    await played.rest()
    assert played.phase == Phase.READY


async def test_an_evicted_pod_is_reported_while_it_saves_its_checkpoint() -> None:
    played = start(Hangs())
    await at_work(played)
    played.cluster.stop_slowly = True
    pod = train(played)
    disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    played.cluster.edit("Pod", pod, lambda raw: raw["status"]["conditions"].append(disrupted))
    played.cluster.remove("Pod", pod)
    await played.rest()
    shown = played.condition("Trained").message
    assert f"pod {pod} is being evicted (EvictionByEvictionAPI)" in shown
    played.cluster.stop_slowly = False
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts("train")) == 1


async def test_a_server_on_an_unreachable_node_is_named() -> None:
    played = start()
    await played.rest()
    [pod] = played.pods("server")
    played._cast[pod["metadata"]["uid"]] = Silent()
    await played.rest()
    assert (played.phase, played.is_true("Ready")) == (Phase.DEPLOYING, False)
    assert f"pod {pod['metadata']['name']} is unreachable" in played.condition("Ready").message
