"""A FineTuneJob as GitOps tools handle it, on a real API server: diffs, server-side apply, every status of its life."""

import itertools
import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes.client
import kubernetes.watch
import pytest
import yaml

from finetune_operator.observe import label
from flow import world
from support import controlplane, gitops, installed, manifests
from support.installed import eventually

pytestmark = pytest.mark.cluster
NAME = world.NAME
ARGO = "--field-manager=argocd-controller"


@pytest.fixture(scope="module")
def operator(
    control_plane: controlplane.ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[installed.Replica]:
    folder = tmp_path_factory.mktemp("operator")
    replica = installed.start("gitops-0", folder, *installed.install(control_plane, folder))
    try:
        eventually(replica.leads, 25)
        yield replica
    finally:
        replica.end()


@pytest.fixture
def scene(control_plane: controlplane.ControlPlane, operator: installed.Replica) -> Iterator[installed.Stage]:
    control_plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifests.ENTRY))
    with control_plane.client() as client:
        name = f"test-{uuid.uuid4().hex[:8]}"
        kubernetes.client.CoreV1Api(client).create_namespace({"metadata": {"name": name}})
        yield installed.Stage(client, name, lambda labels: world.World._usual(labels[label.STAGE], labels).message)


class Hand:
    """kubectl in one namespace, with one manifest."""

    def __init__(self, plane: controlplane.ControlPlane, namespace: str, manifest: dict[str, Any], *how: str) -> None:
        self.plane, self.where, self.how = plane, f"--namespace={namespace}", how
        meta = {key: value for key, value in manifest["metadata"].items() if key != "namespace"}
        self.text = json.dumps({**manifest, "metadata": meta})

    def apply(self) -> str:
        return self.plane.kubectl("apply", self.where, *self.how, "-f", "-", stdin=self.text)

    def diff(self) -> str:
        """What `kubectl diff` shows; empty when nothing would change. It reads twice: a status written in between is shown too,
        so it is asked until nothing was."""
        while True:
            before = self.version()
            done = self.plane.run("diff", self.where, *self.how, "-f", "-", stdin=self.text)
            assert done.returncode in {0, 1}, done.stderr
            if self.version() == before:
                return done.stdout

    def version(self) -> str:
        return self.plane.kubectl(
            "get", self.where, "-f", "-", "--output=jsonpath={.metadata.resourceVersion}", stdin=self.text
        )


HOWS = [pytest.param((), id="client-side"), pytest.param(("--server-side", ARGO), id="server-side")]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    "manifest", [manifests.MINIMAL, manifests.every_field()], ids=["the smallest job", "every field"]
)
def test_a_job_that_was_applied_has_no_diff(
    scene: installed.Stage, control_plane: controlplane.ControlPlane, manifest: dict[str, Any], how: tuple[str, ...]
) -> None:
    hand = Hand(control_plane, scene.namespace, manifest, *how)
    hand.apply()
    assert hand.diff() == ""
    name = manifest["metadata"]["name"]
    eventually(lambda: scene.job(name)["status"]["observedGeneration"] == 1)
    assert hand.diff() == "", "the operator's status is no diff"


def test_a_diff_shows_what_would_change(scene: installed.Stage, control_plane: controlplane.ControlPlane) -> None:
    Hand(control_plane, scene.namespace, manifests.MINIMAL).apply()
    changed = manifests.changed(manifests.MINIMAL, **{"spec.training.epochs": 7})
    assert "+    epochs: 7" in Hand(control_plane, scene.namespace, changed).diff()


def test_the_examples_of_a_catalogue_have_no_diff_either(
    scene: installed.Stage, control_plane: controlplane.ControlPlane
) -> None:
    hand = Hand(control_plane, scene.namespace, manifests.ENTRY, "--server-side", ARGO)
    control_plane.kubectl(
        "apply", "--server-side", "--force-conflicts", ARGO, "-f", "-", stdin=json.dumps(manifests.ENTRY)
    )
    assert hand.diff() == ""


