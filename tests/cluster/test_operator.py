"""The operator on a real API server, with the rights that the chart gives it and no others."""

import contextlib
import datetime
import http.server
import json
import re
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import kubernetes.client
import pytest

from finetune_api import run, schema
from finetune_operator import lease
from finetune_operator.observe import label
from flow import world
from support import controlplane, installed, manifests
from support.installed import eventually

pytestmark = pytest.mark.cluster
CHILDREN = ("Job", "Deployment", "Service")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("operator")


@pytest.fixture(scope="module")
def rights(control_plane: controlplane.ControlPlane, place: Path) -> tuple[Path, Path]:
    """Kubeconfig of the chart's ServiceAccount, and the chart's settings."""
    return installed.install(control_plane, place)


class Pair:
    """Two replicas; whichever dies is started again under another name."""

    def __init__(self, place: Path, rights: tuple[Path, Path]) -> None:
        self.place, self.rights = place, rights
        self.all: list[installed.Replica] = []
        self.away = ("", "")
        """When the API server had just started: for a moment it knows no roles, and refuses everything."""
        self.add()
        self.add()

    def add(self) -> installed.Replica:
        self.all.append(installed.start(f"operator-{len(self.all)}", self.place, *self.rights))
        return self.all[-1]

    def alive(self) -> list[installed.Replica]:
        return [replica for replica in self.all if replica.process.poll() is None]

    def whole(self) -> None:
        """Starts again what ended, as the Deployment's controller would."""
        self.restart(2)
        for replica in self.alive():
            eventually(replica.log.read_text)  # before its first line, it does not yet end in order
        self.leader()

    def restart(self, least: int = 1) -> None:
        while len(self.alive()) < least:
            self.add()

    def leader(self) -> installed.Replica:
        """On a busy machine even the last replica may lose its lease, and end."""

        def found() -> installed.Replica | None:
            self.restart()
            return next((replica for replica in self.alive() if replica.leads()), None)

        return eventually(found, 25)


@pytest.fixture(scope="module")
def operator(place: Path, rights: tuple[Path, Path]) -> Iterator[Pair]:
    pair = Pair(place, rights)
    try:
        pair.leader()
        yield pair
        for replica in pair.all:
            shown = [
                line["message"] for line in replica.log_lines() if not pair.away[0] <= line["time"] <= pair.away[1]
            ]
            assert not [text for text in shown if re.search(r"cannot \w+ resource|\b403\b", text)], "too few rights"
            assert not [line for line in replica.log_lines() if "traceback" in line or line["level"] == "?"]
    finally:
        for replica in pair.all:
            replica.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def stage(control_plane: controlplane.ControlPlane, operator: Pair) -> Iterator[Callable[[], installed.Stage]]:
    """Makes namespaces that enforce the restricted Pod Security Standard, with a base model to choose."""
    control_plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifests.ENTRY))
    with control_plane.client() as client:

        def make() -> installed.Stage:
            name = f"test-{uuid.uuid4().hex[:8]}"
            labels = {"pod-security.kubernetes.io/enforce": "restricted"}
            kubernetes.client.CoreV1Api(client).create_namespace({"metadata": {"name": name, "labels": labels}})
            return installed.Stage(client, name, answer)

        yield make


@pytest.fixture
def scene(stage: Callable[[], installed.Stage], operator: Pair) -> installed.Stage:
    operator.whole()
    return stage()


@pytest.fixture(scope="module")
def served(stage: Callable[[], installed.Stage]) -> installed.Stage:
    """A job that serves its model. The tests that share it leave it serving, but for the last two, in their order here."""
    scene = stage()
    scene.apply(finetunejob())
    scene.play(NAME, "Ready")
    return scene


@pytest.fixture(scope="module")
def reclaimed(stage: Callable[[], installed.Stage]) -> installed.Stage:
    """A job whose pod was at work on a spot machine, when its cloud took the machine back and deleted its Node."""
    scene = stage()
    scene.apply(finetunejob(**{"spec.training.retries": 0}))
    pod = eventually(scene.pods)[0]
    scene.place(pod, "spot")
    scene.run(pod)
    eventually(lambda: scene.condition(NAME, "PreflightPassed").get("reason") == "Running")
    scene.core.delete_node("spot")
    return scene


