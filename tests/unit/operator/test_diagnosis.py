"""From what the kubelet and the scheduler say to a reason, words and an advice."""

import pytest

from finetune_api import outcome
from finetune_api.reasons import WAITING, Reason, Stage
from finetune_operator.decide import diagnosis
from finetune_operator.observe import projections


def pod(state: dict, **containers) -> projections.Pod:
    return projections.pod({"metadata": {"name": "p", "labels": {}}, "status": state | containers})


def waiting(reason: str, message: str = "") -> projections.Pod:
    return pod(
        {"containerStatuses": [{"name": "finetune", "state": {"waiting": {"reason": reason, "message": message}}}]}
    )


def ended(code: int, message: str = "", reason: str = "Error") -> projections.Pod:
    end = {"exitCode": code, "message": message, "reason": reason}
    return pod({"phase": "Failed", "containerStatuses": [{"name": "finetune", "state": {"terminated": end}}]})


def crashed(
    restarts: int, code: int, message: str, reason: str = "Error", container: str = "containerStatuses"
) -> projections.Pod:
    end = {"exitCode": code, "message": message, "reason": reason}
    state = {"name": "finetune", "restartCount": restarts, "lastState": {"terminated": end}}
    return pod({container: [state | {"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]})


def shown(stage: Stage, reason: Reason | None, message: str = "seen; do this") -> str:
    return outcome.Outcome(stage=stage, reason=reason, message=message).termination_message()


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing"])
def test_a_pod_that_is_on_its_way_has_no_problem(reason: str) -> None:
    assert diagnosis.not_started(waiting(reason), "") is None
    assert diagnosis.not_started(None, "") is None
    assert diagnosis.not_started(pod({"phase": "Pending"}), "") is None


@pytest.mark.parametrize(
    "seen, refusal, reason, words",
    [
        (
            None,
            'pods "p" is forbidden: exceeded quota: team, requested: pods=1,requests.nvidia.com/gpu=8, used: pods=5,'
            "requests.nvidia.com/gpu=12, limited: pods=5,requests.nvidia.com/gpu=16",
            Reason.QUOTA_EXCEEDED,
            "ResourceQuota team refuses the pod, which requests 1 of pods: 5 of 5 are in use; 8 of requests.nvidia.com/gpu: "
            "12 of 16 are in use. Free some,",
        ),
        (
            None,
            'pods "p" is forbidden: failed quota: team: must specify limits.cpu for: finetune; requests.cpu for: finetune',
            Reason.QUOTA_EXCEEDED,
            "ResourceQuota team refuses the pod: it must specify limits.cpu for: finetune; requests.cpu for: finetune. Set "
            "resources.requests",
        ),
        (
            None,
            'pods "p" is forbidden: maximum memory usage per Container is 1Gi, but limit is 32Gi',
            Reason.QUOTA_EXCEEDED,
            "a LimitRange of the namespace refuses the pod: maximum memory usage per Container is 1Gi, but limit is 32Gi. Change",
        ),
        (
            None,
            'pods "p" is forbidden: [minimum cpu usage per Pod is 2, but request is 1, cpu max limit to request ratio per Pod '
            "is 1, but provided ratio is 2.000000]",
            Reason.QUOTA_EXCEEDED,
            "the pod: minimum cpu usage per Pod is 2, but request is 1, cpu max limit to request ratio per Pod is 1, but",
        ),
        (
            None,
            'Pod "p" is invalid: spec.containers[0].resources.requests: Invalid value: "500m": must be less than or equal to '
            "cpu limit of 250m",
            Reason.QUOTA_EXCEEDED,
            "limits the cpu of a container to 250m, and the pod requests 500m. Set resources.limits",
        ),
        (None, 'pods "p" is forbidden: no PriorityClass with name x was found', Reason.POD_REFUSED, "PriorityClass"),
        (None, "violates PodSecurity", Reason.POD_REFUSED, "violates PodSecurity"),
        (waiting("ErrImagePull", "not found"), "", Reason.IMAGE_PULL_FAILED, "not found"),
        (waiting("ImagePullBackOff"), "", Reason.IMAGE_PULL_FAILED, "ImagePullBackOff"),
        (waiting("CreateContainerConfigError", 'secret "s3" not found'), "", Reason.CREDENTIALS_MISSING, 'secret "s3"'),
        (waiting("CreateContainerConfigError", 'configmap "run" not found'), "", Reason.POD_REFUSED, 'configmap "run"'),
        (waiting("RunContainerError", "no runtime"), "", Reason.POD_REFUSED, "no runtime"),
        (
            pod(
                {
                    "conditions": [
                        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1."}
                    ]
                }
            ),
            "",
            Reason.UNSCHEDULABLE,
            "0/1.",
        ),
        *(
            (
                pod(
                    {
                        "conditions": [
                            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": text}
                        ]
                    }
                ),
                "",
                reason,
                text,
            )
            for text, reason in (
                ('0/1 nodes are available: persistentvolumeclaim "models" not found.', Reason.VOLUME_UNAVAILABLE),
                (
                    "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
                    Reason.VOLUME_UNAVAILABLE,
                ),
                ("0/2 nodes are available: 2 node(s) had volume node affinity conflict.", Reason.VOLUME_UNAVAILABLE),
                (
                    "0/2 nodes are available: 1 Insufficient nvidia.com/gpu, 1 node(s) had volume node affinity conflict.",
                    Reason.UNSCHEDULABLE,
                ),
            )
        ),
    ],
)
def test_a_pod_that_does_not_start_is_diagnosed_and_waited_for(seen, refusal, reason, words) -> None:
    problem = diagnosis.not_started(seen, refusal)
    assert problem is not None
    assert problem.reason == reason
    assert words in problem.message
    assert not problem.ends
    assert reason in WAITING


@pytest.mark.parametrize(
    "end, reason, ends, words",
    [
        (ended(2, shown(Stage.TRAIN, Reason.MODEL_INVALID)), Reason.MODEL_INVALID, True, "seen; do this"),
        (ended(2, "ValueError: x"), Reason.TRAINER_ERROR, True, "ValueError: x"),
        (ended(3), Reason.TRAINER_OUT_OF_MEMORY, False, "out of memory"),
        (ended(3, shown(Stage.TRAIN, Reason.TRAINER_OUT_OF_MEMORY)), Reason.TRAINER_OUT_OF_MEMORY, False, "seen"),
        (ended(137, "", "OOMKilled"), Reason.TRAINER_OUT_OF_MEMORY, False, "memory limit"),
        (ended(4), Reason.LOSS_DIVERGED, True, "learningRate"),
        (ended(5), Reason.STORAGE_UNAVAILABLE, False, "storage.endpoint"),
        (ended(5, shown(Stage.TRAIN, Reason.STORAGE_UNAVAILABLE)), Reason.STORAGE_UNAVAILABLE, False, "seen"),
        (ended(1, "Traceback"), Reason.TRAINER_ERROR, False, "exit code 1 (Error); last lines: Traceback"),
        (ended(137), Reason.TRAINER_ERROR, False, "exit code 137"),
        (ended(143), Reason.TRAINER_ERROR, False, "exit code 143"),
        (ended(0, "no JSON"), Reason.TRAINER_ERROR, False, "exit code 0"),
        (ended(1, shown(Stage.TRAIN, None, "in its own words")), Reason.TRAINER_ERROR, False, "in its own words"),
        (None, Reason.TRAINER_ERROR, False, "train pod disappeared"),
        (pod({"phase": "Failed"}), Reason.TRAINER_ERROR, False, "train pod disappeared"),
    ],
)
def test_the_exit_codes_are_a_contract(end, reason, ends, words) -> None:
    problem = diagnosis.failed(Stage.TRAIN, end, "BackoffLimitExceeded")
    assert (problem.reason, problem.ends) == (reason, ends)
    assert words in problem.message


def test_the_last_lines_are_recorded_but_not_a_whole_log() -> None:
    problem = diagnosis.failed(Stage.TRAIN, ended(1, "x" * 4000), "")
    assert problem.log_tail == "x" * 1500
    assert len(problem.message) < 500


def test_a_server_may_still_come_up() -> None:
    assert diagnosis.server(None) is None
    assert diagnosis.server(waiting("ContainerCreating")) is None
    assert diagnosis.server(crashed(1, 1, "boom")) is None


def test_a_server_that_fell_over_three_times_does_not_come_up() -> None:
    problem = diagnosis.server(crashed(3, 1, "ValueError: no such flag"))
    assert problem is not None
    assert (problem.reason, problem.ends, problem.exit_code) == (Reason.SERVER_FAILED, True, 1)
    assert "no such flag" in problem.message
    oom = diagnosis.server(crashed(3, 137, "", "OOMKilled"))
    assert oom is not None
    assert "memory limit" in oom.message


def test_a_fetch_that_knows_why_ends_at_once_or_waits_for_storage() -> None:
    wrong = crashed(1, 2, shown(Stage.VERIFY, Reason.ADAPTER_INCOMPATIBLE), container="initContainerStatuses")
    away = crashed(9, 5, shown(Stage.VERIFY, Reason.STORAGE_UNAVAILABLE), container="initContainerStatuses")
    assert diagnosis.server(wrong).ends
    assert diagnosis.server(wrong).reason == Reason.ADAPTER_INCOMPATIBLE
    assert not diagnosis.server(away).ends
    assert diagnosis.server(away).reason == Reason.STORAGE_UNAVAILABLE
