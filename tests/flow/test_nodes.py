"""Training on several nodes: the pods begin, fail and end as one, the first speaks for all, and nothing is counted twice."""

import pytest

from finetune_api.reasons import Phase, Reason, Stage
from finetune_operator import metrics
from finetune_operator.observe import label
from flow import world
from flow.fakecluster import Ends, Evicted, Hangs, Unschedulable

BROKEN = Ends(1, "ConnectionResetError: the peer closed the connection")
"""How a pod may end whose peer left."""
LOST = Ends(143, "stopped")
"""How the trainer ends when another process is gone."""


def start(plays: list | None = None, script: dict | None = None, nodes: int = 2, **changes) -> world.World:
    """`plays`: of the training pods, attempt by attempt in the order of their numbers."""
    played = world.World({"train": plays or [], **(script or {})})
    played.add_model()
    played.apply(**{"spec.resources.nodes": nodes, **changes})
    return played


def both_run(played: world.World):
    return lambda: [p["status"]["phase"] for p in played.pods("train")].count("Running") == 2


def service(played: world.World) -> str:
    return f"{world.NAME}-{played.state.revision}-nodes"


def arguments(played: world.World, attempt: int) -> list[str]:
    manifest = played.cluster.get("Job", played.attempts("train")[attempt - 1])
    return manifest["spec"]["template"]["spec"]["containers"][0]["args"]


# -- success --


@pytest.mark.parametrize("nodes", [2, 3, 64])
async def test_all_nodes_train_in_one_attempt_and_the_first_answers_for_them(nodes: int) -> None:
    played = start(nodes=nodes, **{"spec.training.batchSize": 64})
    await played.settle(until=lambda: len(played.pods("train")) == nodes)
    numbers = sorted(int(p["metadata"]["labels"][label.COMPLETION_INDEX]) for p in played.pods("train"))
    assert numbers == list(range(nodes))
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts("train")) == 1
    assert played.condition("Trained").message.startswith("100 steps, loss 0.5000")


async def test_every_other_stage_has_one_pod() -> None:
    played = start()
    await played.rest()
    for stage in ("preflight", "evaluate", "verify"):
        assert len(played.pods(stage)) == 1
        assert "completions" not in played.cluster.get("Job", played.attempts(stage)[0])["spec"]


async def test_the_pods_find_each_other_by_a_service_that_lives_as_long_as_the_training() -> None:
    played = start([Hangs(), Hangs()])
    assert not [name for name in played.cluster.names("Service") if name.endswith("-nodes")]
    await played.settle(until=both_run(played))
    made = played.cluster.get("Service", service(played))["spec"]
    assert (made["clusterIP"], made["publishNotReadyAddresses"]) == ("None", True)
    created = [name for kind, name, _ in played.cluster.created if kind in {"Service", "Job"}]
    assert created.index(service(played)) < created.index(played.attempts("train")[0]), (
        "a name before the pods that need it"
    )
    for pod in played.pods("train"):
        assert made["selector"].items() <= pod["metadata"]["labels"].items()
    played.let_go("train")
    await played.rest()
    assert played.phase == Phase.READY
    assert played.cluster.names("Service") == [world.NAME, played.state.release]


@pytest.mark.parametrize(
    "drift",
    [
        lambda played: played.cluster.remove("Service", service(played)),
        lambda played: played.cluster.edit(
            "Service", service(played), lambda raw: raw["spec"].update(publishNotReadyAddresses=False)
        ),
        lambda played: played.cluster.edit(
            "Service", service(played), lambda raw: raw["spec"]["selector"].update({label.STAGE: "another"})
        ),
    ],
    ids=["removed", "only ready pods", "another selector"],
)
async def test_the_headless_service_is_recreated_while_they_train(drift) -> None:
    played = start([Hangs(), Hangs()])
    await played.settle(until=both_run(played))
    before = played.cluster.get("Service", service(played))["spec"]
    drift(played)
    await played.rest()
    assert played.cluster.get("Service", service(played))["spec"] == before
    assert len(played.attempts("train")) == 1


async def test_a_job_of_one_node_has_no_such_service() -> None:
    played = start([Hangs()], nodes=1)
    await played.settle(until=played.runs("train"))
    assert played.cluster.names("Service") == []


async def test_what_still_hangs_when_the_first_is_done_is_stopped() -> None:
    played = start([Ends(0, world.train()), Hangs(), Hangs()], nodes=3)
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts("train")) == 1
    assert not [p for p in played.pods("train") if p["status"]["phase"] == "Running"]


@pytest.mark.parametrize("end", [Evicted(), BROKEN, Ends(137, "", "OOMKilled")])
async def test_what_happens_to_the_others_after_the_first_is_done_does_not_matter(end) -> None:
    played = start([Ends(0, world.train()), end])
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts("train")) == 1
    assert played.state.failure is None


