"""What others change in the operator's objects, on a real API server: policies that rewrite, autoscalers, people."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import kubernetes.client
import pytest

from finetune_operator import pace
from finetune_operator.observe import label
from flow import world
from support import audit, controlplane, installed, manifests, policies
from support.installed import eventually

pytestmark = pytest.mark.cluster

NAME = world.NAME
WRITES = {"create", "patch", "update", "delete"}
MIRROR = "mirror.example/"


class Site:
    """An operator, and namespaces for its jobs."""

    def __init__(self, plane: controlplane.ControlPlane, client: kubernetes.client.ApiClient, user: str) -> None:
        self.plane, self.client, self.user = plane, client, user

    def scene(self, name: str) -> installed.Stage:
        self.plane.kubectl("create", "namespace", name)
        return installed.Stage(
            self.client, name, lambda labels: world.World._usual(labels[label.STAGE], labels).message
        )

    def writes(self, namespace: str) -> list[tuple[str, str, str]]:
        found = audit.requests(Path(self.plane.facts["auditLog"]), self.user)
        return [(r.verb, r.resource, r.name) for r in found if r.namespace == namespace and r.verb in WRITES]

    def enforce(self, scene: installed.Stage, made: list[dict], changed: str) -> None:
        """Policies take a moment until they are in force: until then, `changed` would pass unchanged."""
        items = {"apiVersion": "v1", "kind": "List", "items": made}
        self.plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(items))

        def in_force() -> bool:
            container = {"name": "c", "image": "busybox"}
            template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container]}}
            spec = {"selector": {"matchLabels": {"a": "b"}}, "template": template}
            body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "probe"}, "spec": spec}
            answer = scene.apps.create_namespaced_deployment(scene.namespace, body, dry_run="All")
            return answer.spec.template.spec.containers[0].image == changed

        eventually(in_force)


@pytest.fixture(scope="module")
def site(control_plane: controlplane.ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    place = tmp_path_factory.mktemp("policies")
    files = installed.install(control_plane, place)
    control_plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifests.ENTRY))
    replica = installed.start("policies-0", place, *files)
    try:
        eventually(replica.leads, 25)
        with control_plane.client() as client:
            yield Site(control_plane, client, installed.user_of(files[0]))
    finally:
        replica.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def allowed(site: Site) -> float:
    """Writes of the operator for one job under a policy: at most a fifth more than for one without."""
    plain = site.scene("policies-none")
    plain.apply(world.finetunejob())
    plain.play(NAME, "Ready")
    return 1.2 * len(site.writes(plain.namespace))


def test_a_policy_that_rewrites_images_is_no_drift(site: Site, allowed: float) -> None:
    rewritten = site.scene("policies-rewrite")
    site.enforce(rewritten, policies.rewrite_images(rewritten.namespace, MIRROR), f"{MIRROR}busybox")
    rewritten.apply(world.finetunejob())
    rewritten.play(NAME, "Ready")
    release = rewritten.job(NAME)["status"]["deployment"]["release"]
    server = rewritten.apps.read_namespaced_deployment(release, rewritten.namespace)
    assert server.spec.template.spec.containers[0].image.startswith(MIRROR)
    assert f"on admission, to {MIRROR}" in rewritten.condition(NAME, "Overridden")["message"]
    before = site.writes(rewritten.namespace)
    assert len(before) <= allowed, before
    time.sleep(3)
    assert site.writes(rewritten.namespace) == before, "at rest nothing is written"

    rewritten.edit(NAME, {"spec": {"deployment": {"replicas": 2}}})
    eventually(lambda: rewritten.apps.read_namespaced_deployment(release, rewritten.namespace).spec.replicas == 2)
    rewritten.play(NAME, "Ready")
    assert len(site.writes(rewritten.namespace)) <= len(before) + 8


def test_replicas_and_images_that_others_own_are_theirs_and_named(site: Site) -> None:
    scene = site.scene("policies-owners")
    scene.apply(world.finetunejob())
    scene.play(NAME, "Ready")
    release = scene.job(NAME)["status"]["deployment"]["release"]
    before = len(site.writes(scene.namespace))
    scale = {"spec": {"replicas": 3}}
    scene.apps.patch_namespaced_deployment_scale(release, scene.namespace, scale, field_manager="autoscaler")
    image = {"spec": {"template": {"spec": {"containers": [{"name": "server", "image": "patched:1"}]}}}}
    scene.apps.patch_namespaced_deployment(release, scene.namespace, image, field_manager="image-updater")

    def named() -> bool:
        scene.step()
        text = scene.condition(NAME, "Overridden").get("message", "")
        return "replicas of Deployment" in text and "by autoscaler" in text and "by image-updater" in text

    eventually(named)
    scene.play(NAME, "Ready")
    server = scene.apps.read_namespaced_deployment(release, scene.namespace).spec
    assert (server.replicas, server.template.spec.containers[0].image) == (3, "patched:1")
    assert len(site.writes(scene.namespace)) <= before + 8


def test_kubectl_and_autoscalers_scale_the_job_itself(site: Site) -> None:
    scene = site.scene("policies-scale")
    scene.apply(world.finetunejob())
    scene.play(NAME, "Ready")
    where = f"--namespace={scene.namespace}"
    site.plane.kubectl("scale", where, f"ftj/{NAME}", "--replicas=2")
    eventually(lambda: scene.job(NAME)["status"]["deployment"]["replicas"] == 2)
    scene.play(NAME, "Ready")
    scale = json.loads(site.plane.kubectl("get", where, f"ftj/{NAME}", "--subresource=scale", "-o=json"))
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (2, 2)
    pods = scene.core.list_namespaced_pod(scene.namespace, label_selector=scale["status"]["selector"]).items
    assert len(pods) == 2
    assert len([name for name in scene.names("Job") if "-check" in name]) == 1


def test_a_service_that_is_redirected_again_stays_and_is_no_fight(site: Site) -> None:
    scene = site.scene("policies-service")
    scene.apply(world.finetunejob())
    scene.play(NAME, "Ready")

    def redirect() -> None:
        wrong = {"spec": {"selector": {label.RELEASE: "elsewhere"}}}
        scene.core.patch_namespaced_service(NAME, scene.namespace, wrong, field_manager="traffic-splitter")

    def selected() -> str:
        return scene.core.read_namespaced_service(NAME, scene.namespace).spec.selector[label.RELEASE]

    redirect()
    eventually(lambda: selected() != "elsewhere")
    redirect()
    eventually(lambda: "by traffic-splitter" in scene.condition(NAME, "Overridden").get("message", ""))
    assert selected() == "elsewhere"
    assert scene.condition(NAME, "Ready")["reason"] == "ChangedByOthers"


def test_an_object_that_somebody_deletes_all_the_time_is_no_flood(site: Site) -> None:
    scene = site.scene("policies-deleted")
    scene.apply(world.finetunejob())
    scene.play(NAME, "Ready")
    before = len(site.writes(scene.namespace))
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if NAME in scene.names("Service"):
            scene.core.delete_namespaced_service(NAME, scene.namespace)
        time.sleep(0.1)
    made = [write for write in site.writes(scene.namespace)[before:] if write[1:] == ("services", NAME)]
    assert 1 < len(made) <= pace.MOST


@pytest.mark.parametrize("native", [True, False], ids=["native", "classic"])
def test_a_job_lives_with_a_sidecar_in_every_pod(site: Site, allowed: float, native: bool) -> None:
    scene = site.scene(f"policies-{'native' if native else 'classic'}")
    made = policies.inject_sidecar(scene.namespace, "agent:1", native=native)
    items = {"apiVersion": "v1", "kind": "List", "items": made}
    site.plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(items))
    place = "init_containers" if native else "containers"

    def in_force() -> bool:
        meta = {"name": "probe", "labels": {label.JOB: "probe"}}
        body = {"metadata": meta, "spec": {"containers": [{"name": "c", "image": "i"}]}}
        pod = scene.core.create_namespaced_pod(scene.namespace, body, dry_run="All")
        return any(c.name == policies.SIDECAR for c in getattr(pod.spec, place) or [])

    eventually(in_force)
    scene.apply(world.finetunejob(**{"spec.training.retries": 0}))
    scene.play(NAME, "Ready")
    for pod in scene.pods():
        names = [c["name"] for c in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]]
        assert policies.SIDECAR in names
        assert len(names) == len(set(names))
    written = site.writes(scene.namespace)
    assert len(written) <= allowed, written
