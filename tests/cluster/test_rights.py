"""Rights: those that the chart grants are those that the API server saw in use; a job's pods have none.

Every request of an operator through a job's whole life is read from the audit log of a real API server.
"""

import base64
import json
import re
import runpy
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import kubernetes.client
import kubernetes.config
import pytest
import yaml

from finetune_api import API_VERSION, reasons, run
from finetune_operator.observe import label
from flow import world
from support import audit, controlplane, installed, manifests
from support.installed import eventually

pytestmark = pytest.mark.cluster

RELEASE = "audited-finetune-operator"
NAME = world.NAME
BASE = manifests.ENTRY["metadata"]["name"]
NOT_REQUESTED: dict[audit.Right, str] = {
    (
        "finetune.dev",
        "finetunejobs/finalizers",
        "update",
    ): "asked by the admission of owner references where that is on",
    ("finetune.dev", "servingpools/finalizers", "update"): "the same",
}
"""What is granted and never a request of its own, and why."""


def answer(labels: dict[str, str]) -> str:
    return world.World._usual(labels[label.STAGE], labels).message


EVERY_USERS: set[audit.Right] = {("authorization.k8s.io", "selfsubjectaccessreviews", "create")}
"""What Kubernetes' own ClusterRole system:basic-user gives to every user: the operator asks for its rights after a refusal."""


def granted(plane: controlplane.ControlPlane) -> set[audit.Right]:
    """What the installed roles give."""
    found: set[audit.Right] = set()
    for manifest in installed.rendered(plane, release=RELEASE):
        if manifest["kind"] in {"ClusterRole", "Role"}:
            for rule in manifest["rules"]:
                found |= {(g, r, v) for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]}
    return found


def scene_of(plane: controlplane.ControlPlane, client: kubernetes.client.ApiClient) -> installed.Stage:
    name = f"rights-{uuid.uuid4().hex[:8]}"
    plane.kubectl("create", "namespace", name)
    return installed.Stage(client, name, answer)


@pytest.fixture(scope="module")
def files(control_plane: controlplane.ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    made = installed.install(control_plane, tmp_path_factory.mktemp("rights"), release=RELEASE)
    # The authorizer learns of roles a moment after they are stored; a request before that would be one without a right.
    for right in (
        ("list", "finetunejobs", "--all-namespaces"),
        ("create", "leases", f"--namespace={installed.SYSTEM}"),
    ):
        words = ("auth", "can-i", *right, f"--as={installed.user_of(made[0])}")
        installed.eventually(lambda words=words: control_plane.run(*words).returncode == 0)
    return made


@pytest.fixture(scope="module")
def scene(
    control_plane: controlplane.ControlPlane, files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[installed.Stage]:
    """A namespace with an operator at work, and a base model to choose. Another one made the lease and gave it back."""
    control_plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifests.ENTRY))
    lease = ("lease", installed.LEASE, f"--namespace={installed.SYSTEM}", "--ignore-not-found")
    control_plane.kubectl("delete", *lease)
    folder = tmp_path_factory.mktemp("operator")
    former = installed.start("audited-0", folder, *files)
    try:
        eventually(former.leads, 30)
    finally:
        former.end()
    replica = installed.start("audited-1", folder, *files)
    try:
        eventually(replica.leads, 30)
        with control_plane.client() as client:
            yield scene_of(control_plane, client)
    finally:
        replica.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def lived(control_plane: controlplane.ControlPlane, scene: installed.Stage) -> installed.Stage:
    """Everything that can happen to a job: served, revised, suspended, refused by a quota, run on two nodes, over."""
    scene.apply(world.finetunejob(**world.ASKED))
    scene.play(NAME, "Ready", 60)
    # a second revision takes over: the first one's server and Service go
    scene.edit(NAME, {"spec": {"training": {"seed": 7}}})
    eventually(lambda: scene.phase(NAME) != "Ready")
    scene.play(NAME, "Ready", 60)
    # two nodes: a Service of their own, gone after the training
    scene.apply(world.finetunejob("pair", **{"spec.resources": {"nodes": 2, "gpus": 0}}))
    scene.play("pair", "Evaluating", 60)
    # suspended: its Job goes
    scene.edit("pair", {"spec": {"suspend": True}})
    eventually(lambda: scene.phase("pair") == "Suspended")
    # refused by a quota: the operator asks for the events of the Job
    where = f"--namespace={scene.namespace}"
    control_plane.kubectl("create", "quota", "team", where, "--hard=pods=0")
    eventually(lambda: scene.core.read_namespaced_resource_quota("team", scene.namespace).status.hard)
    scene.apply(world.finetunejob("refused"))
    eventually(lambda: scene.condition("refused", "Ready").get("reason") == "QuotaExceeded", 40)
    control_plane.kubectl("delete", "quota", "team", where)
    # a pool of servers
    pool = {
        "apiVersion": API_VERSION,
        "kind": "ServingPool",
        "metadata": {"name": "chat"},
        "spec": {"baseModel": {"name": BASE}},
    }
    scene.custom.create_namespaced_custom_object(*scene.where[:3], "servingpools", pool)

    def pool_is_ready() -> bool:
        scene.step()
        found = scene.custom.get_namespaced_custom_object(*scene.where[:3], "servingpools", "chat")
        return (found.get("status") or {}).get("pods") == "1/1"

    eventually(pool_is_ready, 40)
    # over, and its time to live, too
    scene.answer = lambda _: world.refusal(reasons.Stage.PREFLIGHT, reasons.Reason.TOO_FEW_EXAMPLES)
    scene.apply(world.finetunejob("short", **{"spec.ttlSecondsAfterFinished": 1}))

    def gone() -> bool:
        scene.step()
        found = scene.custom.list_namespaced_custom_object(*scene.where)["items"]
        return "short" not in [one["metadata"]["name"] for one in found]

    eventually(gone, 40)
    scene.answer = answer
    return scene


