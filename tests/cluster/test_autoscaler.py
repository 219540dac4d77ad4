"""Kubernetes' own HPA controller scales a job and a pool through their scale subresources, and the operator does not resist."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api import API_VERSION
from finetune_operator.observe import label
from flow import world
from support import audit, controlplane, installed, manifests, metricsapi
from support.installed import eventually

pytestmark = pytest.mark.cluster

NAME, NAMESPACE, POOL = world.NAME, "autoscaled", "chat"
PER_REPLICA = 10


def autoscaler(kind: str, name: str) -> dict[str, object]:
    target = {"type": "AverageValue", "averageValue": str(PER_REPLICA)}
    external = {"metric": {"name": metricsapi.METRIC}, "target": target}
    spec = {
        "scaleTargetRef": {"apiVersion": "finetune.dev/v1alpha1", "kind": kind, "name": name},
        "minReplicas": 1,
        "maxReplicas": 3,
        "metrics": [{"type": "External", "external": external}],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
    }
    meta = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": meta, "spec": spec}


@pytest.fixture
def scene(control_plane: controlplane.ControlPlane, tmp_path: Path) -> Iterator[tuple[installed.Stage, str]]:
    """An operator with a job that serves and a pool, and the operator's name in the audit log."""
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
            spec = {"baseModel": {"name": manifests.ENTRY["metadata"]["name"]}}
            meta = {"name": POOL, "namespace": NAMESPACE}
            pool = {"apiVersion": API_VERSION, "kind": "ServingPool", "metadata": meta, "spec": spec}
            control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(pool))
            yield found, installed.user_of(files[0])
    finally:
        replica.end(signal.SIGKILL)


def test_the_hpa_controller_scales_job_and_pool_up_and_down_and_the_operator_follows(
    scene: tuple[installed.Stage, str], control_plane: controlplane.ControlPlane, tmp_path: Path
) -> None:
    stage, user = scene
    release = stage.job(NAME)["status"]["deployment"]["release"]

    def read(kind: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            control_plane.kubectl("get", f"--namespace={NAMESPACE}", f"{kind}/{name}", "-o=json")
        )
        return found

    def writes() -> list[str]:
        found = audit.requests(Path(control_plane.facts["auditLog"]), user)
        return [r.verb for r in found if r.namespace == NAMESPACE and r.verb in {"create", "patch", "update", "delete"}]

    def runs(replicas: int) -> bool:
        """Whether the specs, the Deployments, the statuses and the autoscalers' own statuses say so."""
        stage.step()
        job, pool = stage.job(NAME), read("servingpool", POOL)
        shown = {
            job["spec"]["deployment"].get("replicas", 1),
            job["status"]["deployment"]["replicas"],
            job["status"]["deployment"]["readyReplicas"],
            pool["spec"]["replicas"],
            pool.get("status", {}).get("replicas"),
            pool.get("status", {}).get("readyReplicas"),
        }
        for scaled, deployment in ((NAME, release), (POOL, POOL)):
            scaler = read("hpa", scaled)["status"]
            shown |= {scaler.get("currentReplicas"), scaler.get("desiredReplicas")}
            shown.add(stage.apps.read_namespaced_deployment(deployment, NAMESPACE).spec.replicas)
        return shown == {replicas} and stage.phase(NAME) == "Ready"

    def generations() -> list[int]:
        return [found["metadata"]["generation"] for found in (stage.job(NAME), read("servingpool", POOL))]

    with metricsapi.serving(control_plane, tmp_path / "metrics") as metric:
        metric.value = PER_REPLICA
        for scaler in (autoscaler("FineTuneJob", NAME), autoscaler("ServingPool", POOL)):
            control_plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(scaler))
        eventually(lambda: runs(1) and metric.read > 0, 60)
        for waiting, replicas in ((3 * PER_REPLICA, 3), (PER_REPLICA + 1, 2), (1, 1)):
            before = len(writes())
            metric.value = waiting
            eventually(lambda replicas=replicas: runs(replicas), 60)
            assert len(writes()) - before <= 16, "an edit of replicas costs a few writes"
        settled, seen = (writes(), generations()), metric.read
        eventually(lambda: metric.read >= seen + 4, 60)
        assert (writes(), generations()) == settled, "nobody fights"
    assert "replicas" not in stage.condition(NAME, "Overridden").get("message", "")
    assert len([name for name in stage.names("Job") if "-check" in name]) == 1, "nothing was verified again"
