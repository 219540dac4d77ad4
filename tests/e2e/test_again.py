"""A job that a GitOps tool pruned and applied again: what it left in S3 saves the training while the data are the same.

Changed data are trained on again: tests/trainer/test_again.py. The job is evaluated by a vLLM server beside the evaluation first,
and in process then: both measure the same.
"""

import json
from typing import Any

import pytest

from support import site as sites
from support.site import BUCKET, NAMESPACE, Site

NAME = "pruned"


def completed(site: Site, data: str, engine: str) -> sites.Job:
    evaluation = {
        "engine": engine,
        "maximumExamples": 8,
        "generation": {"maxNewTokens": 8},
        "consistency": {"samples": 2, "maximumExamples": 2},
        "forgetting": {"maximumQuestions": 16},  # by default a server is asked more than our own engine
        "gates": [{"metric": "Loss", "over": "Base", "confidence": 0.5}],
        "resources": {"gpus": 0, "requests": {"cpu": "250m", "memory": "3Gi"}},
    }
    site.apply(NAME, site.spec(data, evaluation=evaluation))
    return site.until_condition(NAME, "Complete", seconds=300)


def results(site: Site, job: sites.Job) -> dict[str, Any]:
    """results.json of the job's evaluation."""
    folder = f"s3://{BUCKET}/output/{NAMESPACE}/{NAME}/{job['status']['revision']}/evaluation"
    found: dict[str, Any] = json.loads(site.objects.read(f"{folder}/{job['status']['evaluationHash']}/results.json"))
    return found


def pruned(site: Site) -> None:
    patience = f"--timeout={60 + sites.PATIENCE}s"
    site.kube.run("delete", "finetunejob", NAME, "--namespace", NAMESPACE, patience, timeout=None)


def trained(site: Site, job: sites.Job) -> bool:
    """Whether the job's training pod made steps."""
    [pod] = site.pods(NAME, stage="train", uid=job["metadata"]["uid"])
    return '"message": "step"' in site.logs(pod["metadata"]["name"])


def test_unchanged_data_are_not_trained_on_again(site: Site) -> None:
    data = site.upload_rows("pruned/train.jsonl", sites.chats(60))
    first = completed(site, data, "Server")
    assert trained(site, first)
    assert_a_server_answered(site, first)
    pruned(site)
    left = site.objects.names(f"s3://{BUCKET}/output/{NAMESPACE}/{NAME}/")
    assert any(name.endswith("adapter_model.safetensors") for name in left)
    assert any(name.endswith("report.html") for name in left)

    second = completed(site, data, "InProcess")
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    assert second["status"]["artifacts"]["adapter"] == first["status"]["artifacts"]["adapter"]
    assert not trained(site, second)
    assert_the_same_was_measured(results(site, first), results(site, second))
    site.delete(NAME)


def assert_a_server_answered(site: Site, job: sites.Job) -> None:
    """In the evaluation's pod; it ended by a signal, after the stage."""
    [pod] = site.pods(NAME, stage="evaluate", uid=job["metadata"]["uid"])
    found = {one["name"]: one for one in pod["status"]["initContainerStatuses"]}
    assert list(found) == ["fetch", "server"]
    assert "terminated" in found["server"]["state"]
    assert found["server"]["restartCount"] == 0
    assert job["status"].get("failure") is None


def assert_the_same_was_measured(served: dict[str, Any], own: dict[str, Any]) -> None:
    assert (served["engine"], own["engine"]) == ("Server", "InProcess")
    assert served["evaluation"]["passed"] is own["evaluation"]["passed"] is True
    verdicts = [[gate["passed"] for gate in one["evaluation"]["gates"]] for one in (served, own)]
    assert verdicts[0] == verdicts[1]
    values = {(one["metric"], one["contender"]): one["value"] for one in own["values"]}
    losses = [one for one in served["values"] if one["metric"] in ("Loss", "Forgetting")]
    assert {one["contender"] for one in losses} >= {"Base", "Tuned"}
    for one in losses:
        # what rounding to bfloat16 explains
        assert one["value"] == pytest.approx(values[one["metric"], one["contender"]], abs=0.05), one
