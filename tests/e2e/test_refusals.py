"""Mistakes of users: each job ends, or waits and continues automatically, with the right reason and advice."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo import install
from support import company
from support import site as sites
from support.site import BUCKET, NAMESPACE, Site, condition


def _s3(site: Site, **changes: Any) -> dict[str, Any]:
    return {**site.spec("s3://x/y")["storage"], **changes}


FULL = "open('/tmp/full', 'wb').write(bytes(100 << 20)); import os; os.sync()"
"""Fills more of a pod's disk than `disk` below may use."""


def jobs(site: Site, companys: dict[str, Any], shelved: str) -> dict[str, dict[str, Any]]:
    """Specs by name; all are applied at once, so that their pods need not wait for each other's tests."""
    good = site.upload_rows("refusals/good.jsonl", sites.chats(60))
    twelve = site.upload_rows("refusals/twelve.jsonl", sites.chats(12))
    empty = site.upload_rows("refusals/empty.jsonl", [])
    rows: list[Any] = list(sites.chats(60))
    rows[16] = '{"messages": [{"role": "user", "content": "never closed"'
    broken = site.upload_rows("refusals/broken.jsonl", rows)
    other = "wrong-credentials"
    site.kube.apply(
        install.secret(other, NAMESPACE, {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "no-such-key-0"})
    )
    spec = site.spec
    gate = [{"metric": "ExactMatch", "minimum": 0.99, "confidence": 0.5}, {"metric": "Loss", "maximum": 0.000001}]
    gpus = {"gpus": 1, "gpuType": "nvidia-l4"}
    server = {"resources": {"gpus": 0, "requests": {"cpu": "100m", "memory": "1Gi"}}}
    return {
        "bucket": spec("s3://no-such-bucket-here/train.jsonl"),
        "output": spec(good, storage=_s3(site, output="s3://no-such-bucket-here/output")),
        "object": spec(f"s3://{BUCKET}/refusals/no-such-file.jsonl"),
        "credentials": spec(good, storage=_s3(site, credentialsSecret=other)),
        "secret": spec(good, storage=_s3(site, credentialsSecret="no-such-secret")),
        "endpoint": spec(good, storage=_s3(site, endpoint="http://127.0.0.1:1")),
        "model": spec(good, baseModel={"name": "no-such-model"}),
        "weights": spec(good, baseModel={"source": f"s3://{BUCKET}/models/no-such-model"}),
        "empty": spec(empty),
        "broken": spec(broken),
        "twelve-enforced": spec(twelve, intent={"advice": "Enforce"}),
        "twelve-warned": spec(shelved, storage=companys, deployment={**server, "image": "127.0.0.1:1/no/such-image:1"}),
        "disk": spec(
            good,
            training={"maxSteps": 100_000, "batchSize": 2, "retries": 0},
            resources={**spec(good)["resources"], "limits": {"ephemeralStorage": "64Mi"}},
        ),
        "gpu-unknown": spec(good, resources={"gpus": 1, "gpuType": "nvidia-b9000"}),
        "gpu-absent": spec(good, resources=gpus),
        "gpu-many": spec(good, resources={"gpus": 8}),
        "gpu-invisible": spec(
            good,
            intent={"advice": "Ignore"},  # no baseline first
            resources={"gpus": 1, "requests": {"cpu": "250m", "memory": "2Gi"}},
        ),
        "gate": spec(
            good,
            intent={"advice": "Ignore"},  # no baseline first
            evaluation={"maximumExamples": 4, "generation": {"maxNewTokens": 8}, "gates": gate},
        ),
        "memory": spec(good, resources={"gpus": 0, "requests": {"cpu": "250m", "memory": "128Mi"}}),
        "deadline": spec(
            good, resources={**spec(good)["resources"], "nodeSelector": {"no": "such-node"}}, activeDeadlineSeconds=200
        ),
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("company")


@pytest.fixture(scope="module")
def applied(site: Site, place: Path) -> Iterator[Site]:
    with company.storage(site, place) as storage:
        for name, spec in jobs(site, storage, company.shelve(site, place / "shelf", sites.chats(12))).items():
            site.apply(name, spec)
        yield site


def test_a_missing_bundle_of_authorities_is_named_and_waited_for(applied: Site, place: Path) -> None:
    job = applied.until_condition("twelve-warned", "PreflightPassed", "Unknown", "CredentialsMissing", seconds=120)
    assert job["status"]["waiting"]["reason"] == "CredentialsMissing"
    for word in (company.BUNDLE, "storage.caBundle"):
        assert word in condition(job, "Ready")["message"], condition(job, "Ready")["message"]
    company.publish(applied, place)


def test_a_pod_that_fills_its_disk_ends_in_the_kubelets_words(applied: Site) -> None:
    job = applied.until_condition("disk", "Trained", "Unknown", "Running", seconds=200)
    [pod] = applied.pods("disk", stage="train")
    where = ("exec", pod["metadata"]["name"], "--namespace", NAMESPACE, "--container", "finetune", "--")
    applied.kube.run(*where, "python", "-c", FULL)
    job = applied.until_condition("disk", "Failed", seconds=200)
    failed = condition(job, "Failed")
    assert failed["reason"] == "DiskExceeded", failed
    assert "Pod ephemeral local storage usage exceeds the total limit of containers 64Mi" in failed["message"]
    assert "resources.requests.ephemeralStorage" in failed["message"]
    applied.delete("disk")


WAITS = [
    ("secret", "PreflightPassed", "CredentialsMissing", ["no-such-secret"]),
    ("endpoint", "PreflightPassed", "StorageUnavailable", ["127.0.0.1:1"]),
    ("model", "Accepted", "BaseModelNotFound", ["no-such-model", "kubectl get basemodels"]),
    ("gpu-unknown", "Accepted", "Unschedulable", ["nvidia-b9000", "nvidia-l4"]),
    ("gpu-absent", "Trained", "Unschedulable", ["node", "gpuType"]),
    ("gpu-many", "Trained", "Unschedulable", ["nvidia.com/gpu"]),
]


CONTINUE = ("secret", "model")
"""What these wait for appears in a later test."""


@pytest.mark.parametrize(("name", "kind", "reason", "words"), WAITS, ids=[row[0] for row in WAITS])
def test_it_waits_and_says_for_what(applied: Site, name: str, kind: str, reason: str, words: list[str]) -> None:
    def waits(job: sites.Job) -> bool:
        return condition(job, kind).get("reason") == reason

    job = applied.until(name, waits, f"waiting for {reason}", 300)
    assert condition(job, "Reconciling")["status"] == "True"
    assert condition(job, "Stalled")["status"] == "False"
    assert not condition(job, "Failed")
    for word in words:
        assert word in condition(job, kind)["message"], condition(job, kind)["message"]
    if name not in CONTINUE:
        applied.delete(name)  # a preflight that is repeated for ever takes time from all others


ENDS = [
    ("bucket", "BucketNotFound", ["no-such-bucket-here"]),
    ("output", "BucketNotFound", ["no-such-bucket-here", "output"]),
    ("object", "DatasetNotFound", ["no-such-file.jsonl"]),
    ("credentials", "S3AccessDenied", ["credentials"]),
    ("weights", "ModelInvalid", ["no-such-model"]),
    ("empty", "DatasetInvalid", ["empty.jsonl"]),
    ("broken", "DatasetInvalid", ["broken.jsonl:17"]),
    ("twelve-enforced", "TooFewExamples", ["20", "examples"]),
    ("gpu-invisible", "GpuNotVisible", ["granted 1", "runtimeClassName"]),
    ("gate", "EvaluationBelowGate", ["ExactMatch", "0.99"]),
    ("memory", "TrainerOutOfMemory", ["memory"]),
    ("deadline", "DeadlineExceeded", ["200", "Unschedulable"]),
]


@pytest.mark.parametrize(("name", "reason", "words"), ENDS, ids=[row[0] for row in ENDS])
def test_it_ends_with_a_reason_and_says_what_to_do(applied: Site, name: str, reason: str, words: list[str]) -> None:
    job = applied.until_condition(name, "Failed", seconds=400)
    failed = condition(job, "Failed")
    assert failed["reason"] == reason, failed
    assert condition(job, "Stalled")["status"] == "True"
    assert condition(job, "Ready")["status"] == "False"
    assert job["status"]["phase"] == "Failed"
    for word in words:
        assert word in failed["message"], failed["message"]


def test_twelve_examples_on_a_volume_are_only_reported_when_advice_is_warn(applied: Site) -> None:
    """With data on a claim, and a store whose certificate is of a company's own authority."""
    job = applied.until_condition("twelve-warned", "Trained", seconds=300)
    assert job["status"]["preflight"]["verdict"] == "NotRecommended"
    assert any("example" in sentence for sentence in job["status"]["preflight"]["advice"])


def test_an_image_that_cannot_be_pulled_is_named_and_another_one_fixes_it(applied: Site) -> None:
    name = "twelve-warned"
    job = applied.until(
        name, lambda j: condition(j, "Deployed").get("reason") == "ImagePullFailed", "refused by the registry", 300
    )
    assert "such-image" in condition(job, "Deployed")["message"]
    assert condition(job, "Stalled")["status"] == "False"
    applied.apply(name, {**job["spec"], "deployment": {"enabled": False}})
    applied.until_condition(name, "Complete", seconds=60)
    assert applied.kube.items("deployments", f"finetune.dev/job={name}", NAMESPACE) == []


def test_an_enforced_advice_gives_way_to_an_edit_of_its_threshold(applied: Site) -> None:
    name = "twelve-enforced"
    job = applied.until_condition(name, "Failed", seconds=300)
    dataset = {**job["spec"]["dataset"], "minimumExamples": 5}
    applied.apply(name, {**job["spec"], "dataset": dataset})
    going = applied.until_condition(name, "PreflightPassed", seconds=200)
    assert going["status"]["revision"] == job["status"]["revision"]
    applied.until(name, lambda _: bool(applied.pods(name, stage="train")), "training", 60)
    applied.delete(name)


def test_the_job_continues_when_a_missing_secret_and_a_missing_model_appear(applied: Site) -> None:
    keys = {"AWS_ACCESS_KEY_ID": applied.store.access_key, "AWS_SECRET_ACCESS_KEY": applied.store.secret_key}
    applied.kube.apply(install.secret("no-such-secret", NAMESPACE, keys))
    applied.kube.apply(
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "BaseModel",
            "metadata": {"name": "no-such-model"},
            "spec": {"source": f"s3://{BUCKET}/models/{sites.MODEL}"},
        }
    )
    for name in CONTINUE:
        applied.until_condition(name, "PreflightPassed", seconds=120)
        applied.delete(name)
