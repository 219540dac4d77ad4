"""HTTPRoutes on a real API server with the CRDs of Gateway API: accepted as they are written, kept, changed in a rollout."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes.client
import pytest

from finetune_operator.observe import label
from flow import world
from support import audit, controlplane, gateway, installed, manifests
from support.installed import eventually

pytestmark = pytest.mark.cluster

NAME = world.NAME
CHART = {
    "gatewayAPI": {"enabled": True, "gateway": {"name": "public", "namespace": "gateways", "sectionName": "https"}}
}
STEPS: dict[str, Any] = {
    "spec.deployment": {
        "route": {"host": "tone.example.com"},
        "apiKeySecret": "key",
        "rollout": {"steps": [{"weight": 10, "pause": "1h"}]},
    }
}
RELEASE = "routed-finetune-operator"


def answer(labels: dict[str, str]) -> str:
    return world.World._usual(labels[label.STAGE], labels).message


@pytest.fixture
def scene(
    control_plane: controlplane.ControlPlane, namespace: str, tmp_path: Path
) -> Iterator[tuple[installed.Stage, str]]:
    """A namespace with an operator at work, and the operator's user."""
    with gateway.served(control_plane):
        files = installed.install(control_plane, tmp_path, CHART, RELEASE)
        control_plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifests.ENTRY))
        replica = installed.start("routes-0", tmp_path, *files)
        try:
            eventually(replica.leads, 25)
            with control_plane.client() as client:
                yield installed.Stage(client, namespace, answer), installed.user_of(files[0])
        finally:
            replica.end(signal.SIGKILL)


def test_a_route_is_written_repaired_weighted_in_steps_and_removed(
    scene: tuple[installed.Stage, str], control_plane: controlplane.ControlPlane
) -> None:
    stage, user = scene
    custom = kubernetes.client.CustomObjectsApi(stage.client)
    where = ("gateway.networking.k8s.io", "v1", stage.namespace, "httproutes")

    def weights() -> list[int]:
        found = custom.list_namespaced_custom_object(*where)["items"]
        return [one["weight"] for raw in found for one in raw["spec"]["rules"][0]["backendRefs"]]

    stage.apply(world.finetunejob(**STEPS))
    stage.play(NAME, "Ready", 60)
    eventually(lambda: weights() == [100])
    made = custom.get_namespaced_custom_object(*where, NAME)
    assert made["spec"]["parentRefs"][0]["sectionName"] == "https"
    assert made["spec"]["rules"][0]["backendRefs"][0]["name"] in stage.names("Service")
    assert stage.condition(NAME, "Routed")["status"] == "Unknown", "no controller has accepted it"
    # as a controller does
    accepted = {"type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "observedGeneration": 1}
    conditions = [accepted | {"lastTransitionTime": installed.now()}]
    parents = [{"parentRef": made["spec"]["parentRefs"][0], "controllerName": "a.b/c", "conditions": conditions}]
    custom.patch_namespaced_custom_object_status(*where, NAME, {"status": {"parents": parents}})
    eventually(lambda: stage.condition(NAME, "Routed").get("status") == "True")

    rules = made["spec"]["rules"]
    rules[0]["backendRefs"][0]["weight"] = 1
    custom.patch_namespaced_custom_object(*where, NAME, {"spec": {"rules": rules}})
    eventually(lambda: weights() == [100])

    stage.edit(NAME, {"spec": {"training": {"seed": 7}}})

    def in_a_step() -> bool:
        stage.step()
        return weights() == [90, 10]

    eventually(in_a_step, 60)
    # no vLLM is behind the pods' address: the operator has tried to read it, and says so
    eventually(lambda: "requests cannot be counted (127.0.0.1: " in stage.condition(NAME, "Deployed")["message"], 40)
    revision = stage.job(NAME)["status"]["revision"]
    stage.edit(NAME, {"metadata": {"annotations": {"finetune.dev/rollout": f"promote {revision}"}}})
    eventually(lambda: weights() == [100])
    new = custom.get_namespaced_custom_object(*where, NAME)["spec"]["rules"][0]["backendRefs"][0]["name"]
    assert revision in new
    stage.edit(NAME, {"spec": {"deployment": {"route": None, "rollout": {"steps": []}}}})
    eventually(lambda: weights() == [])

    def used() -> bool:
        found = audit.requests(Path(control_plane.facts["auditLog"]), user)
        rights = {right for one in found for right in one.rights()}
        verbs = {verb for _, resource, verb in rights if resource == "httproutes"}
        return verbs == {"list", "watch", "create", "patch", "delete"} and all(one.allowed for one in found)

    eventually(used)