async def test_an_answer_of_the_first_that_was_lost_is_repeated() -> None:
    played = start([Ends(0, "no JSON"), Ends(0)])
    await played.rest()
    assert len(played.attempts("train")) == 2
    assert played.phase == Phase.READY


# -- failures --


async def test_the_failure_of_any_pod_ends_the_attempt_and_the_next_one_has_all_of_them() -> None:
    played = start([Hangs(), Hangs(), Ends(1, "Traceback: boom")], nodes=3, **{"spec.training.retries": 1})
    await played.settle(until=lambda: played.state.failure is not None)
    failure = played.state.failure
    assert (failure.reason, failure.exit_code, failure.attempt) == (Reason.TRAINER_ERROR, 1, 1)
    assert failure.message.startswith(f"pod {played.attempts('train')[0]}-2-")
    assert "boom" in failure.message
    assert played.state.failed_attempts == 1
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts("train")) == 2
    assert len(played.pods("train")) >= 3


@pytest.mark.parametrize("first", [True, False], ids=["of the first pod", "of another pod"])
@pytest.mark.parametrize(
    "cause, reason, repeated",
    [
        (Ends(2, world.refusal(Stage.TRAIN, Reason.DATASET_INVALID)), Reason.DATASET_INVALID, False),
        (Ends(3), Reason.TRAINER_OUT_OF_MEMORY, True),
        (Ends(137, "", "OOMKilled"), Reason.TRAINER_OUT_OF_MEMORY, True),
        (Ends(4), Reason.LOSS_DIVERGED, False),
        (Ends(5), Reason.STORAGE_UNAVAILABLE, True),
    ],
)
async def test_a_pod_that_failed_when_its_peer_left_does_not_hide_the_cause(cause, reason, repeated, first) -> None:
    played = start([cause, BROKEN] if first else [BROKEN, cause])
    await played.settle(until=lambda: played.state.failure is not None)
    assert played.state.failure.reason == reason
    await played.rest()
    assert len(played.attempts("train")) == 1 + repeated
    assert played.phase == (Phase.READY if repeated else Phase.FAILED)
    if not repeated:
        assert played.reason("Failed") == reason


@pytest.mark.parametrize("plays", [[BROKEN, Ends(137)], [Ends(137), BROKEN], [LOST, Ends(137)], [Ends(137), LOST]])
async def test_a_killed_pod_is_named_rather_than_those_that_failed_after_it(plays) -> None:
    played = start(plays)
    await played.settle(until=lambda: played.state.failure is not None)
    assert played.state.failure.exit_code == 137
    assert f"-{plays.index(Ends(137))}-" in played.state.failure.message.split(":")[0]


async def test_failures_of_all_pods_of_an_attempt_count_as_one() -> None:
    played = start([Ends(1, "boom")] * 6, **{"spec.training.retries": 2})
    await played.rest()
    assert len(played.attempts("train")) == 3
    assert (played.phase, played.reason("Failed")) == (Phase.FAILED, Reason.TRAINER_ERROR)


async def test_storage_that_one_pod_cannot_reach_is_waited_for_and_not_counted() -> None:
    played = start([Ends(5), BROKEN] * 5, **{"spec.training.retries": 0})
    await played.settle(until=lambda: played.reason("Trained") == Reason.STORAGE_UNAVAILABLE)
    assert world.kstatus(played.job) == "InProgress"
    await played.rest()
    assert len(played.attempts("train")) == 6
    assert played.phase == Phase.READY


@pytest.mark.parametrize("oom", [Ends(3), Ends(137, "", "OOMKilled")])
async def test_out_of_memory_on_one_node_halves_the_micro_batch_of_all_once(oom) -> None:
    played = start([BROKEN, oom, oom, BROKEN], **{"spec.training.retries": 5, "spec.training.batchSize": 24})
    await played.rest()
    assert (played.phase, played.reason("Failed")) == (Phase.FAILED, Reason.TRAINER_OUT_OF_MEMORY)
    assert len(played.attempts("train")) == 2
    assert "--micro-batch-scale" not in arguments(played, 1)
    assert arguments(played, 2)[arguments(played, 2).index("--micro-batch-scale") + 1] == "0.5"
    notified = played.run_file("Job", played.attempts("train")[1])
    assert notified["training"]["batchSize"] == 24, "the effective batch stays"


async def test_the_smaller_micro_batch_stays_over_other_failures_and_disruptions_of_the_same_training() -> None:
    oom = Ends(137, "", "OOMKilled")
    played = start([BROKEN, oom, Hangs(), Evicted(), Ends(1), Hangs(), oom, Hangs()], **{"spec.training.retries": 5})
    for attempt, halved in ((1, False), (2, True), (3, True), (4, True)):
        await played.settle(until=lambda attempt=attempt: len(played.attempts("train")) == attempt)
        assert ("0.5" in arguments(played, attempt)) is halved
    await played.rest()
    assert len(played.attempts("train")) == 4
    assert (played.phase, played.reason("Failed")) == (Phase.FAILED, Reason.TRAINER_OUT_OF_MEMORY)


