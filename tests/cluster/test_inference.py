"""A pool behind a Gateway with an endpoint picker, on a real API server with the CRDs of Gateway API, its inference extension,
and of llm-d: accepted as written, kept, changed with what serves, removed."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes.client
import pytest

from flow.test_pools import job_in
from support import audit, controlplane, gateway, installed, manifests
from support.installed import eventually

pytestmark = pytest.mark.cluster

CHART = {
    "gatewayAPI": {
        "enabled": True,
        "gateway": {"name": "public", "namespace": "gateways", "sectionName": "https"},
        "inference": {"enabled": True, "modelRewrites": True},
    }
}
ROUTE = {"host": "models.example.com", "endpointPicker": {"service": "chat-epp"}}
KINDS = {
    "httproutes": ("gateway.networking.k8s.io", "v1"),
    "inferencepools": ("inference.networking.k8s.io", "v1"),
    "inferencemodelrewrites": ("llm-d.ai", "v1alpha2"),
}
OLD, NEW = "a" * 64, "b" * 64


@pytest.fixture
def scene(
    control_plane: controlplane.ControlPlane, namespace: str, tmp_path: Path
) -> Iterator[tuple[installed.Stage, str]]:
    """A namespace with an operator at work, and the operator's user."""
    with gateway.served(control_plane), gateway.inference(control_plane):
        files = installed.install(control_plane, tmp_path, CHART, "inference-finetune-operator")
        control_plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifests.ENTRY))
        replica = installed.start("inference-0", tmp_path, *files)
        try:
            eventually(replica.leads, 25)
            with control_plane.client() as client:
                yield installed.Stage(client, namespace, lambda labels: ""), installed.user_of(files[0])
        finally:
            replica.end(signal.SIGKILL)


def test_a_pool_is_written_for_an_endpoint_picker_repaired_and_removed(
    scene: tuple[installed.Stage, str], control_plane: controlplane.ControlPlane
) -> None:
    stage, user = scene
    custom = kubernetes.client.CustomObjectsApi(stage.client)

    def of(kind: str) -> Any:
        found = custom.list_namespaced_custom_object(*KINDS[kind], stage.namespace, kind)["items"]
        return found[0] if found else None

    def targets() -> list[tuple[str, str, int]]:
        every = [(rule, one) for rule in of("inferencemodelrewrites")["spec"]["rules"] for one in rule["targets"]]
        return [(rule["matches"][0]["model"]["value"], one["modelRewrite"], one["weight"]) for rule, one in every]

    def pool(**changes: Any) -> None:
        base = {"baseModel": {"name": manifests.ENTRY["metadata"]["name"]}, "keysSecret": "keys"}
        made = {"apiVersion": "finetune.dev/v1alpha1", "kind": "ServingPool", "metadata": {"name": "chat"}}
        text = json.dumps(made | {"spec": base | changes})
        control_plane.kubectl("apply", f"--namespace={stage.namespace}", "-f", "-", stdin=text)

    pool(route=ROUTE)
    eventually(lambda: all(of(kind) for kind in KINDS), 40)
    first = {kind: of(kind)["metadata"]["generation"] for kind in KINDS}
    spec = of("inferencepools")["spec"]
    assert (spec["targetPorts"], spec["endpointPickerRef"]["port"]) == ([{"number": 8000}], {"number": 9002})
    assert of("httproutes")["spec"]["rules"][0]["backendRefs"][0]["kind"] == "InferencePool"

    def accept(kind: str) -> None:
        """As a controller does."""
        answer = {"type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "observedGeneration": 1}
        parent = {"parentRef": {"name": "public", "namespace": "gateways"}, "controllerName": "a.b/c"}
        state = {"parents": [parent | {"conditions": [answer | {"lastTransitionTime": installed.now()}]}]}
        custom.patch_namespaced_custom_object_status(*KINDS[kind], stage.namespace, kind, "chat", {"status": state})

    def routed() -> str:
        found = control_plane.kubectl(
            *("get", f"--namespace={stage.namespace}", "servingpool/chat"),
            "-o=jsonpath={.status.conditions[?(@.type=='Routed')].status}",
        )
        return str(found)

    eventually(lambda: routed() == "Unknown")
    accept("httproutes")
    accept("inferencepools")
    eventually(lambda: routed() == "True")

    # a job whose records say that it serves
    job = manifests.changed(
        manifests.MINIMAL, **{"metadata": {"name": "tone"}, "spec.suspend": True, "spec.deployment.pool": "chat"}
    )
    stage.apply(job)
    place = f"{stage.namespace}/chat"

    def serves(sha256: str) -> None:
        where = ("finetune.dev", "v1alpha1", stage.namespace, "finetunejobs", "tone")
        state = {"serving": job_in(place, "tone", sha256)["status"]["serving"]}
        custom.patch_namespaced_custom_object_status(*where, {"status": state})

    serves(OLD)
    eventually(lambda: targets() == [("tone", OLD, 100)])
    # the shares of a step, which tests/flow plays: a job that is not verified has none
    stepped = of("inferencemodelrewrites")
    stepped["metadata"].pop("managedFields")
    stepped["spec"]["rules"][0]["targets"] = [{"modelRewrite": NEW, "weight": 10}, {"modelRewrite": OLD, "weight": 90}]
    checked = control_plane.kubectl(
        *("replace", "--dry-run=server", "-f", "-", "-o=jsonpath={.spec.rules[0].targets[*].weight}"),
        stdin=json.dumps(stepped),
    )
    assert checked == "10 90"
    serves(NEW)
    eventually(lambda: targets() == [("tone", NEW, 100)])

    assert {kind: of(kind)["metadata"]["generation"] for kind in KINDS} == first | {
        "inferencemodelrewrites": first["inferencemodelrewrites"] + 2
    }, "nothing is written without need"
    other = {"spec": {"selector": {"matchLabels": {"app": "other"}}}}
    custom.patch_namespaced_custom_object(*KINDS["inferencepools"], stage.namespace, "inferencepools", "chat", other)
    eventually(lambda: (found := of("inferencepools")) and found["spec"]["selector"] == spec["selector"])

    pool()
    eventually(lambda: not any(of(kind) for kind in KINDS))

    def used() -> bool:
        found = audit.requests(Path(control_plane.facts["auditLog"]), user)
        rights = {right for one in found for right in one.rights()}
        verbs = {kind: {verb for _, resource, verb in rights if resource == kind} for kind in KINDS}
        expected = {"list", "watch", "create", "patch", "delete"}
        return all(verbs[kind] == expected for kind in KINDS) and all(one.allowed for one in found)

    eventually(used)