def answer(labels: dict[str, str]) -> str:
    usual = world.World._usual(labels[label.STAGE], labels)
    return usual.message


finetunejob = world.finetunejob
NAME = world.NAME


def test_a_job_goes_from_its_spec_to_a_served_model(served: installed.Stage) -> None:
    job = served.job(NAME)
    for kind in ("Accepted", "PreflightPassed", "Trained", "Evaluated", "Deployed", "Ready"):
        assert served.condition(NAME, kind)["status"] == "True", kind
        assert served.condition(NAME, kind)["observedGeneration"] == 1
    service = served.core.read_namespaced_service(NAME, served.namespace)
    assert service.spec.selector[label.RELEASE] == job["status"]["deployment"]["release"]
    stages = [re.sub(r".*-[0-9a-f]{8}-(preflight|train|eval|check).*-1$", r"\1", name) for name in served.names("Job")]
    assert sorted(stages) == ["check", "eval", "preflight", "train"]


def test_the_operator_writes_the_status_of_a_job_and_nothing_else(served: installed.Stage) -> None:
    meta = served.job(NAME)["metadata"]
    assert "finalizers" not in meta
    assert "annotations" not in meta
    ours = [field for field in meta["managedFields"] if field["manager"] == "finetune-operator"]
    assert [(field["subresource"], list(field["fieldsV1"])) for field in ours] == [("status", ["f:status"])]
    time.sleep(1.5)
    assert served.job(NAME)["metadata"]["resourceVersion"] == meta["resourceVersion"], "at rest nothing is written"


def test_kubectl_reads_well(served: installed.Stage, control_plane: controlplane.ControlPlane) -> None:
    where = f"--namespace={served.namespace}"
    control_plane.kubectl("wait", where, "--for=condition=Ready", "--timeout=5s", f"ftj/{NAME}")
    head, row = control_plane.kubectl("get", where, "ftj").strip().splitlines()
    assert head.split() == [*("NAME", "PHASE", "REASON", "WAITING", "PROGRESS", "ETA", "LOSS", "SCORE", "READY", "AGE")]
    assert row.split()[:-1] == [NAME, "Ready", "Serving", "100%", "0.5000", "0.9", "True"]
    described = control_plane.kubectl("describe", where, "ftj", NAME)
    events = described.partition("Events:")[2]
    for words in ("finetune-operator", "PreflightPassed: ", "Trained: 100 steps, loss 0.5000", "verified and serves"):
        assert words in events, events
    assert "Warning" not in events
    assert len(events.strip().splitlines()) < 10