# -- lost nodes --


def evict(played: world.World, number: int) -> None:
    """As the eviction API does: the condition first, then the pod is told to stop."""
    pod = next(p for p in played.pods("train") if world.fakecluster.index_of(p) == number)

    def notified(raw: dict) -> None:
        raw["status"]["conditions"] = [
            {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
        ]
        raw["metadata"]["deletionTimestamp"] = world.fakecluster.stamp(played.cluster.now)

    played.cluster.edit("Pod", pod["metadata"]["name"], notified)


@pytest.mark.parametrize("number", [0, 1])
async def test_an_evicted_pod_ends_the_attempt_and_does_not_count_as_a_failure(number: int) -> None:
    played = start([Hangs(), Hangs()], **{"spec.training.retries": 0})
    await played.settle(until=both_run(played))
    evict(played, number)
    await played.settle(until=lambda: played.state.attempt == 2)
    shown = played.condition("Trained")
    assert shown.reason == Reason.RETRYING
    assert "was evicted (EvictionByEvictionAPI)" in shown.message
    assert "newest checkpoint" in shown.message
    assert played.state.failed_attempts == 0
    assert played.state.retry_at is None
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts("train")) == 2
    assert played.state.failure is None


async def test_evictions_are_never_counted_however_many() -> None:
    played = start([Evicted(), Hangs(), Hangs(), Evicted()] * 4, **{"spec.training.retries": 0})
    await played.rest()
    assert len(played.attempts("train")) == 9
    assert played.phase == Phase.READY


async def test_an_eviction_that_the_operator_slept_through_is_read_from_the_jobs_own_verdict() -> None:
    played = start([Hangs(), Hangs()], **{"spec.training.retries": 0})
    await played.settle(until=both_run(played))
    evict(played, 1)
    while not world.fakecluster.over(played.cluster.get("Job", played.attempts("train")[0])):
        assert played.cluster.step()
    assert not [p for p in played.pods("train") if world.fakecluster._disrupted(p)], "the evidence is gone with its pod"
    played.boot()
    played.dirty.update(played.cache.parents)
    await played.rest()
    assert played.phase == Phase.READY
    assert played.state.failure is None
    assert len(played.attempts("train")) == 2


async def test_a_pod_that_fails_before_the_evicted_one_is_gone_is_no_failure() -> None:
    played = start([Hangs(), Hangs()], **{"spec.training.retries": 0})
    await played.settle(until=both_run(played))
    evict(played, 1)
    played.recast("train", BROKEN)
    await played.rest()
    assert played.phase == Phase.READY
    assert played.state.failure is None


async def test_the_next_attempt_waits_until_the_last_pod_of_the_former_one_has_ended() -> None:
    played = start([Hangs(), Hangs()])
    await played.settle(until=both_run(played))
    played.cluster.stop_slowly = True
    evict(played, 1)
    await played.settle()
    assert len(played.attempts("train")) == 1
    assert played.state.attempt == 2
    played.cluster.stop_slowly = False
    await played.rest()
    assert len(played.attempts("train")) == 2
    assert played.phase == Phase.READY


async def test_so_it_does_where_a_job_is_called_failed_before_its_pods_have_ended() -> None:
    """As Kubernetes did until 1.31."""
    played = start([Hangs(), Hangs()])
    await played.settle(until=both_run(played))
    played.cluster.stop_slowly = True

    def failed(raw: dict) -> None:
        raw.setdefault("status", {})["conditions"] = [
            {
                "type": "Failed",
                "status": "True",
                "reason": "BackoffLimitExceeded",
                "lastTransitionTime": world.fakecluster.stamp(played.cluster.now),
            }
        ]

    for pod in played.pods("train"):
        played.cluster.remove("Pod", pod["metadata"]["name"])
    played.cluster.edit("Job", played.attempts("train")[0], failed)
    await played.wait(200)
    assert played.state.attempt == 2
    assert len(played.attempts("train")) == 1
    played.cluster.stop_slowly = False
    await played.rest()
    assert played.phase == Phase.READY


# -- waiting --


async def test_training_waits_until_all_pods_have_a_place_and_says_for_what() -> None:
    played = start([Hangs(), Unschedulable(), Unschedulable()], nodes=3)
    await played.rest()
    assert played.reason("Trained") == played.reason("Ready") == Reason.UNSCHEDULABLE
    assert "2 of 3 pods wait" in played.condition("Ready").message
    assert "Insufficient nvidia.com/gpu" in played.condition("Ready").message
    assert world.kstatus(played.job) == "InProgress"
    played.let_go("train")
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts("train")) == 1


