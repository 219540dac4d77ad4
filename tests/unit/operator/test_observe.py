"""From raw objects to facts: total, small, and forgiving to other versions."""

import pytest
from hypothesis import strategies as some

from finetune_api import status
from finetune_api.reasons import Condition, Reason
from finetune_operator import conditions
from finetune_operator.observe import containers, label, parents, projections
from support import manifests


def raw(**more) -> dict:
    return {"metadata": {"name": "x", "namespace": "ml", "uid": "u", "labels": {label.UID: "p"}, **more}}


JSON = some.recursive(
    some.none() | some.booleans() | some.integers(0, 9) | some.text(max_size=5),
    lambda inner: some.lists(inner, max_size=2) | some.dictionaries(some.text(max_size=5), inner, max_size=2),
    max_leaves=5,
)


@pytest.mark.parametrize("kind", sorted(projections.PROJECTIONS))
def test_a_bare_object_is_a_fact(kind: str) -> None:
    assert projections.PROJECTIONS[kind](raw()).name == "x"
    assert projections.PROJECTIONS[kind](raw() | {"spec": None, "status": None, "data": None}).name == "x"


@pytest.mark.parametrize(
    "found, succeeded, failed",
    [
        ([], False, False),
        ([{"type": "Complete", "status": "True"}], True, False),
        ([{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}], False, True),
        ([{"type": "FailureTarget", "status": "True"}], False, False),
        ([{"type": "SuccessCriteriaMet", "status": "True"}], False, False),
        ([{"type": "Failed", "status": "False"}], False, False),
    ],
)
def test_a_job_is_over_when_its_pods_are(found: list, succeeded: bool, failed: bool) -> None:
    seen = projections.stage_job(raw() | {"status": {"conditions": found}})
    assert (seen.succeeded, seen.failed) == (succeeded, failed)


def container(name: str, **state) -> dict:
    return {"name": name, "restartCount": 0, "state": state}


def test_the_end_that_tells_most_is_the_failed_containers() -> None:
    fetched = container("fetch", terminated={"exitCode": 0, "message": "ok"})
    failed = container("server", terminated={"exitCode": 1, "message": "boom"})
    seen = projections.pod(raw() | {"status": {"initContainerStatuses": [fetched], "containerStatuses": [failed]}})
    assert (seen.terminated.container, seen.terminated.message) == ("server", "boom")


LOST_AT_ITS_MAKING = {"lastState": {"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown"}}}
"""As the kubelet says it of a container that containerd was making when it died, and that it made once more."""


def test_a_former_state_of_a_container_that_is_never_restarted_is_no_end() -> None:
    once = raw() | {"spec": {"restartPolicy": "Never"}}
    state = container("finetune", running={"startedAt": "2026-05-04T12:00:00Z"}) | LOST_AT_ITS_MAKING
    assert projections.pod(once | {"status": {"containerStatuses": [state]}}).terminated is None
    state = container("finetune", terminated={"exitCode": 0, "message": "done"}) | LOST_AT_ITS_MAKING
    seen = projections.pod(once | {"status": {"containerStatuses": [state]}}).terminated
    assert (seen.exit_code, seen.message) == (0, "done")


def test_a_pod_that_is_over_by_a_lost_container_ended_as_that_did() -> None:
    """As the kubelet says it where the runtime lost a container that is not made again: it waits, and the pod has failed."""
    state = container("finetune", waiting={"reason": "ContainerCreating"}) | LOST_AT_ITS_MAKING
    for phase, ending in (("Pending", None), ("Failed", "ContainerStatusUnknown")):
        once = raw() | {"spec": {"restartPolicy": "Never"}, "status": {"phase": phase, "containerStatuses": [state]}}
        seen = projections.pod(once).terminated
        assert (seen and seen.reason) == ending


def test_a_servers_former_state_tells_why_it_was_restarted() -> None:
    crashed = {"lastState": {"terminated": {"exitCode": 1, "message": "boom"}}}
    state = container("server", waiting={"reason": "CrashLoopBackOff"}) | crashed
    seen = projections.pod(raw() | {"spec": {"restartPolicy": "Always"}, "status": {"containerStatuses": [state]}})
    assert (seen.terminated.exit_code, seen.terminated.message) == (1, "boom")


def beside(stage: dict, **server) -> projections.Pod:
    """A pod of a stage with a server beside it."""
    sidecar = {"name": "server", "restartCount": 0, **server}
    return projections.pod(
        raw()
        | {
            "spec": {"restartPolicy": "Never"},
            "status": {"initContainerStatuses": [sidecar], "containerStatuses": [container("finetune", **stage)]},
        }
    )