@contextlib.contextmanager
def answering(address: str, body: bytes) -> Iterator[list[str]]:
    """A pod's server at the port that the contract names; what it was asked."""
    asked: list[str] = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer((address, run.METRICS_PORT), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield asked
    finally:
        server.shutdown()
        server.server_close()


def test_progress_is_read_from_the_pod_and_shown_by_kubectl_get(
    scene: installed.Stage, control_plane: controlplane.ControlPlane
) -> None:
    scene.apply(finetunejob())

    def trains() -> bool:
        scene.step(until="train")
        for pod in scene.pods(**{label.STAGE: "train"}):
            if pod["status"]["phase"] == "Pending":
                scene.run(pod)
        return scene.phase(NAME) == "Training"

    eventually(trains, 30)
    job = scene.job(NAME)
    report = {
        "uid": job["metadata"]["uid"], "revision": job["status"]["revision"], "attempt": 1, "stage": "train",
        "progress": {"summary": "43%", "percent": 43, "step": 43, "totalSteps": 100, "loss": "0.61", "eta": "5s"},
        "checkpoint": {"uri": "s3://acme/40", "step": 40, "savedAt": "2026-05-04T12:00:00Z"},
    }  # fmt: skip
    with answering(installed.ADDRESS, json.dumps(report).encode()) as asked:
        eventually(lambda: scene.job(NAME)["status"].get("progress", {}).get("percent") == 43)
    assert set(asked) == {run.PROGRESS_PATH}
    assert scene.job(NAME)["status"]["checkpoint"]["step"] == 40
    row = control_plane.kubectl("get", f"--namespace={scene.namespace}", "ftj").strip().splitlines()[1]
    assert row.split()[1:6] == ["Training", "Running", "43%", "5s", "0.61"]


def test_a_redirected_service_is_corrected_and_deleted_children_are_recreated(served: installed.Stage) -> None:
    release = served.job(NAME)["status"]["deployment"]["release"]
    wrong = {"spec": {"selector": {label.UID: None, label.RELEASE: "elsewhere"}}}
    served.core.patch_namespaced_service(NAME, served.namespace, wrong)

    def healed() -> bool:
        service = served.core.read_namespaced_service(NAME, served.namespace)
        uid = served.job(NAME)["metadata"]["uid"]
        return service.spec.selector == {label.UID: uid, label.RELEASE: release}

    eventually(healed)
    served.apps.delete_namespaced_deployment(release, served.namespace)
    eventually(lambda: served.phase(NAME) != "Ready")
    served.play(NAME, "Ready")
    assert len(served.names("Job")) == 4


def test_children_appear_within_a_second(scene: installed.Stage) -> None:
    reactions = []
    for number in range(3):
        name = f"quick-{number}"
        begun = time.monotonic()
        scene.apply(finetunejob(name))
        eventually(lambda name=name: any(job.startswith(name) for job in scene.names("Job")), pause=0.01)
        reactions.append(time.monotonic() - begun)
    assert min(reactions) < 1, reactions


def test_another_owners_service_of_the_same_name_is_not_taken_over(
    scene: installed.Stage, control_plane: controlplane.ControlPlane
) -> None:
    where = f"--namespace={scene.namespace}"
    control_plane.kubectl("create", "service", "clusterip", NAME, where, "--tcp=80:80")
    before = control_plane.kubectl("get", "service", NAME, where, "-o=json")
    scene.apply(finetunejob())

    def shown() -> bool:
        scene.step()
        return "exists and is not this job's" in scene.condition(NAME, "Ready").get("message", "")

    eventually(shown, 30)
    assert scene.condition(NAME, "Accepted")["reason"] == "ServedNameTaken"
    assert scene.names("Job") == [], "nothing has run"
    assert control_plane.kubectl("get", "service", NAME, where, "-o=json") == before


def test_what_a_node_lacks_for_a_pod_is_read_from_the_kubelets_newest_event(scene: installed.Stage) -> None:
    scene.apply(finetunejob())
    meta = eventually(scene.pods)[0]["metadata"]
    placed = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=1)
    status = {"status": {"startTime": placed.isoformat(timespec="seconds")}}
    scene.core.patch_namespaced_pod_status(meta["name"], scene.namespace, status)

    def record(reason: str, message: str, minutes: int) -> None:
        last = (placed + datetime.timedelta(minutes=minutes)).isoformat(timespec="seconds")
        which = {"kind": "Pod", "namespace": scene.namespace, "name": meta["name"], "uid": meta["uid"]}
        event = {"metadata": {"generateName": meta["name"]}, "involvedObject": which, "type": "Warning"}
        scene.core.create_namespaced_event(
            scene.namespace, {**event, "reason": reason, "message": message, "lastTimestamp": last}
        )

    record("FailedScheduling", "0/1 nodes are available", 0)
    record("FailedMount", 'MountVolume.SetUp failed for volume "ca" : configmap "company-ca" not found', 1)
    eventually(lambda: scene.condition(NAME, "PreflightPassed").get("reason") == "CredentialsMissing", 30)
    assert 'configmap "company-ca" not found' in scene.condition(NAME, "Ready")["message"]
    record("Pulling", "Pulling image", 2)
    eventually(lambda: scene.condition(NAME, "PreflightPassed").get("reason") == "Waiting", 30)