def used(plane: controlplane.ControlPlane, user: str) -> list[audit.Request]:
    time.sleep(1.5)  # the log is written behind the answer
    return audit.requests(Path(plane.facts["auditLog"]), user)


@pytest.fixture(scope="module")
def requests(
    control_plane: controlplane.ControlPlane, files: tuple[Path, Path], lived: installed.Stage
) -> list[audit.Request]:
    found = used(control_plane, installed.user_of(files[0]))
    assert len(found) > 100, "the audit log is not that of this operator"
    return found


def test_nothing_is_used_that_is_not_granted(
    control_plane: controlplane.ControlPlane, requests: list[audit.Request]
) -> None:
    assert [one.uri for one in requests if not one.allowed] == []
    needed = set[audit.Right]().union(*(one.rights() for one in requests))
    assert sorted(needed - granted(control_plane) - EVERY_USERS) == []


def test_nothing_is_granted_that_is_not_used(
    control_plane: controlplane.ControlPlane, requests: list[audit.Request]
) -> None:
    needed = set[audit.Right]().union(*(one.rights() for one in requests))
    assert sorted(granted(control_plane) - needed - set(NOT_REQUESTED)) == []
    assert not needed & set(NOT_REQUESTED), "these are requests of their own by now"


def test_no_secret_is_ever_requested(requests: list[audit.Request]) -> None:
    assert not [one.uri for one in requests if "secret" in one.uri.lower()]


def test_the_lease_is_the_only_thing_that_is_written_in_the_operators_own_namespace(
    requests: list[audit.Request],
) -> None:
    written = {one.resource for one in requests if one.namespace == installed.SYSTEM and one.verb not in READING}
    assert written == {"leases"}


READING = {"get", "list", "watch"}


# -- what a job's pods may do --


def test_a_job_is_jobs_servers_and_services_and_nothing_else(
    lived: installed.Stage, requests: list[audit.Request]
) -> None:
    written = {one.resource for one in requests if one.namespace == lived.namespace and one.verb not in READING}
    of_pools = {"poddisruptionbudgets", "servingpools/status"}
    jobs = {"jobs", "deployments", "services", "events", "finetunejobs", "finetunejobs/status"}
    assert written == jobs | of_pools
    for kind in ("ConfigMap", "ServiceAccount", "Role", "RoleBinding"):
        assert lived.names(kind) == [], kind


def test_no_pod_of_a_job_has_a_token(lived: installed.Stage) -> None:
    """As the API server admitted them: its ServiceAccount plugin mounts tokens unless it is disabled."""
    pods = lived.pods()
    assert {one["metadata"]["labels"].get(label.STAGE, "server") for one in pods} >= {"train", "evaluate", "server"}
    for one in pods:
        assert one["spec"]["automountServiceAccountToken"] is False
        assert one["spec"]["serviceAccountName"] == "default"
        assert not [volume for volume in one["spec"]["volumes"] if "projected" in volume or "secret" in volume]


def test_the_run_file_is_an_annotation_that_the_kubelet_shows_as_a_file(lived: installed.Stage) -> None:
    for one in lived.pods():
        if label.POOL in one["metadata"]["labels"]:
            continue
        notified = run.Run.model_validate_json(one["metadata"]["annotations"][label.RUN_FILE])
        assert (notified.name, notified.uid) == (
            one["metadata"]["labels"][label.JOB],
            one["metadata"]["labels"][label.UID],
        )
        assert [
            volume["downwardAPI"]["items"][0]["path"] for volume in one["spec"]["volumes"] if "downwardAPI" in volume
        ]


# -- the user's own means --


def test_a_serviceaccount_that_a_user_names_gets_no_right_and_no_container_gets_its_token(
    scene: installed.Stage,
) -> None:
    """Who may create a FineTuneJob may run our images as any ServiceAccount of the namespace, but nothing with its token."""
    scene.core.create_namespaced_service_account(scene.namespace, {"metadata": {"name": "mighty"}})
    changes = {"spec.storage.serviceAccountName": "mighty", "spec.deployment.image": "registry.example/mine:1"}
    scene.apply(world.finetunejob("borrowed", **changes))
    scene.play("borrowed", "Ready", 60)
    for one in scene.pods(**{label.JOB: "borrowed"}):
        assert one["spec"]["serviceAccountName"] == "mighty"
        assert one["spec"]["automountServiceAccountToken"] is False
    assert scene.names("RoleBinding") == []


