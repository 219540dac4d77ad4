"""The pods of one attempt as one: when they have begun, what ended them, and what was only its consequence."""

import pytest

from finetune_operator.decide import gang
from finetune_operator.observe import label, observation, projections


def job(nodes: int, *conditions: dict) -> projections.StageJob:
    return projections.stage_job(
        {
            "metadata": {"name": "j", "labels": {}},
            "spec": {"completions": nodes},
            "status": {"conditions": [{"status": "True", **c} for c in conditions]},
        }
    )


def pod(
    node: int, code: int | None = None, second: int = 0, reason: str = "Error", disrupted: bool = False, born: int = 0
):
    """A pod that ended with this code at this second of a minute, or runs."""
    began = {"startedAt": "2026-05-04T12:00:00Z"}
    end = {**began, "exitCode": code, "reason": reason, "finishedAt": f"2026-05-04T12:00:{second:02d}Z"}
    state = {"running": began} if code is None else {"terminated": end}
    target = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
    labels = {"batch.kubernetes.io/job-name": "j", label.COMPLETION_INDEX: str(node)}
    created = f"2026-05-04T11:00:{born:02d}Z"
    return projections.pod(
        {
            "metadata": {"name": f"j-{node}-{born}", "labels": labels, "creationTimestamp": created},
            "status": {
                "conditions": [target] if disrupted else [],
                "containerStatuses": [{"name": "finetune", "state": state}],
            },
        }
    )


def pending(node: int):
    return projections.pod({"metadata": {"name": f"j-{node}", "labels": {label.COMPLETION_INDEX: str(node)}}})


def of(*pods, conditions=()) -> gang.Gang:
    return gang.Gang(job(len(pods), *conditions), tuple(pods))


FAILED = {"type": "Failed", "reason": "BackoffLimitExceeded"}
COMPLETE = {"type": "Complete"}


@pytest.mark.parametrize(
    "pods, cause",
    [
        # who ended first
        ([pod(0, 1, second=9), pod(1, 1, second=8)], 1),
        ([pod(0, 1, second=8), pod(1, 1, second=9)], 0),
        ([pod(0, 134, second=20), pod(1, 1, second=8)], 1),
        # within one second: the kill, else the first pod
        ([pod(0, 1), pod(1, 137)], 1),
        ([pod(0, 1), pod(1, 1)], 0),
        # a kill at the end of the grace period is a consequence
        ([pod(0, 137, second=50), pod(1, 1, second=2)], 1),
        # stopped ones last, whenever they ended
        ([pod(0, 143, second=1), pod(1, 1, second=9)], 1),
        ([pod(0, 143, second=1), pod(1, 139, second=9)], 1),
        ([pod(0, 143, second=3), pod(1, 143, second=2)], 1),
        # whoever ended well did not fail
        ([pod(0, 1, second=9), pod(1, 0, second=1)], 0),
        # what names a cause comes first, whatever the clocks of two machines say
        *[([pod(0, 1, second=1), pod(1, code, second=3)], 1) for code in (2, 3, 4, 5)],
        ([pod(0, 1, second=1), pod(1, 137, second=3, reason="OOMKilled")], 1),
        ([pod(0, 3, second=5), pod(1, 137, second=3, reason="OOMKilled")], 1),
        # those that vanished or never ran tell nothing
        ([pod(0), pod(1, 1)], 1),
        ([None, pod(1, 1)], 1),
        ([pending(0), pod(1, 5)], 1),
    ],
)
def test_the_cause_is_distinguished_from_its_consequences(pods, cause) -> None:
    assert of(*pods).cause is pods[cause]


@pytest.mark.parametrize("pods", [[None, None], [pod(0), pending(1)]])
def test_a_job_may_have_no_pod_to_read(pods) -> None:
    assert of(*pods).cause is None


def test_work_has_begun_when_every_container_has_started() -> None:
    assert of(pod(0), pod(1)).begun
    assert of(pod(0), pod(1, 1)).begun
    assert not of(pod(0), pending(1)).begun
    assert not of(pod(0), None).begun


def test_the_newest_pod_of_each_number_counts() -> None:
    old, new, other = pod(0, 143, disrupted=True, born=1), pod(0, born=2), pod(1, born=1)
    world = observation.Observation(
        parent=None, spec=None, entry=None, jobs={}, pods=(new, other, old), servers={}, services={}, reading=None,
        refusals={},
        workloads=None, now=None, settings=None,
    )  # fmt: skip
    assert gang.of(world, job(3)).pods == (new, other, None)


def test_a_disruption_is_reported_for_several_pods_only() -> None:
    gone = pod(1, 143, disrupted=True)
    assert of(pod(0), pod(1)).disrupted is None
    assert of(pod(0), gone).disrupted == "pod j-1-0 was evicted (DeletionByTaintManager)"
    assert of(pod(0, 143, disrupted=True)).disrupted is None, "its Job replaces it"


def test_a_disruption_is_also_known_from_the_jobs_condition() -> None:
    verdict = {"type": "Failed", "reason": "PodFailurePolicy"}
    assert of(pod(0, 1), None, conditions=[verdict]).disrupted == "a pod was evicted"
    assert of(pod(0, 1), None, conditions=[FAILED]).disrupted is None


@pytest.mark.parametrize(
    "pods, verdict, known",
    [
        ([pod(0, 0), pod(1)], COMPLETE, True),
        ([pod(0), pod(1, 0)], COMPLETE, False),
        ([None, pod(1, 0)], COMPLETE, False),
        ([pod(0, 1), pod(1, 1)], FAILED, True),
        ([pod(0, 1), pod(1)], FAILED, False),
        ([pod(0, 1), None], FAILED, True),
        ([None, None], FAILED, False),
        ([pod(0, 143, disrupted=True)], FAILED, False),
    ],
)
def test_events_of_pods_may_come_after_those_of_their_job(pods, verdict, known) -> None:
    assert of(*pods, conditions=[verdict]).ends_known is known
