"""Training on two nodes: two pods of one attempt, real processes that find each other by name; killed, evicted, and as exact."""

import json
import time

import pytest

from finetune_api import run
from support import site as sites
from support.site import Site, condition

INDEX = "batch.kubernetes.io/job-completion-index"
TRAINING = {
    "maxSteps": 300,
    "batchSize": 4,
    "learningRate": 0.001,
    "lora": {"rank": 8},
    "checkpoints": {"everyMinutes": 0.03, "keep": 2},
    "earlyStopping": {"patience": 100},
}


def spec(site: Site) -> dict:
    data = site.upload_rows("nodes/train.jsonl", sites.chats(160))
    resources = {"gpus": 0, "nodes": 2, "requests": {"cpu": "250m", "memory": "2Gi"}}
    return site.spec(data, training=TRAINING, resources=resources)


def both(site: Site, name: str, attempt: int) -> list[dict]:
    """The two pods of an attempt by their number, once both run."""
    end = time.monotonic() + 180 + sites.PATIENCE
    while time.monotonic() < end:
        pods = site.pods(name, stage="train", attempt=str(attempt))
        pods.sort(key=lambda pod: pod["metadata"]["labels"][INDEX])
        if len(pods) == 2 and all(pod["status"]["phase"] == "Running" for pod in pods):
            return pods
        time.sleep(0.3)
    raise AssertionError(f"{name}: two pods of attempt {attempt} never ran: {site.job(name).get('status')}")


def connections(pod: dict) -> set[tuple[str, int]]:
    """Where a training pod's processes are connected to: (IPv4 address, port), from the kernel's own table."""
    found = set()
    table = sites.processes(pod["metadata"]["uid"], "train")[0] / "net"
    for line in [line for name in ("tcp", "tcp6") for line in (table / name).read_text().splitlines()[1:]]:
        _, _, remote, state, *_ = line.split()
        address, port = remote.split(":")
        if state == "01":  # established; an IPv4 address is the end of its IPv6 form
            found.add((".".join(str(byte) for byte in reversed(bytes.fromhex(address[-8:]))), int(port, 16)))
    return found


def weights(site: Site, job: sites.Job) -> str:
    """The hash of a job's trained tensors."""
    manifest = json.loads(site.objects.read(f"{job['status']['artifacts']['adapter']['uri']}/manifest.json"))
    return next(file["sha256"] for file in manifest["files"] if file["path"] == "adapter_model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(site: Site) -> sites.Job:
    """A job that trained on two nodes, with what its pods were seen to do."""
    name = "two-nodes"
    site.apply(name, spec(site))
    pods = both(site, name, 1)
    seen: dict[str, dict] = {}

    def watched(job: sites.Job) -> bool:
        seen.update({pod["metadata"]["uid"]: pod for pod in site.pods(name, stage="train")})
        return condition(job, "Trained").get("status") == "True" or condition(job, "Failed").get("status") == "True"

    site.until(name, lambda job: (job["status"].get("progress") or {}).get("step", 0) > 20, "training", 180)
    talks = connections(pods[1]) if site.local else set()
    site.until(name, watched, "trained", 400)
    done = site.until_condition(name, "Complete", seconds=120)
    return {**done, "pods": list(seen.values()), "first": pods[0], "talks": talks}


def test_two_pods_train_one_adapter_in_one_attempt(site: Site, undisturbed: sites.Job) -> None:
    assert condition(undisturbed, "Trained")["message"].startswith(f"{TRAINING['maxSteps']} steps, loss ")
    assert [job["spec"]["completions"] for job in site.jobs("two-nodes", stage="train")] == [2]
    assert undisturbed["status"].get("failure") is None
    if site.local:
        assert (undisturbed["first"]["status"]["podIP"], run.RENDEZVOUS_PORT) in undisturbed["talks"]


def test_only_the_first_pod_answers(undisturbed: sites.Job) -> None:
    answers = {}
    for pod in undisturbed["pods"]:
        for container in pod["status"].get("containerStatuses", []):
            message = container["state"].get("terminated", {}).get("message", "")
            answers[pod["metadata"]["labels"][INDEX]] = '"training"' in message
    assert answers["0"]
    assert not answers.get("1", False)


def test_the_headless_service_is_deleted_when_training_is_done(site: Site, undisturbed: sites.Job) -> None:
    assert [
        s["metadata"]["name"] for s in site.kube.items("services", "finetune.dev/job=two-nodes", sites.NAMESPACE)
    ] == []


def test_a_run_whose_pods_are_killed_and_evicted_ends_with_the_very_same_weights(
    site: Site, undisturbed: sites.Job
) -> None:
    name = "two-nodes-hit"
    site.apply(name, spec(site))

    # SIGKILL to the second pod: it is named, not the first one that lost its peer; both resume
    pods = both(site, name, 1)
    site.until(name, lambda job: checkpoint_step(job) > 0, "checkpointed", 180)
    if site.local:
        sites.kill(pods[1]["metadata"]["uid"])
        second = site.until(name, lambda job: job["status"].get("attempt") == 2, "in its second attempt", 200)
        failure = second["status"]["failure"]
        assert (failure["exitCode"], failure["attempt"]) == (137, 1)
        assert failure["message"].startswith(f"pod {pods[1]['metadata']['name']}: ")
        pods = both(site, name, 2)
        step = checkpoint_step(second)
        site.until(name, lambda job: checkpoint_step(job) > step, "checkpointed again", 180)

    # eviction of the first pod: another attempt, and nobody's failure
    before = site.job(name)["status"]
    site.evict(pods[0]["metadata"]["name"])
    after = site.until(name, lambda job: job["status"]["attempt"] > before["attempt"], "in its next attempt", 60)
    assert after["status"]["failedAttempts"] == before["failedAttempts"]
    assert after["status"].get("failure") == before.get("failure")
    both(site, name, after["status"]["attempt"])

    done = site.until_condition(name, "Complete", seconds=500)
    assert "resumed from step" in condition(done, "Trained")["message"]
    assert done["status"]["revision"] == undisturbed["status"]["revision"]
    assert weights(site, done) == weights(site, undisturbed)


def checkpoint_step(job: sites.Job) -> int:
    return int((job.get("status", {}).get("checkpoint") or {}).get("step") or 0)
