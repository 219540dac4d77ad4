"""From an earlier commit's CRDs, chart and images to those of this checkout, while a job trains and another one serves.

Running work continues: an upgrade is no reason to train again, to serve from another pod, or to count an attempt. It is the
last one of this folder, since it takes all jobs and the operator of the other tests away first.
"""

import json
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from demo import child, install
from support import site as sites
from support.site import NAMESPACE, Site, condition
from toolbox import cache

EARLIER = "07b8b55"
"""A commit whose chart and images people may have installed: before baselines, comparisons with a prompt and evidence."""
CRDS = ("finetunejobs.finetune.dev", "basemodels.finetune.dev")
TRAINS, SERVES = "crossing", "standing"
LONG = {
    "maxSteps": 3000,
    "batchSize": 2,
    "learningRate": 0.001,
    "lora": {"rank": 8},
    "checkpoints": {"everyMinutes": 60, "keep": 1},
    "earlyStopping": {"patience": 100},
}
EVALUATION = {"maximumExamples": 8, "generation": {"maxNewTokens": 8}, "gates": []}
"""With fields that the earlier commit has, and no others."""


def checkout(folder: Path) -> Path:
    """The files of the earlier commit."""
    packed = folder / "earlier.tar"
    words = ["git", "-C", str(cache.REPOSITORY), "archive", f"--output={packed}", EARLIER]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(
            f"an upgrade begins at commit {EARLIER}, which this checkout does not hold: {done.stderr.strip()}\n"
            "Fetch its history (git fetch --unshallow), or leave this file out (--ignore=tests/e2e/test_upgrade.py)."
        )
    with tarfile.open(packed) as files:
        files.extractall(folder / "earlier", filter="data")
    return folder / "earlier"


def images(site: Site, earlier: Path) -> dict[str, str]:
    """The earlier commit's images, built by its own tool; the server is this checkout's, vLLM is not ours to upgrade."""
    registry = site.images["operator"].rpartition("/finetune-operator")[0]
    tool = earlier / "hack" / "images"
    words = ("build", "operator", "fetch", "trainer", "--registry", registry, "--json")
    return site.images | json.loads(child.tool(tool, *words, python=sys.executable))


def values(site: Site, of: dict[str, str]) -> dict[str, Any]:
    chosen = install.values(of, "s3://unused/model")
    chosen["catalogue"] = {sites.MODEL: {"source": f"s3://{sites.BUCKET}/models/{sites.MODEL}", "family": "llama"}}
    return chosen


def helm(site: Site, chart: Path, chosen: dict[str, Any]) -> None:
    site.kube.run_helm(
        "upgrade", "--install", install.RELEASE, str(chart), "--namespace", install.SYSTEM,
        "--values", "-", "--wait", "--timeout", "5m", "--skip-crds",
        stdin=json.dumps(chosen),
    )  # fmt: skip


def crds(site: Site, chart: Path) -> None:
    """As the chart's README says for an upgrade."""
    site.kube.run("apply", "--server-side", "--force-conflicts", "-f", str(chart / "crds"))
    site.kube.run("wait", "--for=condition=Established", "--timeout=60s", *(f"crd/{name}" for name in CRDS))