def test_another_manager_never_conflicts_with_the_operator(
    scene: installed.Stage, control_plane: controlplane.ControlPlane
) -> None:
    """Applied again and again while the operator takes the job from its beginning to a served model, and edited at the end."""
    hand = Hand(control_plane, scene.namespace, manifests.MINIMAL, "--server-side", ARGO)
    hand.apply()

    def served() -> bool:
        hand.apply()  # without --force-conflicts: a conflict fails
        scene.step()
        return scene.phase(NAME) == "Ready"

    eventually(served, 60)
    edited = manifests.changed(manifests.MINIMAL, **{"spec.deployment.replicas": 2})
    Hand(control_plane, scene.namespace, edited, "--server-side", ARGO).apply()
    scene.play(NAME, "Ready")
    meta = scene.job(NAME)["metadata"]
    owners = {(entry["manager"], entry.get("subresource")) for entry in meta["managedFields"]}
    assert owners == {("argocd-controller", None), ("finetune-operator", "status")}
    assert "annotations" not in meta
    assert hand.diff() != "", "replicas would go back"


def versions(scene: installed.Stage, found: list[dict[str, Any]], ended: threading.Event) -> None:
    """Every version of the namespace's jobs, as a watch tells them."""
    watch = kubernetes.watch.Watch()
    for event in watch.stream(scene.custom.list_namespaced_custom_object, *scene.where, timeout_seconds=120):
        found.append(event["object"])
        if ended.is_set():
            return


def test_every_status_of_a_job_is_read_by_kstatus_and_argo_as_it_is_meant(
    scene: installed.Stage, control_plane: controlplane.ControlPlane
) -> None:
    found: list[dict[str, Any]] = []
    ended = threading.Event()
    watcher = threading.Thread(target=versions, args=(scene, found, ended), daemon=True)
    watcher.start()
    eventually(lambda: watcher.is_alive())
    scene.apply(world.finetunejob())
    scene.play(NAME, "Ready")
    scene.answer = lambda labels: (
        world.evaluate(passed=False)
        if labels[label.STAGE] == "evaluate"
        else world.World._usual(labels[label.STAGE], labels).message
    )
    scene.edit(NAME, {"spec": {"training": {"seed": 7}}})
    scene.play(NAME, "Failed")
    ended.set()
    scene.edit(NAME, {"metadata": {"annotations": {"the-watch": "may end"}}})
    watcher.join(30)
    assert len(found) > 10
    verdicts = gitops.judge(found)
    for version, verdict in zip(found, verdicts, strict=True):
        conditions = {c["type"]: c["status"] for c in version["status"].get("conditions", [])}
        current = version["status"]["observedGeneration"] == version["metadata"]["generation"]
        ready = current and conditions.get("Ready") == "True" and conditions.get("Reconciling") == "False"
        assert (verdict.kstatus == "Current") == ready, version["status"]
        assert (verdict.kstatus == "Failed") == (current and conditions.get("Stalled") == "True"), version["status"]
        assert verdict.argo in gitops.SAME[verdict.kstatus], (verdict, version["status"])
    order = [verdict.kstatus for verdict in verdicts]
    phases = [order[0], *[b for a, b in itertools.pairwise(order) if a != b]]
    assert phases == ["InProgress", "Current", "InProgress", "Failed"]


def test_flux_waits_for_jobs_by_the_names_that_the_api_has(control_plane: controlplane.ControlPlane) -> None:
    documents = list(yaml.safe_load_all((gitops.EXAMPLES / "flux.yaml").read_text()))
    checks = [check for document in documents for check in document["spec"].get("healthChecks", [])]
    served = control_plane.kubectl("api-resources", "--api-group=finetune.dev", "--no-headers")
    for check in checks:
        assert f"{check['apiVersion']}" in served
        assert check["kind"] in served
    assert any(document["spec"].get("wait") for document in documents)


def test_argo_finds_the_script_by_group_and_kind(control_plane: controlplane.ControlPlane) -> None:
    keys = yaml.safe_load(Path(gitops.EXAMPLES / "argocd-cm.yaml").read_text())["data"]
    kinds = "{range .items[*]}{.spec.group}_{.spec.names.kind} {end}"
    served = control_plane.kubectl("get", "crd", f"--output=jsonpath={kinds}").split()
    with_status = {f"finetune.dev_{kind}" for kind in ("FineTuneJob", "ServingPool")}
    assert {key.removeprefix("resource.customizations.health.") for key in keys} == with_status <= set(served)
