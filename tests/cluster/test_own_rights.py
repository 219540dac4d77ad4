"""A right of the operator's own that is missing is the log's; an admission that refuses is the job's. Both are HTTP 403."""

import contextlib
import json
import signal
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from finetune_operator.observe import label
from flow import world
from support import controlplane, installed, manifests
from support.installed import eventually

pytestmark = pytest.mark.cluster
RELEASE = "lacking-finetune-operator"


@pytest.fixture(scope="module")
def replica(
    control_plane: controlplane.ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[installed.Replica]:
    folder = tmp_path_factory.mktemp("lacking")
    files = installed.install(control_plane, folder, release=RELEASE)
    control_plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifests.ENTRY))
    lease = ("lease", installed.LEASE, f"--namespace={installed.SYSTEM}", "--ignore-not-found")
    control_plane.kubectl("delete", *lease)
    process = installed.start("lacking-0", folder, *files)
    try:
        eventually(process.leads, 30)
        yield process
    finally:
        process.end(signal.SIGKILL)


@pytest.fixture
def scene(control_plane: controlplane.ControlPlane, replica: installed.Replica) -> Iterator[installed.Stage]:
    name = f"lacking-{uuid.uuid4().hex[:8]}"
    control_plane.kubectl("create", "namespace", name)
    with control_plane.client() as client:
        yield installed.Stage(client, name, lambda labels: world.World._usual(labels[label.STAGE], labels).message)


@contextlib.contextmanager
def without(plane: controlplane.ControlPlane, verb: str, resource: str) -> Iterator[None]:
    """The chart's ClusterRole without this right."""
    roles = [one for one in installed.rendered(plane, release=RELEASE) if one["kind"] == "ClusterRole"]
    (role,) = (one for one in roles if any(resource in rule["resources"] for rule in one["rules"]))

    def put(rules: list[dict[str, Any]]) -> None:
        patch = json.dumps({"rules": rules})
        plane.kubectl("patch", "clusterrole", role["metadata"]["name"], "--type=merge", "-p", patch)

    def less(rule: dict[str, Any]) -> dict[str, Any]:
        return rule | {"verbs": [one for one in rule["verbs"] if one != verb or resource not in rule["resources"]]}

    put([less(rule) for rule in role["rules"]])
    try:
        yield
    finally:
        put(role["rules"])


def test_a_missing_right_to_create_jobs_is_logged_and_not_blamed_on_the_spec(
    control_plane: controlplane.ControlPlane, replica: installed.Replica, scene: installed.Stage
) -> None:
    with without(control_plane, "create", "jobs"):
        scene.apply(world.finetunejob("rightless"))
        eventually(lambda: replica.logged("cannot create resource"), 30)
        assert scene.condition("rightless", "Ready").get("reason") not in {"PodRefused", "QuotaExceeded"}
        assert scene.names("Job") == []
    # whatever else wakes the job, the right is there again
    scene.edit("rightless", {"spec": {"activeDeadlineSeconds": 90_000}})
    scene.play("rightless", "Ready", 120)


def test_a_quota_on_jobs_is_reported_in_the_jobs_status(
    control_plane: controlplane.ControlPlane, scene: installed.Stage
) -> None:
    where = f"--namespace={scene.namespace}"
    control_plane.kubectl("create", "quota", "jobs", where, "--hard=count/jobs.batch=0")
    eventually(lambda: scene.core.read_namespaced_resource_quota("jobs", scene.namespace).status.hard)
    scene.apply(world.finetunejob("counted"))
    eventually(lambda: scene.condition("counted", "Ready").get("reason") == "QuotaExceeded", 40)


def test_a_policy_that_forbids_jobs_is_quoted_in_the_jobs_status(
    control_plane: controlplane.ControlPlane, scene: installed.Stage
) -> None:
    kind = {"apiVersion": "admissionregistration.k8s.io/v1"}
    rule = {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}
    refusal = {"expression": "false", "message": "user cannot create resource jobs on Sunday", "reason": "Forbidden"}
    here = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": scene.namespace}}}
    named = {"name": scene.namespace}
    policy = {"matchConstraints": {"resourceRules": [rule]}, "validations": [refusal]}
    binding = {"policyName": scene.namespace, "validationActions": ["Deny"], "matchResources": here}
    objects = [
        kind | {"kind": "ValidatingAdmissionPolicy", "metadata": named, "spec": policy},
        kind | {"kind": "ValidatingAdmissionPolicyBinding", "metadata": named, "spec": binding},
    ]
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    control_plane.kubectl("apply", "--server-side", "-f", "-", stdin=listed)
    job = {
        "metadata": {"name": "probe"},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}},
    }

    def refuses() -> bool:
        try:
            scene.batch.create_namespaced_job(scene.namespace, job, dry_run="All")
        except Exception as error:
            return "on Sunday" in str(error)
        return False

    eventually(refuses, 30, 0.5)
    scene.apply(world.finetunejob("forbidden"))
    eventually(lambda: scene.condition("forbidden", "Ready").get("reason") == "PodRefused", 40)
    assert "on Sunday" in scene.condition("forbidden", "Ready")["message"]
    control_plane.kubectl("delete", "-f", "-", stdin=listed)