@pytest.fixture(scope="module")
def earlier(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The same site with everything of the earlier commit, and nothing of this one."""
    files = checkout(tmp_path_factory.mktemp("earlier"))
    built = images(site, files)
    site.kube.run("delete", "finetunejobs", "--all", "--all-namespaces", "--wait=false")
    site.kube.run_helm("uninstall", install.RELEASE, "--namespace", install.SYSTEM, "--wait")
    site.kube.run("delete", "crd", *CRDS, "--timeout=120s")
    chart = files / "charts" / "finetune-operator"
    crds(site, chart)
    helm(site, chart, values(site, built))
    return site


def running(site: Site, name: str, **labels: str) -> dict[str, int]:
    """uid -> restarts of a job's pods that are at work."""
    found = [pod for pod in site.pods(name, **labels) if pod["status"]["phase"] == "Running"]
    return {pod["metadata"]["uid"]: sum(c["restartCount"] for c in pod["status"]["containerStatuses"]) for pod in found}


def step(job: sites.Job) -> int:
    return int((job.get("status", {}).get("progress") or {}).get("step") or 0)


@pytest.fixture(scope="module")
def crossed(earlier: Site) -> dict[str, Any]:
    """The upgrade, in the middle of a training and beside a server; what ran before it."""
    site = earlier
    data = site.upload_rows("upgrade/train.jsonl", sites.chats(160))
    server = {"gpus": 0, "requests": {"cpu": "250m", "memory": "3Gi"}}
    serving = site.spec(
        data, evaluation=EVALUATION, deployment={"resources": server, "extraArgs": ["--max-model-len=256"]}
    )
    site.apply(SERVES, serving)
    site.until_condition(SERVES, "Ready", seconds=400)
    site.apply(TRAINS, site.spec(data, training=LONG, evaluation=EVALUATION))
    site.until(TRAINS, lambda job: step(job) > 20, "training", 240)
    before = {
        "server": running(site, SERVES),
        "training": running(site, TRAINS, stage="train"),
        "jobs": {job["metadata"]["uid"] for name in (TRAINS, SERVES) for job in site.jobs(name)},
        "served": site.job(SERVES)["status"],
        "trained": site.job(TRAINS)["status"],
    }
    assert len(before["server"]) == len(before["training"]) == 1
    chart = install.CHART
    crds(site, chart)
    assert running(site, TRAINS, stage="train") == before["training"], "new CRDs alone are no reason"
    helm(site, chart, values(site, site.images))
    # The earlier trainer writes its progress to a ConfigMap, which the new operator does not read: it waits for the pod's end.
    return before


def test_the_training_pod_does_not_notice(site: Site, crossed: dict[str, Any]) -> None:
    job = site.job(TRAINS)
    assert running(site, TRAINS, stage="train") == crossed["training"]
    assert job["status"]["revision"] == crossed["trained"]["revision"]
    assert job["status"]["attempt"] == 1
    assert job["metadata"]["generation"] == 1


def left(site: Site, kind: str) -> set[str]:
    """Names of what operators made for jobs."""
    return {one["metadata"]["name"] for one in site.kube.items(kind, "finetune.dev/uid", NAMESPACE)}


def test_what_the_earlier_operator_left_is_gone_but_for_what_its_pods_need(site: Site, crossed: dict[str, Any]) -> None:
    assert left(site, "roles") == left(site, "rolebindings") == set()
    for name in (TRAINS, SERVES):
        assert f"{name}-trainer" in left(site, "serviceaccounts")
        assert f"{name}-{site.job(name)['status']['revision']}-run" in left(site, "configmaps")
    assert not [name for name in left(site, "configmaps") if name.endswith("-progress")]
    hooks = site.kube.items("clusterroles", "app.kubernetes.io/component=cleanup")
    assert hooks == [], "the rights of the clean-up are gone with it"


def test_the_server_does_not_notice(site: Site, crossed: dict[str, Any]) -> None:
    time.sleep(10)  # a rollout would have begun
    job = site.job(SERVES)
    assert running(site, SERVES) == crossed["server"]
    assert condition(job, "Ready")["status"] == "True"
    assert condition(job, "Ready")["lastTransitionTime"] == ready_since(crossed["served"]), (
        "it was not Ready in between"
    )
    assert job["status"]["revision"] == crossed["served"]["revision"]
    assert job["status"]["deployment"]["release"] == crossed["served"]["deployment"]["release"]


def ready_since(status: dict[str, Any]) -> str:
    return next(str(c["lastTransitionTime"]) for c in status["conditions"] if c["type"] == "Ready")


def test_nothing_is_done_a_second_time_and_the_job_completes(site: Site, crossed: dict[str, Any]) -> None:
    done = site.until_condition(TRAINS, "Complete", seconds=500)
    stages = Counter(job["metadata"]["labels"]["finetune.dev/stage"] for job in site.jobs(TRAINS))
    assert stages == {"preflight": 1, "train": 1, "evaluate": 1}
    assert "resumed" not in condition(done, "Trained")["message"]
    here = {job["metadata"]["uid"] for name in (TRAINS, SERVES) for job in site.jobs(name)}
    assert crossed["jobs"] <= here
    assert len(here - crossed["jobs"]) == 1, "the evaluation, and nothing else"


def test_what_the_earlier_operator_stored_is_valid_and_is_edited_as_before(site: Site, crossed: dict[str, Any]) -> None:
    """A new default or rule must not make an old object unusable."""
    path = f"/apis/finetune.dev/v1alpha1/namespaces/{NAMESPACE}/finetunejobs/{SERVES}?dryRun=All&fieldValidation=Strict"
    stored = site.job(SERVES)
    site.kube.run("replace", "--raw", path, "-f", "-", stdin=json.dumps(stored))
    patch = json.dumps({"spec": {"deployment": {"replicas": 1}}})
    where = ("--namespace", NAMESPACE, "--type=merge", "--patch", patch, "--dry-run=server")
    site.kube.run("patch", "finetunejob", SERVES, *where)


def test_helm_test_passes_on_what_was_upgraded(site: Site, crossed: dict[str, Any]) -> None:
    shown = site.kube.run_helm("test", install.RELEASE, "--namespace", install.SYSTEM, "--timeout", "3m")
    assert "Phase:          Succeeded" in shown, shown
