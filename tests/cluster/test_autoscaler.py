"""Kubernetes' own HPA controller scales a job through its scale subresource, and the operator does not resist."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_operator.observe import label
from flow import world
from support import audit, controlplane, installed, manifests, metricsapi
from support.installed import eventually

pytestmark = pytest.mark.cluster

NAME, NAMESPACE = world.NAME, "autoscaled"
PER_REPLICA = 10


def autoscaler() -> dict[str, object]:
    target = {"type": "AverageValue", "averageValue": str(PER_REPLICA)}
    external = {"metric": {"name": metricsapi.METRIC}, "target": target}
    spec = {
        "scaleTargetRef": {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "name": NAME},
        "minReplicas": 1,
        "maxReplicas": 3,
        "metrics": [{"type": "External", "external": external}],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
    }
    meta = {"name": NAME, "namespace": NAMESPACE}
    return {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": meta, "spec": spec}


@pytest.fixture
def scene(control_plane: controlplane.ControlPlane, tmp_path: Path) -> Iterator[tuple[installed.Stage, str]]:
    """An operator with a job that serves, and the operator's name in the audit log."""
    files = installed.install(control_plane, tmp_path)
    control_plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifests.ENTRY))
    control_plane.kubectl("create", "namespace", NAMESPACE)
    replica = installed.start("autoscaler-0", tmp_path, *files)
    try:
        eventually(replica.leads, 25)
        with control_plane.client() as client:
            found = installed.Stage(
                client, NAMESPACE, lambda labels: world.World._usual(labels[label.STAGE], labels).message
            )
            found.apply(world.finetunejob())
            found.play(NAME, "Ready")
            yield found, installed.user_of(files[0])
    finally:
        replica.end(signal.SIGKILL)


def test_the_hpa_controller_scales_the_job_up_and_down_and_the_operator_follows(
    scene: tuple[installed.Stage, str], control_plane: controlplane.ControlPlane, tmp_path: Path
) -> None:
    stage, user = scene
    release = stage.job(NAME)["status"]["deployment"]["release"]

    def writes() -> list[str]:
        found = audit.requests(Path(control_plane.facts["auditLog"]), user)
        return [r.verb for r in found if r.namespace == NAMESPACE and r.verb in {"create", "patch", "update", "delete"}]

    def runs(replicas: int) -> bool:
        """Whether the spec, the Deployment, the status and the autoscaler's own status say so."""
        stage.step()
        job = stage.job(NAME)
        scaler = json.loads(control_plane.kubectl("get", f"--namespace={NAMESPACE}", f"hpa/{NAME}", "-o=json"))
        shown = {
            job["spec"]["deployment"].get("replicas", 1),
            stage.apps.read_namespaced_deployment(release, NAMESPACE).spec.replicas,
            job["status"]["deployment"]["replicas"],
            job["status"]["deployment"]["readyReplicas"],
            scaler["status"].get("currentReplicas"),
            scaler["status"].get("desiredReplicas"),
        }
        return shown == {replicas} and stage.phase(NAME) == "Ready"

    with metricsapi.serving(control_plane, tmp_path / "metrics") as metric:
        metric.value = PER_REPLICA
        control_plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(autoscaler()))
        eventually(lambda: runs(1) and metric.read > 0, 60)
        for waiting, replicas in ((3 * PER_REPLICA, 3), (PER_REPLICA + 1, 2), (1, 1)):
            before = len(writes())
            metric.value = waiting
            eventually(lambda replicas=replicas: runs(replicas), 60)
            assert len(writes()) - before <= 8, "an edit of replicas costs a few writes"
        settled, generation, read = writes(), stage.job(NAME)["metadata"]["generation"], metric.read
        eventually(lambda: metric.read >= read + 2, 60)
        assert (writes(), stage.job(NAME)["metadata"]["generation"]) == (settled, generation), "nobody fights"
    assert "replicas" not in stage.condition(NAME, "Overridden").get("message", "")
    assert len([name for name in stage.names("Job") if "-check" in name]) == 1, "nothing was verified again"
