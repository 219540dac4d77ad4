"""Jobs in a queue, on a real API server with its own Job controller. Kueue itself is played by `support.queue`.

What is real: `suspend` and what the Job controller makes of it, who owns which field of a Job, the rights of the chart, a watch
of Workloads whose definition comes later than the operator.
"""

import datetime
import json
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import kubernetes.client
import pytest

from finetune_operator.observe import label
from flow import world
from support import audit, controlplane, installed, manifests, queue
from support.installed import eventually

pytestmark = pytest.mark.cluster

RELEASE = "queued-finetune-operator"
NAME = world.NAME
SPEC = {**world.TEAM, "spec.deployment.enabled": False, "spec.activeDeadlineSeconds": 3600}


class Scene(installed.Stage):
    """A namespace with LocalQueue team-a, which lets nobody in so far."""

    def __init__(self, client: kubernetes.client.ApiClient, namespace: str) -> None:
        super().__init__(client, namespace, lambda labels: world.World._usual(labels[label.STAGE], labels).message)
        self.kueue = queue.Queues(
            queue.OnServer(client, namespace), {"team-a": 0}, lambda: datetime.datetime.now(datetime.UTC)
        )
        self.held = False

    def step(self, until: str = "") -> None:
        super().step(until)
        try:
            self.kueue.step()
        except kubernetes.client.ApiException as error:
            if error.status != 409:  # the Job controller was faster: it is done again
                raise

    def says(self, kind: str, *words: str) -> bool:
        self.step("train")
        return all(word in self.condition(NAME, kind).get("message", "") for word in words)

    def train_pod(self) -> dict:
        """The pod of the training, on a node and at work."""

        def there() -> list[dict]:
            self.step("train")
            pods = self.pods(**{label.STAGE: "train"})
            return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

        [pod] = eventually(there, 30)
        self.place(pod)
        self.run(pod)
        eventually(lambda: self.condition(NAME, "Trained").get("reason") == "Running")
        return pod

    def training(self) -> kubernetes.client.V1Job:
        [name] = [name for name in self.names("Job") if "-train-" in name]
        return self.batch.read_namespaced_job(name, self.namespace)


@pytest.fixture(scope="module")
def files(control_plane: controlplane.ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return installed.install(control_plane, tmp_path_factory.mktemp("queue"), world.KUEUE, RELEASE)


@pytest.fixture(scope="module")
def scene(
    control_plane: controlplane.ControlPlane, files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    control_plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifests.ENTRY))
    replica = installed.start("queued-0", tmp_path_factory.mktemp("operator"), *files)
    try:
        eventually(replica.leads, 30)
        name = f"queue-{uuid.uuid4().hex[:8]}"
        control_plane.kubectl("create", "namespace", name)
        with control_plane.client() as client:
            yield Scene(client, name)
        # It manages what other tests left in other namespaces too, such as a job that a quota refuses.
        shown = [line for line in replica.log_lines() if line.get("namespace") in {None, name}]
        assert not [line for line in shown if line["level"] in {"ERROR", "?"} or "orbidden" in line["message"]]
    finally:
        replica.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def lived(control_plane: controlplane.ControlPlane, scene: Scene) -> Scene:
    """A job that was queued before there was a Kueue, let in, preempted while it trained, let in again, and is done."""
    scene.apply(world.finetunejob(**SPEC))
    without = super(Scene, scene).step

    def asks_for_kueue() -> bool:
        without("train")
        return "Workloads" in scene.condition(NAME, "Trained").get("message", "")

    eventually(asks_for_kueue, 30)
    assert scene.phase(NAME) == "Queued"

    control_plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(queue.CRD))
    control_plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", f"crd/workloads.{queue.GROUP}")
    scene.kueue.room = {}
    eventually(lambda: scene.says("Trained", "LocalQueue team-a: LocalQueue team-a doesn't exist"), 70)
    assert scene.condition(NAME, "Ready")["reason"] == "QueueRefused"
    scene.kueue.room = {"team-a": 0}
    words = ("train attempt 1 waits in LocalQueue team-a: ", "insufficient unused quota for nvidia.com/gpu")
    eventually(lambda: scene.says("Trained", *words))
    assert scene.condition(NAME, "Ready")["reason"] == "Queued"
    table = control_plane.kubectl("get", f"--namespace={scene.namespace}", "ftj", "-o", "wide")
    assert "QUEUE" in table
    assert "team-a" in table

    scene.kueue.room = {"team-a": 1}
    first = scene.train_pod()
    assert first["spec"]["nodeSelector"] == queue.FLAVOR
    assert scene.job(NAME)["status"]["queue"]["name"] == "team-a"
    assert "since" not in scene.job(NAME)["status"]["queue"]

    scene.kueue.evict(scene.training().metadata.name)
    eventually(lambda: scene.says("Trained", "evicted (Preempted: Preempted to accommodate", "newest checkpoint"))
    assert scene.phase(NAME) == "Queued"
    scene.stop(first)  # it saves its checkpoint, and ends with 143
    time.sleep(1.5)
    assert scene.condition(NAME, "Ready")["reason"] == "Evicted"
    assert not scene.pods(**{label.STAGE: "train"})
    scene.kueue.held.clear()
    second = scene.train_pod()
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    scene.play(NAME, "Complete")
    return scene