def stopped(code: int, second: int, message: str = "") -> dict:
    return {"terminated": {"exitCode": code, "message": message, "finishedAt": f"2026-05-04T12:00:{second:02}Z"}}


@pytest.mark.parametrize("code", [0, 137, 143])
def test_a_server_that_is_stopped_after_its_stage_is_no_failure(code: int) -> None:
    seen = beside(stopped(0, 10, "done"), state=stopped(code, 10))
    assert (seen.terminated.container, seen.terminated.exit_code) == ("finetune", 0)
    assert (seen.server_end, seen.restarts) == (None, 0)


def test_a_server_that_ended_before_its_stage_is_a_fact_whether_it_was_restarted_or_not() -> None:
    restarted = beside(stopped(1, 40), lastState=stopped(137, 5, "CUDA out of memory"), state=stopped(143, 41))
    assert (restarted.server_end.exit_code, restarted.server_end.message) == (137, "CUDA out of memory")
    assert restarted.terminated.container == "finetune"
    waits = beside({"waiting": {"reason": "PodInitializing"}}, state=stopped(1, 5, "no such model"))
    assert (waits.server_end.message, waits.terminated) == ("no such model", None)


def test_an_init_containers_success_is_not_the_pods() -> None:
    fetched = container("fetch", terminated={"exitCode": 0, "message": "ok"})
    running = container("server", running={"startedAt": "2026-05-04T12:00:00Z"})
    seen = projections.pod(raw() | {"status": {"initContainerStatuses": [fetched], "containerStatuses": [running]}})
    assert seen.terminated is None


@pytest.mark.parametrize(
    "found, ending",
    [
        ([], False),
        ([{"type": "FailureTarget", "status": "True"}], True),
        ([{"type": "SuccessCriteriaMet", "status": "True"}], True),
        ([{"type": "FailureTarget", "status": "False"}], False),
    ],
)
def test_a_job_is_ending_while_its_last_pods_are_being_stopped(found: list, ending: bool) -> None:
    assert projections.stage_job(raw() | {"status": {"conditions": found}}).ending is ending


@pytest.mark.parametrize("spec, nodes", [(None, 1), ({}, 1), ({"completions": 1}, 1), ({"completions": 4}, 4)])
def test_a_job_has_as_many_nodes_as_completions(spec: dict | None, nodes: int) -> None:
    assert projections.stage_job(raw() | {"spec": spec}).nodes == nodes


@pytest.mark.parametrize("index, node", [("0", 0), ("3", 3), ("", 0), ("three", 0)])
def test_a_pod_knows_its_number_among_the_nodes(index: str, node: int) -> None:
    assert projections.pod(raw(labels={label.COMPLETION_INDEX: index})).node == node
    assert projections.pod(raw()).node == 0


@pytest.mark.parametrize(
    "condition, why",
    [
        ({"status": "True", "reason": "PreemptionByScheduler"}, "PreemptionByScheduler"),
        ({"status": "True", "reason": "PreemptionByScheduler", "message": "for a"}, "PreemptionByScheduler: for a"),
        ({"status": "True"}, "disrupted"),
        ({"status": "False", "reason": "PreemptionByScheduler"}, ""),
    ],
)
def test_an_evicted_pod_says_why(condition: dict, why: str) -> None:
    seen = projections.pod(raw() | {"status": {"conditions": [{"type": "DisruptionTarget", **condition}]}})
    assert (seen.disruption, seen.disrupted) == (why, bool(why))


def test_the_rendezvous_port_is_guarded_like_the_servers_port() -> None:
    ports = [{"port": 29500, "targetPort": 29500}, {"port": 1, "targetPort": 1}]
    seen = projections.service(raw() | {"spec": {"ports": ports, "publishNotReadyAddresses": True}})
    assert seen.guarded == {"selector": None, "ports": ports[:1], "unready": True}


def test_a_pods_parent_is_its_release_or_its_job() -> None:
    assert projections.pod(raw(labels={label.RELEASE: "r", "batch.kubernetes.io/job-name": "j"})).parent == "r"
    assert projections.pod(raw(labels={"batch.kubernetes.io/job-name": "j"})).parent == "j"