async def test_resources_that_are_edited_while_a_pod_waits_replace_all_of_them() -> None:
    played = start([Hangs(), Unschedulable()])
    await played.settle(until=lambda: played.reason("Trained") == Reason.UNSCHEDULABLE)
    played.apply(**{"spec.resources.nodes": 2, "spec.resources.requests.memory": "8Gi"})
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts("train")) == 2
    assert played.state.failure is None


async def test_pods_that_gave_up_waiting_for_one_without_a_place_are_not_counted() -> None:
    played = start([Hangs(), Unschedulable()] * 5, **{"spec.training.retries": 0})
    for attempt in range(1, 5):
        await played.settle(until=lambda: played.reason("Trained") == Reason.UNSCHEDULABLE)
        assert played.state.attempt == attempt
        first = next(p for p in played.pods("train") if p["status"]["phase"] == "Running")
        played._cast[first["metadata"]["uid"]] = Ends(143, "another process is gone")
        await played.settle(until=lambda attempt=attempt: played.state.attempt == attempt + 1)
        assert "ended before its 2 pods" in played.condition("Trained").message
        assert played.state.retry_at > played.cluster.now, "whatever makes them end at once does not make a storm"
    await played.settle(until=lambda: played.reason("Trained") == Reason.UNSCHEDULABLE)
    assert played.state.failed_attempts == 0
    played.let_go("train")
    await played.rest()
    assert played.phase == Phase.READY
    assert played.state.failure is None


async def test_a_failure_of_its_own_counts_also_while_another_pod_waits() -> None:
    played = start([Ends(1, "Traceback: boom"), Unschedulable()], **{"spec.training.retries": 0})
    await played.rest()
    assert (played.phase, played.reason("Failed")) == (Phase.FAILED, Reason.TRAINER_ERROR)


async def test_pods_that_had_met_and_lost_each_other_count() -> None:
    played = start([Hangs(), Hangs()], **{"spec.training.retries": 0})
    await played.settle(until=lambda: played.reason("Trained") == Reason.RUNNING)
    played.recast("train", Ends(143, "another process is gone"))
    await played.rest()
    assert (played.phase, played.reason("Failed")) == (Phase.FAILED, Reason.TRAINER_ERROR)


@pytest.mark.parametrize("nodes", [1, 3])
async def test_another_number_of_nodes_leaves_the_attempt_that_runs_alone(nodes: int) -> None:
    played = start([Hangs(), Hangs()])
    await played.settle(until=both_run(played))
    revision = played.state.revision
    played.apply(**{"spec.resources.nodes": nodes})
    await played.rest()
    assert both_run(played)()
    assert service(played) in played.cluster.names("Service")
    played.recast("train", Ends(1, "boom"))
    await played.rest()
    assert played.phase == Phase.READY
    assert played.state.revision == revision
    assert played.cluster.get("Job", played.attempts("train")[1])["spec"].get("completions", 1) == nodes


async def test_a_quota_that_refuses_one_of_the_pods_is_reported_and_waited_for() -> None:
    played = start([Hangs(), Hangs()])
    await played.settle(until=played.runs("preflight"))
    quota = 'pods "x" is forbidden: exceeded quota: team, requested: gpu=1, used: gpu=4, limited: gpu=4'
    played.cluster.refused_pods = {f"{world.NAME}-{played.state.revision}-train-1-1": quota}
    await played.settle(until=lambda: played.reason("Ready") == Reason.QUOTA_EXCEEDED)
    assert "1 of 2 pods wait" in played.condition("Ready").message
    assert "ResourceQuota team" in played.condition("Ready").message
    played.cluster.refused_pods = {}
    await played.settle(until=both_run(played))
    played.let_go("train")
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts("train")) == 1


async def test_suspending_stops_all_of_them_and_resuming_starts_all_of_them_again() -> None:
    played = start([Hangs(), Hangs()])
    await played.settle(until=both_run(played))
    played.apply(**{"spec.resources.nodes": 2, "spec.suspend": True})
    await played.rest()
    assert not played.pods("train")
    assert played.cluster.names("Service") == []
    played.apply(**{"spec.resources.nodes": 2})
    await played.rest()
    assert played.phase == Phase.READY
    assert len(played.attempts("train")) == 2


# -- what is counted --


async def test_an_attempt_has_waited_until_its_last_pod_started() -> None:
    played = start([Hangs(), Unschedulable()])
    await played.settle(until=lambda: played.reason("Trained") == Reason.UNSCHEDULABLE)
    before = metrics.queue_wait.labels("train")._sum.get()
    await played.wait(500)
    played.let_go("train")
    await played.rest()
    assert metrics.queue_wait.labels("train")._sum.get() - before >= 500
