"""The node of a training: drained, and unreachable. On the real node, whose kubelet is stopped like that of a lost node."""

import contextlib
import datetime
import json
import os
import signal
import threading
from collections.abc import Iterator

from localcluster import process
from support import site as sites
from support.site import Site, condition
from toolbox import cache

NAME = "machines"
PAPER = "paper"
GONE = ("node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready")
TRAINING = {
    "maxSteps": 100_000,
    "batchSize": 2,
    "learningRate": 0.001,
    "lora": {"rank": 8},
    "checkpoints": {"everyMinutes": 0.03, "keep": 2},
    "earlyStopping": {"patience": 100},
    "retries": 0,
}
"""Longer than the test, and no failure is forgiven: what counts as one ends the job."""


@contextlib.contextmanager
def a_node_that_is_well(site: Site) -> Iterator[None]:
    """A Node of paper. Where all nodes are lost, Kubernetes takes no pods away: it is itself that may be cut off then."""
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": PAPER}, "spec": {"unschedulable": True}}
    site.kube.run("create", "-f", "-", stdin=json.dumps(node))
    over = threading.Event()

    def beat() -> None:
        while not over.wait(5):
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
            ready = {"type": "Ready", "status": "True", "reason": "Paper", "message": "it is of paper"}
            body = {"status": {"conditions": [ready | {"lastHeartbeatTime": now, "lastTransitionTime": now}]}}
            words = ("patch", "node", PAPER, "--subresource=status", "--type=merge", "-p", json.dumps(body))
            site.kube.run(*words, check=False)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        site.kube.run("delete", "node", PAPER)


def programs() -> dict[str, process.Record]:
    return process.load(cache.root() / "clusters" / sites.NAME / "processes")


@contextlib.contextmanager
def stopped_kubelet() -> Iterator[None]:
    kubelet = programs()["kubelet"]
    assert process.alive(kubelet)
    os.kill(kubelet.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(kubelet.pid, signal.SIGCONT)


def at_work(site: Site, besides: str = "") -> dict:
    """The training pod, once it runs and has saved another checkpoint than the job knows of now."""
    before = checkpoint_step(site.job(NAME))
    site.until(NAME, lambda job: checkpoint_step(job) > before, "checkpointed", 180)
    [pod] = [p for p in site.pods(NAME, stage="train") if p["status"]["phase"] == "Running"]
    assert pod["metadata"]["uid"] != besides
    return pod


def checkpoint_step(job: sites.Job) -> int:
    return int((job.get("status", {}).get("checkpoint") or {}).get("step") or 0)


def alive(job: sites.Job) -> bool:
    """Whether its status does not report an unreachable node."""
    return "unreachable" not in condition(job, "Trained").get("message", "")


def says(reason: str, words: str = ""):
    def holds(job: sites.Job) -> bool:
        found = condition(job, "Trained")
        return found.get("reason") == reason and words in found.get("message", "")

    return holds


def test_a_training_survives_the_drain_and_the_loss_of_its_node(site: Site) -> None:
    data = site.upload_rows("machines/train.jsonl", sites.chats(160))
    leaves = [{"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5} for key in GONE]
    resources = {"gpus": 0, "requests": {"cpu": "250m", "memory": "2Gi"}, "tolerations": leaves}
    site.apply(NAME, site.spec(data, training=TRAINING, resources=resources))
    pod = at_work(site)

    # drained: no other node takes it, so it waits until this one may be used again
    site.kube.run("cordon", pod["spec"]["nodeName"])
    try:
        site.evict(pod["metadata"]["name"])
        waits = says("Unschedulable", "unschedulable")
        job = site.until(NAME, lambda job: waits(job) or not alive(job), "waiting for a node", 90)
        assert alive(job), "a drained node was taken for an unreachable one"
    finally:
        site.kube.run("uncordon", pod["spec"]["nodeName"])
    second = at_work(site, besides=pod["metadata"]["uid"])
    assert '"message": "resumed"' in site.logs(second["metadata"]["name"])

    # silent: said at once, taken away when its tolerations end, and not doubled while nobody knows whether it still works
    if site.local:
        with a_node_that_is_well(site):
            with stopped_kubelet():
                site.until(NAME, says("Disrupted", "is unreachable"), "known to be unreachable", 120)
                site.until(NAME, says("Disrupted", "(DeletionByTaintManager"), "marked for deletion", 90)
                assert [p["metadata"]["uid"] for p in site.pods(NAME, stage="train")] == [second["metadata"]["uid"]]
            site.until(NAME, says("Running"), "at work again", 120)
            third = at_work(site, besides=second["metadata"]["uid"])
        assert '"message": "resumed"' in site.logs(third["metadata"]["name"])
    state = site.job(NAME)["status"]
    assert (state["attempt"], state["failedAttempts"], state.get("failure")) == (1, 0, None)
    assert len(site.jobs(NAME, stage="train")) == 1
    site.delete(NAME)