def test_failures_are_repeated_and_named(scene: installed.Stage, control_plane: controlplane.ControlPlane) -> None:
    scene.apply(finetunejob(**{"spec.training.retries": 1}))
    for attempt in ("1", "2"):
        pod = eventually(lambda attempt=attempt: scene.pods(**{label.ATTEMPT: attempt}))[0]
        scene.run(pod)
        scene.end(pod, 1, "Traceback: no such file")
    eventually(lambda: scene.phase(NAME) == "Failed")
    failure = scene.job(NAME)["status"]["failure"]
    assert (failure["reason"], failure["exitCode"], failure["attempt"]) == ("TrainerError", 1, 2)
    assert "no such file" in failure["logTail"]
    events = control_plane.kubectl("describe", f"--namespace={scene.namespace}", "ftj", NAME).partition("Events:")[2]
    assert "TrainerError" in events
    assert "no such file" in events
    assert len(scene.names("Job")) == 2


def test_several_nodes_are_one_attempt_that_fails_is_disrupted_and_succeeds_as_a_whole(scene: installed.Stage) -> None:
    scene.apply(finetunejob(**{"spec.resources": {"nodes": 2, "gpus": 0}, "spec.training.retries": 0}))

    def nodes(attempt: int) -> list[dict]:
        """The attempt's pods by their number, at work."""

        def there() -> list[dict]:
            scene.step(until="train")
            found = scene.pods(**{label.STAGE: "train", label.ATTEMPT: str(attempt)})
            return sorted(found, key=lambda pod: pod["spec"]["hostname"]) if len(found) == 2 else []

        pods = eventually(there, 30)
        for pod in pods:
            scene.place(pod)
            scene.run(pod)
        return pods

    # each has a name that the others can resolve, and knows its number
    first, second = nodes(1)
    job = first["metadata"]["labels"]["batch.kubernetes.io/job-name"]
    assert [pod["spec"]["hostname"] for pod in (first, second)] == [f"{job}-0", f"{job}-1"]
    [service] = scene.names("Service")
    assert first["spec"]["subdomain"] == second["spec"]["subdomain"] == service
    made = scene.core.read_namespaced_service(service, scene.namespace).spec
    assert (made.cluster_ip, made.publish_not_ready_addresses) == ("None", True)
    variables = {v["name"]: v for v in second["spec"]["containers"][0]["env"]}
    assert variables["FINETUNE_RENDEZVOUS"]["value"] == f"{job}-0.{service}.{scene.namespace}.svc:29500"
    path = variables["FINETUNE_NODE"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert path == f"metadata.labels['{label.COMPLETION_INDEX}']"
    assert second["metadata"]["labels"][label.COMPLETION_INDEX] == "1"

    # one runs out of memory: the other is stopped, and both start again with half the micro-batch
    scene.end(second, 137, reason="OOMKilled")
    scene.stop(first)
    eventually(lambda: scene.job(NAME)["status"].get("attempt") == 2, 30)
    failure = scene.job(NAME)["status"]["failure"]
    assert (failure["reason"], failure["exitCode"]) == ("TrainerOutOfMemory", 137)
    first, second = nodes(2)
    arguments = first["spec"]["containers"][0]["args"]
    assert arguments[arguments.index("--micro-batch-scale") + 1] == "0.5"

    # one is evicted: a third attempt, though none may fail any more
    scene.evict(first)
    scene.stop(first)
    scene.stop(second)
    eventually(lambda: scene.job(NAME)["status"].get("attempt") == 3, 30)
    assert scene.job(NAME)["status"]["failedAttempts"] == 0

    # the first is done: what the other still does is stopped
    first, second = nodes(3)
    scene.end(first, 0, answer(first["metadata"]["labels"]))
    scene.stop(second)
    eventually(lambda: scene.condition(NAME, "Trained").get("status") == "True", 30)
    eventually(lambda: not scene.names("Service"))
    assert len(scene.pods(**{label.STAGE: "evaluate"})) <= 1


def test_what_quotas_and_the_scheduler_say_reaches_the_job(
    scene: installed.Stage, control_plane: controlplane.ControlPlane
) -> None:
    where = f"--namespace={scene.namespace}"
    control_plane.kubectl("create", "quota", "team", where, "--hard=pods=0")
    eventually(lambda: scene.core.read_namespaced_resource_quota("team", scene.namespace).status.hard)
    scene.apply(finetunejob())
    eventually(lambda: scene.condition(NAME, "Ready").get("reason") == "QuotaExceeded")
    shown = scene.condition(NAME, "PreflightPassed")["message"]
    assert shown.startswith("ResourceQuota team refuses the pod, which requests 1 of pods: 0 of 0 are in use."), shown
    control_plane.kubectl("delete", "quota", "team", where)
    # the Job controller tries again with growing pauses: a new Job is quicker
    scene.batch.delete_namespaced_job(scene.names("Job")[0], scene.namespace, propagation_policy="Background")
    pod = eventually(scene.pods)[0]
    words = "0/3 nodes are available: 3 Insufficient memory."
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
    scene.core.patch_namespaced_pod_status(
        pod["metadata"]["name"], scene.namespace, {"status": {"conditions": [scheduled]}}
    )
    eventually(lambda: scene.condition(NAME, "Ready").get("reason") == "Unschedulable")
    assert words in scene.condition(NAME, "PreflightPassed")["message"]


def test_every_kind_of_refusal_names_the_limit_and_the_request(scene: installed.Stage) -> None:
    """In the words of a real API server, whose plugins have no others."""
    core, here = scene.core, scene.namespace

    def limits(**rule: object) -> None:
        body = {"metadata": {"name": "team"}, "spec": {"limits": [rule]}}
        core.create_namespaced_limit_range(here, body)

    def quota(**hard: str) -> None:
        core.create_namespaced_resource_quota(here, {"metadata": {"name": "team"}, "spec": {"hard": hard}})
        eventually(lambda: core.read_namespaced_resource_quota("team", here).status.hard)

    cases = {
        "maximum": (
            lambda: limits(type="Container", max={"memory": "1Gi"}),
            "a LimitRange of the namespace refuses the pod: maximum memory usage per Container is 1Gi, but limit is 2Gi.",
        ),
        "minimum": (
            lambda: limits(type="Pod", min={"cpu": "2"}, maxLimitRequestRatio={"memory": "1"}),
            "a LimitRange of the namespace refuses the pod: minimum cpu usage per Pod is 2, but request is 500m.",
        ),
        "below": (
            lambda: limits(type="Container", default={"cpu": "250m", "memory": "8Gi"}),
            "a LimitRange of the namespace limits the cpu of a container to 250m, and the pod requests 500m.",
        ),
        "used-up": (
            lambda: quota(**{"requests.memory": "1Gi", "pods": "5"}),
            "ResourceQuota team refuses the pod, which requests 2Gi of requests.memory: 0 of 1Gi are in use.",
        ),
        "unmeasured": (
            lambda: quota(**{"limits.cpu": "4"}),
            "ResourceQuota team refuses the pod: it must specify limits.cpu for: finetune.",
        ),
        "jobs": (
            lambda: quota(**{"count/jobs.batch": "0"}),
            "which requests 1 of count/jobs.batch: 0 of 0 are in use.",
        ),
    }
    for name, (limit, words) in cases.items():
        limit()
        scene.apply(finetunejob(name))
        eventually(lambda name=name: scene.condition(name, "Ready").get("reason") == "QuotaExceeded", 40)
        shown = scene.condition(name, "Ready")["message"]
        assert words in shown, shown
        scene.delete(name)
        for kind in ("limit_range", "resource_quota"):
            getattr(core, f"delete_collection_namespaced_{kind}")(here)
        eventually(lambda: not scene.names("Job") and not core.list_namespaced_resource_quota(here).items)


def test_a_pod_of_a_reclaimed_node_is_not_replaced_while_it_may_be_running(reclaimed: installed.Stage) -> None:
    assert len(reclaimed.pods()) == 1


def test_suspending_removes_the_pod_and_resuming_starts_the_next_attempt(scene: installed.Stage) -> None:
    scene.apply(finetunejob())
    pod = eventually(lambda: scene.pods(**{label.STAGE: "preflight"}))[0]
    scene.run(pod)
    scene.edit(NAME, {"spec": {"suspend": True}})
    eventually(lambda: scene.phase(NAME) == "Suspended" and not scene.names("Job"))
    scene.edit(NAME, {"spec": {"suspend": False}})
    eventually(lambda: [name[-2:] for name in scene.names("Job")] == ["-2"])


def test_time_to_live_removes_the_job(scene: installed.Stage) -> None:
    scene.answer = lambda labels: world.refusal(world.Stage.PREFLIGHT, world.Reason.TOO_FEW_EXAMPLES)
    scene.apply(finetunejob(**{"spec.ttlSecondsAfterFinished": 1}))

    def gone() -> bool:
        scene.step()
        return not scene.custom.list_namespaced_custom_object(*scene.where)["items"]

    eventually(gone, 30)


def test_an_api_server_that_restarts_costs_a_moment(
    scene: installed.Stage, control_plane: controlplane.ControlPlane, operator: Pair, rights: tuple[Path, Path]
) -> None:
    scene.apply(finetunejob())
    eventually(lambda: scene.pods(**{label.STAGE: "preflight"}))
    leader = operator.leader()
    begun = datetime.datetime.now(datetime.UTC).isoformat()
    stopped = time.monotonic()
    controlplane.harness("restart", "--name", control_plane.name, "kube-apiserver")
    read = ("get", "lease", installed.LEASE, f"--namespace={installed.SYSTEM}", f"--as={installed.user_of(rights[0])}")
    eventually(lambda: control_plane.run(*read).returncode == 0)
    away = time.monotonic() - stopped
    scene.play(NAME, "Evaluating", 45)
    operator.away = (begun, datetime.datetime.now(datetime.UTC).isoformat())
    # the status says which Job is next before it exists
    eventually(lambda: len(scene.names("Job")) == 3)
    if (
        away < lease.RENEW_SECONDS - 2 * lease.RETRY_SECONDS
    ):  # a busy machine takes longer to start it; then the lease is lost
        assert leader.process.poll() is None, "a short outage is no reason to end"
        assert operator.leader() is leader


def test_the_other_replica_takes_over_at_once_when_the_leader_stops(scene: installed.Stage, operator: Pair) -> None:
    leader = operator.leader()
    other = next(replica for replica in operator.alive() if replica is not leader)
    assert not other.leads()
    eventually(lambda: other.logged("waiting for the lease"))
    scene.apply(finetunejob())
    pod = eventually(lambda: scene.pods(**{label.STAGE: "preflight"}))[0]
    assert leader.end(signal.SIGTERM) == 0
    lease = kubernetes.client.CoordinationV1Api(scene.client).read_namespaced_lease(installed.LEASE, installed.SYSTEM)
    assert not (lease.spec.holder_identity or "").startswith(leader.name), "the lease was not given back"
    assert operator.leader() is other
    assert [p["metadata"]["uid"] for p in scene.pods()] == [pod["metadata"]["uid"]]
    operator.add()
    scene.play(NAME, "Training")
    eventually(lambda: len(scene.names("Job")) == 2)


def test_the_other_replica_takes_over_when_the_leader_is_killed(scene: installed.Stage, operator: Pair) -> None:
    scene.apply(finetunejob())
    pod = eventually(lambda: scene.pods(**{label.STAGE: "preflight"}))[0]
    leader = operator.leader()
    leader.end(signal.SIGKILL)
    scene.run(pod)
    scene.end(pod, 0, world.preflight())
    assert operator.leader() is not leader
    scene.play(NAME, "Training")
    eventually(lambda: len(scene.names("Job")) == len(scene.pods()) == 2)
    events = scene.core.list_namespaced_event(scene.namespace).items
    assert len([event for event in events if event.message.startswith("PreflightPassed: ")]) <= 1


def test_the_second_revision_takes_over_and_a_failing_one_does_not(served: installed.Stage) -> None:
    first = served.job(NAME)["status"]["deployment"]["release"]
    served.edit(NAME, {"spec": {"training": {"seed": 7}}})
    eventually(lambda: served.phase(NAME) != "Ready")
    served.play(NAME, "Ready")
    second = served.job(NAME)["status"]["deployment"]["release"]
    assert second != first
    eventually(lambda: served.names("Deployment") == [second])
    served.answer = lambda labels: world.evaluate(passed=False) if labels[label.STAGE] == "evaluate" else answer(labels)
    served.edit(NAME, {"spec": {"training": {"seed": 8}}})
    served.play(NAME, "Failed")
    assert served.condition(NAME, "Stalled")["reason"] == "EvaluationBelowGate"
    selector = served.core.read_namespaced_service(NAME, served.namespace).spec.selector
    assert selector[label.RELEASE] == second
    assert served.names("Deployment") == [second]


def test_deleting_the_job_removes_every_child(served: installed.Stage) -> None:
    assert all(served.names(kind) for kind in CHILDREN)
    served.delete(NAME)
    eventually(lambda: not any(served.names(kind) for kind in CHILDREN) and not served.pods())
    time.sleep(1)
    assert not any(served.names(kind) for kind in CHILDREN), "somebody made them again"


def test_a_pod_of_a_reclaimed_node_is_replaced_within_its_attempt(reclaimed: installed.Stage) -> None:
    # long after the other test of it: the garbage collector of pods waits a minute until it believes that a Node is gone
    eventually(lambda: [pod["status"]["phase"] for pod in reclaimed.pods()] == ["Pending"], 90)
    state = reclaimed.job(NAME)["status"]
    assert (state["attempt"], state["failedAttempts"], state.get("failure")) == (1, 0, None)
    assert len(reclaimed.names("Job")) == 1


def test_a_job_that_is_deleted_and_created_again_at_once_starts_again(scene: installed.Stage) -> None:
    # late in this file: the garbage collector looks for new kinds every half minute only
    scene.apply(finetunejob())
    eventually(lambda: scene.names("Job"))
    scene.delete(NAME)
    scene.apply(finetunejob())
    scene.play(NAME, "Training", 45)
    uid = scene.job(NAME)["metadata"]["uid"]
    assert {pod["metadata"]["labels"][label.UID] for pod in scene.pods()} == {uid}


def test_the_operator_may_not_read_secrets(rights: tuple[Path, Path], control_plane: controlplane.ControlPlane) -> None:
    user = installed.user_of(rights[0])
    assert user == f"system:serviceaccount:{installed.SYSTEM}:finetune-operator"
    asked = control_plane.run("auth", "can-i", "get", "secrets", "--all-namespaces", f"--as={user}")
    assert asked.stdout.strip() == "no"


def test_it_works_with_rights_in_some_namespaces_only(
    control_plane: controlplane.ControlPlane, stage: Callable[[], installed.Stage], operator: Pair, tmp_path: Path
) -> None:
    """Another installation with its own lease, after the one with all rights has ended."""
    for replica in operator.alive():
        assert replica.end() == 0
    inside, outside = stage(), stage()
    files = installed.install(control_plane, tmp_path, {"namespaces": [inside.namespace], "catalogue": {}}, "narrow")
    outside.apply(finetunejob())
    inside.apply(finetunejob())
    replica = installed.start("narrow-0", tmp_path, *files)
    try:
        inside.play(NAME, "Training")
        assert outside.job(NAME)["status"] == {"observedGeneration": schema.UNSEEN}
        shown = replica.log_lines()
        assert not [line for line in shown if line["level"] in {"ERROR", "?"} or "orbidden" in line["message"]]
    finally:
        replica.end(signal.SIGKILL)