@pytest.mark.parametrize(
    "state, settled",
    [
        ({}, False),
        ({"observedGeneration": 2, "replicas": 1, "updatedReplicas": 1}, True),
        ({"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1}, False),
        ({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 1}, False),
        ({"observedGeneration": 2, "replicas": 1}, False),
    ],
)
def test_a_server_is_settled_when_no_pod_of_a_former_template_is_left(state: dict, settled: bool) -> None:
    assert projections.server(raw(generation=2) | {"spec": {"replicas": 1}, "status": state}).settled is settled


def test_a_foreign_object_belongs_to_no_job() -> None:
    assert projections.uid_of({"metadata": {"name": "x"}}) is None


def job(**changes) -> dict:
    meta = {"metadata.namespace": "ml", "metadata.uid": "u", "metadata.generation": 3}
    return manifests.changed(manifests.MINIMAL, **meta, **changes)


def test_a_field_of_a_newer_crd_is_not_an_invalid_spec() -> None:
    seen = parents.parent(job(**{"spec.training.galore": True, "spec.newSection": {"a": 1}}))
    assert seen.spec is not None
    assert seen.unreadable == ""


def test_a_spec_that_cannot_be_read_says_where() -> None:
    seen = parents.parent(job(**{"spec.training.batchSize": "many"}))
    assert seen.spec is None
    assert "spec.training.batchSize" in seen.unreadable


def test_what_another_version_wrote_into_the_status_costs_only_that_value() -> None:
    known = conditions.put(
        status.Status(),
        Condition.FAILED,
        "True",
        Reason.LOSS_DIVERGED,
        "m",
        1,
        containers.time_of("2026-01-01T00:00:00Z"),
    )
    wire = known.model_copy(update={"revision": "abc", "resolved": "{}"}).wire()
    wire |= {"failure": {"stage": "train", "reason": "NewReason", "message": "m"}, "phase": "Levitating", "new": 1}
    wire["history"] = [{"revision": "a", "outcome": "Serving"}, {"revision": "b", "outcome": "NewReason"}]
    wire["conditions"].append({"type": "Broken"})
    seen = parents.parent(job(status=wire)).status
    assert (seen.revision, seen.resolved, seen.failure, seen.phase) == ("abc", "{}", None, None)
    assert conditions.is_true(seen, Condition.FAILED)
    assert [h.revision for h in seen.history] == ["a"]


def test_a_status_of_another_world_is_an_empty_one() -> None:
    assert parents.parent(job(status={"conditions": "none", "history": 3})).status == status.Status()


RUNNING = {"running": {"startedAt": "2026-05-04T12:00:00Z"}}


def injected(spec: dict, *statuses: dict, ours: dict | None = None) -> projections.Pod:
    mine = {"name": "finetune", "ready": True, "state": RUNNING} if ours is None else ours
    state = {"phase": "Running", "initContainerStatuses": list(statuses), "containerStatuses": [mine] if mine else []}
    return projections.pod(raw() | {"spec": spec, "status": state})


def test_a_native_sidecar_that_has_not_started_is_what_the_stage_waits_for() -> None:
    spec = {"initContainers": [{"name": "agent", "restartPolicy": "Always"}]}
    waits = {"name": "finetune", "state": {"waiting": {"reason": "PodInitializing"}}}
    slow, fast = ({"name": "agent", "started": up, "state": RUNNING} for up in (False, True))
    assert injected(spec, slow, ours=waits).blocking == "agent"
    assert injected(spec, fast, ours=waits).blocking == ""
    assert injected(spec, slow).blocking == "", "the stage has started"


def test_an_injected_init_container_blocks_until_it_has_succeeded() -> None:
    spec, waits = {"initContainers": [{"name": "setup"}, {"name": "fetch"}]}, {"name": "server", "state": {}}
    assert injected(spec, {"name": "setup", "state": RUNNING}, ours=waits).blocking == "setup"
    done = {"name": "setup", "state": {"terminated": {"exitCode": 0}}}
    assert injected(spec, done, ours=waits).blocking == "", "the next one is the operator's own"


def test_only_classic_sidecars_linger() -> None:
    ended = {"name": "finetune", "state": {"terminated": {"exitCode": 0}}}
    proxy = {"name": "proxy", "state": RUNNING}
    state = {"phase": "Running", "containerStatuses": [ended, proxy], "initContainerStatuses": [{"name": "agent"}]}
    seen = projections.pod(raw() | {"status": state})
    assert (seen.lingering, seen.terminated.exit_code) == (("proxy",), 0)


@pytest.mark.parametrize("reason, gone", [("", True), ("ReadinessGatesNotReady", False), ("ContainersNotReady", False)])
def test_only_a_pod_that_is_not_ready_without_a_reason_is_on_an_unreachable_node(reason: str, gone: bool) -> None:
    ready = {"type": "Ready", "status": "False"} | ({"reason": reason, "message": "why"} if reason else {})
    mine = {"name": "finetune", "ready": True, "state": RUNNING}
    seen = projections.pod(raw() | {"status": {"phase": "Running", "containerStatuses": [mine], "conditions": [ready]}})
    assert (seen.unreachable, seen.unready) == (gone, "" if gone else "why")
