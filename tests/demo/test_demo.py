"""The demo's own judgement: what a status means on the screen, what a machine lacks, what the chart is told."""

import json
from typing import Any

import pytest

from demo import install, kube, needs, place, progress, result
from toolbox import say


def job(phase: str = "Pending", generation: int = 1, observed: int = 1, **status: Any) -> progress.Job:
    conditions = [
        {"observedGeneration": observed, "message": "", **condition} for condition in status.pop("conditions", [])
    ]
    return {
        "metadata": {"name": "j", "namespace": "ml", "generation": generation},
        "status": {"phase": phase, "observedGeneration": observed, "conditions": conditions, **status},
    }


def true(kind: str, reason: str = "R", message: str = "") -> dict[str, str]:
    return {"type": kind, "status": "True", "reason": reason, "message": message}


@pytest.mark.parametrize(
    "conditions,expected",
    [
        ([], progress.End.RUNNING),
        ([true("Reconciling")], progress.End.RUNNING),
        ([true("Ready")], progress.End.SERVES),
        ([true("Complete")], progress.End.DONE),
        ([true("Failed")], progress.End.FAILED),
        ([true("Suspended")], progress.End.SUSPENDED),
        # an older revision still serves after the current one has failed
        ([true("Stalled"), {**true("Ready"), "status": "False"}], progress.End.FAILED),
    ],
)
def test_the_conditions_say_how_a_job_ended(conditions: list[dict[str, str]], expected: progress.End) -> None:
    assert progress.end(job(conditions=conditions)) is expected


def test_a_status_of_an_older_generation_ends_nothing() -> None:
    assert progress.end(job(generation=2, observed=1, conditions=[true("Ready")])) is progress.End.RUNNING


def test_a_job_without_status_is_pending() -> None:
    seen = progress.view({"metadata": {"generation": 1}})
    assert (seen.phase, seen.end, seen.line) == ("Pending", progress.End.RUNNING, "Pending")


def test_training_shows_percent_steps_loss_and_eta() -> None:
    reached = {"percent": 43, "step": 43, "totalSteps": 100, "loss": "0.71", "eta": "12m", "tokensPerSecond": 547}
    assert progress.view(job("Training", progress=reached)).line == (
        "Training    43%  step 43/100  loss 0.71  547 tokens/s  eta 12m"
    )


def test_an_evaluation_shows_its_percent_and_not_the_training_s_100() -> None:
    running = [{"type": "Reconciling", "status": "True", "message": "evaluate attempt 1 runs in pod p"}]
    views = [progress.view(job("Evaluating", progress={"percent": p}, conditions=running)) for p in (100, 40)]
    assert [view.percent for view in views] == [0, 40]
    assert [view.details for view in views] == [
        "evaluate attempt 1 runs in pod p",
        " 40%  evaluate attempt 1 runs in pod p",
    ]


def test_what_a_job_waits_for_is_reported() -> None:
    waiting = {"type": "Trained", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes have GPUs"}
    assert progress.view(job(conditions=[waiting])).trouble == "Unschedulable: 0/1 nodes have GPUs"


def test_a_failure_shows_the_condition_and_the_last_lines() -> None:
    text = progress.failure(
        job(
            conditions=[true("Failed", "LossDiverged", "lower the learning rate")],
            failure={"stage": "train", "attempt": 2, "message": "loss is nan", "logTail": "step 3\nstep 4\n"},
        )
    )
    assert text.splitlines()[:2] == ["LossDiverged: lower the learning rate", "loss is nan"]
    assert text.endswith("attempt 2:\n  | step 3\n  | step 4")


@pytest.mark.parametrize(
    "image,repository,tag,digest",
    [
        ("127.0.0.1:5050/finetune-operator:abc", "127.0.0.1:5050/finetune-operator", "abc", ""),
        ("registry.example/ml/op", "registry.example/ml/op", "", ""),
        ("localhost:5050/op", "localhost:5050/op", "", ""),
        ("localhost:5050/op@sha256:aa", "localhost:5050/op", "", "sha256:aa"),
        ("op:v1@sha256:aa", "op", "v1", "sha256:aa"),
    ],
)
def test_image_references_are_taken_apart(image: str, repository: str, tag: str, digest: str) -> None:
    assert install.reference(image) == {"repository": repository, "tag": tag, "digest": digest}


def test_an_image_is_pulled_ahead_by_a_job_that_a_restricted_namespace_admits() -> None:
    job = install.puller("127.0.0.1:5050/finetune-trainer:" + "a" * 16)
    assert job["metadata"]["name"] == "pull-finetune-trainer-" + "a" * 16
    assert job["spec"]["ttlSecondsAfterFinished"] == 0
    pod = job["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"].endswith(":" + "a" * 16)
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_documents_of_a_watch_are_separated() -> None:
    documents = [{"a": {"b": 1}}, {"c": []}]
    text = "".join(json.dumps(document, indent=4) + "\n" for document in documents)
    assert list(kube.documents(iter(text.splitlines(keepends=True)))) == documents


def machine(**given: Any) -> needs.Machine:
    known = {
        "system": "Linux",
        "root": True,
        "cores": 2,
        "memory": 20 * needs.GIB,
        "disk": 99 * needs.GIB,
        "warm": False,
    }
    return needs.Machine(**{**known, **given})


@pytest.mark.parametrize(
    "given,word",
    [
        ({"system": "Darwin"}, "KUBECONFIG"),
        ({"root": False}, "sudo make demo"),
        ({"memory": 4 * needs.GIB}, "memory"),
        ({"disk": 10 * needs.GIB}, "FINETUNE_CACHE"),
    ],
)
def test_what_a_machine_lacks_is_reported_with_what_to_do(given: dict[str, Any], word: str) -> None:
    (message,) = needs.missing_locally(machine(**given))
    assert word in message


def test_a_machine_that_has_all_lacks_nothing() -> None:
    assert needs.missing_locally(machine()) == []
    assert needs.missing_locally(machine(disk=10 * needs.GIB, warm=True)) == []


@pytest.mark.parametrize("given", [{"KUBECONFIG": "/k"}, {"REGISTRY": "r"}])
def test_half_of_an_existing_cluster_is_refused(monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    for name in ("KUBECONFIG", "REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    assert place.existing() is None
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(say.Problem, match="KUBECONFIG"):
        place.existing()


class Cluster(kube.Kube):
    """A cluster with a namespace of its user and one of the demo."""

    def get(self, kind: str, name: str, namespace: str = "") -> kube.Manifest | None:
        labels = {"mine": {}, "ours": {install.LABEL: "true"}}
        return {"metadata": {"name": name, "labels": labels[name]}} if name in labels else None


def test_namespaces_of_others_are_left_alone() -> None:
    cluster = Cluster("kubectl", "helm", "config")
    install.refuse_to_replace(cluster, "ours", "absent")
    with pytest.raises(say.Problem, match="namespace mine that the demo did not make"):
        install.refuse_to_replace(cluster, "ours", "mine")


def test_answers_stand_side_by_side() -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "Where is my parcel?"}]
    sample = {
        "messages": messages,
        "expected": "{}",
        "answers": {"Base": "I am sorry to hear that. " * 9, "Tuned": '{"a": 1}'},
    }
    text = result.side_by_side([sample])
    assert "asked     Where is my parcel?" in text
    first = next(line for line in text.splitlines() if line.startswith("  I am sorry"))
    assert first.endswith('| {"a": 1}')
    assert max(map(len, text.splitlines())) <= 100