def test_a_secret_of_another_namespace_has_no_name_here(scene: installed.Stage) -> None:
    """A Secret is named without a namespace, and a pod mounts those of its own alone."""
    scene.apply(world.finetunejob("thief", **{"spec.storage.credentialsSecret": "bootstrap-token"}))
    pods = eventually(lambda: scene.pods(**{label.JOB: "thief"}))
    assert {one["metadata"]["namespace"] for one in pods} == {scene.namespace}
    [container] = pods[0]["spec"]["containers"]
    named = [v["valueFrom"]["secretKeyRef"] for v in container["env"] if "valueFrom" in v]
    assert {ref["name"] for ref in named} == {"bootstrap-token"}
    assert not any("namespace" in ref for ref in named)


def test_all_pods_of_a_job_are_restricted_whatever_it_asks_for(scene: installed.Stage) -> None:
    for one in scene.pods():
        spec = one["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
        assert not [volume for volume in spec["volumes"] if "hostPath" in volume]
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert not container["securityContext"].get("privileged")


def test_the_example_of_a_policy_refuses_what_it_says(
    control_plane: controlplane.ControlPlane, scene: installed.Stage
) -> None:
    file = controlplane.REPOSITORY / "examples" / "security" / "admission-policy.yaml"
    policy, binding = yaml.safe_load_all(file.read_text())
    here = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": scene.namespace}}}
    binding["spec"]["matchResources"] = here
    control_plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(policy))
    control_plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(binding))

    def refusal(**changes: object) -> str:
        manifest = world.finetunejob("judged", **changes)
        try:
            scene.custom.create_namespaced_custom_object(*scene.where, manifest, dry_run="All")
        except kubernetes.client.ApiException as error:
            return str(json.loads(error.body)["message"])
        return ""

    try:
        wrong = {"spec.storage.endpoint": "http://169.254.169.254"}
        eventually(lambda: "minio.example" in refusal(**wrong), 30)
        assert refusal() == ""
        assert refusal(**{"spec.storage.endpoint": "https://minio.example:9000"}) == ""
        reader = {"spec.dataset.storage": {"endpoint": "http://169.254.169.254"}}
        assert "dataset.storage.endpoint" in refusal(**reader)
        assert refusal(**{"spec.dataset.storage": {"credentialsSecret": "reader"}}) == ""
        assert refusal(**{"spec.deployment.image": "registry.example/vllm:1"}) == ""
        assert "deployment.image" in refusal(**{"spec.deployment.image": "docker.io/evil:1"})
        assert "catalogue" in refusal(**{"spec.baseModel": {"source": "hf://evil/model"}})
        assert "ServiceAccount" in refusal(**{"spec.storage.serviceAccountName": "mighty"})
    finally:
        control_plane.kubectl("delete", "-f", file)


# -- helm test --


def test_the_program_of_helm_test_is_accepted_with_the_right_that_it_gets(
    control_plane: controlplane.ControlPlane, scene: installed.Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its half about the API server: the other one needs a network of pods."""
    admin = yaml.safe_load(control_plane.kubeconfig.read_text())
    server = re.fullmatch(r"https://(.+):(\d+)", admin["clusters"][0]["cluster"]["server"])
    assert server
    where = f"--namespace={scene.namespace}"
    control_plane.kubectl("create", "serviceaccount", "tester", where)
    control_plane.kubectl("create", "role", "tester", where, "--verb=create", "--resource=finetunejobs.finetune.dev")
    account = f"--serviceaccount={scene.namespace}:tester"
    control_plane.kubectl("create", "rolebinding", "tester", where, "--role=tester", account)
    (tmp_path / "token").write_text(control_plane.kubectl("create", "token", "tester", where).strip())
    (tmp_path / "ca.crt").write_bytes(authority(admin))
    monkeypatch.setenv("ACCOUNT", str(tmp_path))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", server[1])
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", server[2])
    program = runpy.run_path(str(installed.CHART / "files" / "check.py"))
    assert "accepts a FineTuneJob" in program["accepted"](scene.namespace)
    found = scene.custom.list_namespaced_custom_object(*scene.where)["items"]
    assert "helm-test" not in [one["metadata"]["name"] for one in found]
    with pytest.raises(SystemExit, match=r"(?s)is refused: .*cannot create"):
        program["accepted"]("default")


def authority(kubeconfig: dict) -> bytes:
    cluster = kubeconfig["clusters"][0]["cluster"]
    if "certificate-authority" in cluster:
        return Path(cluster["certificate-authority"]).read_bytes()
    return base64.b64decode(cluster["certificate-authority-data"])