def test_waiting_and_preemption_are_no_attempts(lived: Scene) -> None:
    state = lived.job(NAME)["status"]
    assert [name for name in lived.names("Job") if "-train-" in name] == [lived.training().metadata.name]
    assert lived.training().metadata.name.endswith("-train-1")
    assert "failure" not in state
    assert state["queue"]["waitedSeconds"] > 0
    reasons = [event.reason for event in lived.core.list_namespaced_event(lived.namespace).items]
    assert {"Queued", "QueueRefused", "Evicted"} <= set(reasons)
    assert "Retrying" not in reasons


def test_the_operator_owns_nothing_that_the_queue_decides(lived: Scene) -> None:
    """Of a Job it wrote the first version and nothing since; `suspend` has passed to whoever set it last."""
    job = lived.training()
    ours = [field for field in job.metadata.managed_fields if field.manager == "finetune-operator"]
    assert [field.operation for field in ours] == ["Update"], "no apply, which would take back what others set"
    assert "f:suspend" not in ours[0].fields_v1["f:spec"]
    assert job.spec.suspend is False
    assert job.spec.template.spec.node_selector == queue.FLAVOR
    assert job.metadata.labels[queue.LABEL] == "team-a"


def test_jobs_are_created_watched_and_deleted_and_never_changed(
    control_plane: controlplane.ControlPlane, files: tuple[Path, Path], lived: Scene
) -> None:
    time.sleep(1.5)  # the log is written behind the answer
    found = audit.requests(Path(control_plane.facts["auditLog"]), installed.user_of(files[0]))
    # The operator also manages the jobs that other tests left in other namespaces.
    here = [one for one in found if one.namespace == lived.namespace]
    of_jobs = [one for one in here if one.resource == "jobs" and one.verb not in {"list", "watch"}]
    assert {one.verb for one in of_jobs} == {"create"}
    assert [one.code for one in of_jobs if one.code != 409] == [201] * 3, "another try finds what is there"
    queues = {(one.verb, one.namespace) for one in found if one.resource == "workloads"}
    assert queues == {("list", ""), ("watch", "")}
    assert not [one.uri for one in found if not one.allowed]


def test_what_is_suspended_while_it_waits_leaves_the_queue(lived: Scene) -> None:
    name = "waits"
    lived.kueue.room = {"team-a": 0}
    lived.apply(world.finetunejob(name, **SPEC))

    def queued() -> bool:
        lived.step("train")
        return lived.phase(name) == "Queued" and bool(lived.kueue.server.workloads())

    eventually(queued, 30)
    lived.edit(name, {"spec": {"suspend": True}})
    eventually(lambda: lived.phase(name) == "Suspended")
    eventually(lambda: not [job for job in lived.names("Job") if job.startswith(f"{name}-") and "-train-" in job])
    eventually(lambda: not [w for w in lived.kueue.server.workloads() if name in w["metadata"]["name"]], 40)
