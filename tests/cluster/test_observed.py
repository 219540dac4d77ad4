"""What can be seen of a job: a real Prometheus scrapes a real operator and real stages, and every panel has data.

The stages are processes of the trainer, with a tiny model. There is no server here: the serving dashboard is proven where
there is a node (tests/e2e/test_observed.py).
"""

import contextlib
import json
import math
import re
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes.client
import pytest
import yaml

from finetune_api import metrics, run
from finetune_operator.observe import label
from flow import world
from support import boards, controlplane, installed, manifests, prometheus, prometheus_operator, trainers
from support.installed import eventually
from trainer import tiny

pytestmark = pytest.mark.cluster
NAME, BROKEN = "colours", "broken"
GUIDE = controlplane.REPOSITORY / "docs" / "guides" / "operations.md"
PRICES = {"gpuTypes": {"nvidia-l4": {"nodeSelector": {"gpu": "l4"}, "pricePerHour": 0.8}}, "currency": "EUR"}


@pytest.fixture(scope="module")
def operator(
    control_plane: controlplane.ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[installed.Replica]:
    folder = tmp_path_factory.mktemp("operator")
    replica = installed.start("observed-0", folder, *installed.install(control_plane, folder, PRICES))
    try:
        eventually(replica.leads, 25)
        yield replica
    finally:
        replica.end()


@pytest.fixture(scope="module")
def scene(control_plane: controlplane.ControlPlane, operator: installed.Replica) -> Iterator[installed.Stage]:
    with control_plane.client() as client:
        name = f"test-{uuid.uuid4().hex[:8]}"
        kubernetes.client.CoreV1Api(client).create_namespace({"metadata": {"name": name}})
        yield installed.Stage(client, name, lambda labels: world.World._usual(labels[label.STAGE], labels).message)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny model and data."""
    folder = tmp_path_factory.mktemp("observed")
    tiny.make_tiny_model(folder / "base")
    (folder / "train.jsonl").write_text(tiny.jsonl(tiny.examples(60)))
    return folder


def finetunejob(name: str, place: Path) -> dict[str, Any]:
    changes: dict[str, Any] = {
        "spec.baseModel": {"source": f"file://{place}/base"},
        "spec.dataset": {"train": [f"file://{place}/train.jsonl"], "minimumExamples": 10},
        "spec.storage.output": f"file://{place}/out",
        "spec.training": {
            "lora": {"rank": 8, "alpha": 16},
            "learningRate": 0.01,
            "batchSize": 8,
            "maxSteps": 400,
            "checkpoints": {"everyMinutes": 0.03},
            "earlyStopping": {"patience": 100},
        },
        "spec.evaluation": {
            "engine": "InProcess",
            "maximumExamples": 4,
            "generation": {"maxNewTokens": 8},
            "gates": [{"metric": "Loss", "over": "Base", "confidence": 0.5}],
        },
        "spec.resources": {"gpus": 1, "gpuType": "nvidia-l4"},
        "spec.deployment": {"enabled": False},
    }
    return world.finetunejob(name, **changes)


@pytest.fixture(scope="module")
def observed(
    control_plane: controlplane.ControlPlane, operator: installed.Replica, scene: installed.Stage, place: Path
) -> Iterator[tuple[prometheus.Prometheus, float]]:
    """A Prometheus that watched a job from its beginning to its end, another one fail; and when that began."""
    port = run.METRICS_PORT  # where the operator asks for progress
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [
            {
                "job_name": name,
                "honor_labels": True,
                "static_configs": [{"targets": [f"127.0.0.1:{where}"]}],
            }
            for name, where in (("finetune-operator", operator.port), ("finetune-stages", port))
        ],
    }
    with prometheus.running(place, config) as server:
        begun = time.time()
        eventually(lambda: server.now("finetune_leader == 1"))
        machine = trainers.Machine(scene, place, port)
        scene.apply(finetunejob(NAME, place))
        for stage in ("preflight", "train", "evaluate"):
            pod = eventually(lambda stage=stage: scene.pods(**{label.STAGE: stage, label.JOB: NAME}))[0]
            process = machine.start(pod)
            assert process.end() == 0, process.log[-3000:]
        eventually(lambda: scene.phase(NAME) == "Complete")
        scene.apply(finetunejob(BROKEN, place))
        pod = eventually(lambda: scene.pods(**{label.STAGE: "preflight", label.JOB: BROKEN}))[0]
        scene.run(pod)
        scene.end(pod, 2, world.refusal(world.Stage.PREFLIGHT, world.Reason.DATASET_INVALID))
        eventually(lambda: server.now(f'finetune_job_status{{finetunejob="{BROKEN}",phase="Failed"}}'))
        time.sleep(3)  # a graph of one second a point needs a few of them
        yield server, begun


def has_data(found: list[prometheus.Series]) -> bool:
    return any(math.isfinite(float(value)) for series in found for _, value in series["values"])


@pytest.mark.parametrize("name", ["fleet", "job"])
def test_every_query_of_every_panel_returns_data(
    observed: tuple[prometheus.Prometheus, float], scene: installed.Stage, name: str
) -> None:
    server, begun = observed
    every = {"fleet": ".*", "job": scene.namespace}[name]
    values = {"namespace": every, "finetunejob": NAME, "revision": ".*"}
    for query in (*boards.queries(name), *boards.choices(name)):
        found = server.range(query.filled(values), begun, time.time(), 1)
        assert has_data(found), f"no data: {query}"


def test_a_query_of_nothing_has_no_data(observed: tuple[prometheus.Prometheus, float]) -> None:
    server, begun = observed
    assert not has_data(server.range('finetune_jobs{phase="Nowhere"}', begun, time.time()))
    assert not has_data(server.range("0 / 0 * finetune_leader", begun, time.time()))


def test_the_series_of_trainer_and_operator_carry_the_same_labels(
    observed: tuple[prometheus.Prometheus, float], scene: installed.Stage
) -> None:
    server, begun = observed
    revision = scene.job(NAME)["status"]["revision"]
    expected = {"namespace": scene.namespace, "finetunejob": NAME, "revision": revision, "stage": "train"}
    for name in ("finetune_trainer_loss", "finetune_job_loss"):
        (series,) = server.range(f'{name}{{finetunejob="{NAME}"}}', begun, time.time())
        assert {label: series["metric"].get(label) for label in metrics.JOB} == expected, name


def test_the_last_values_of_training_are_there_when_its_pod_is_gone(
    observed: tuple[prometheus.Prometheus, float],
) -> None:
    server, _ = observed
    assert server.now("finetune_trainer_loss") == []
    (now,) = server.now(f'finetune_job_loss{{finetunejob="{NAME}"}}')
    assert 0 < float(now["value"][1]) < 10
    (done,) = server.now(f'finetune_job_progress_ratio{{finetunejob="{NAME}"}}')
    assert float(done["value"][1]) == 1


def test_the_hours_of_the_gpu_were_counted_and_priced(
    observed: tuple[prometheus.Prometheus, float], scene: installed.Stage
) -> None:
    server, begun = observed
    cost = scene.job(NAME)["status"]["cost"]
    assert 0 < float(cost["gpuHours"]) * 3600 < 2 * (time.time() - begun)
    assert float(cost["amount"]) == pytest.approx(0.8 * float(cost["gpuHours"]), rel=0.01, abs=2e-6)
    (series,) = server.now(f'finetune_job_cost_total{{finetunejob="{NAME}"}}')
    assert float(series["value"][1]) == float(cost["amount"])
    assert series["metric"]["currency"] == "EUR"


def test_promtool_accepts_the_running_operators_metrics(
    observed: tuple[prometheus.Prometheus, float], operator: installed.Replica
) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{operator.port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    assert "finetune_job_evaluation_value" in text
    assert prometheus.problems(text) == ""


def test_scrape_rules_and_pod_monitors_find_operator_stages_and_servers(
    control_plane: controlplane.ControlPlane, scene: installed.Stage, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Pods as the operator and the chart make them, found by the API server; that they are read is proven on a node."""
    template = next(m for m in installed.rendered(control_plane) if m["kind"] == "Deployment")["spec"]["template"]
    core = kubernetes.client.CoreV1Api(scene.client)
    manifest = {"metadata": {"name": "operator-0", "labels": template["metadata"]["labels"]}, "spec": template["spec"]}
    operator = core.create_namespaced_pod(installed.SYSTEM, manifest)
    ready = {"phase": "Running", "podIP": installed.ADDRESS, "podIPs": [{"ip": installed.ADDRESS}]}
    core.patch_namespaced_pod_status("operator-0", operator.metadata.namespace, {"status": ready})
    control_plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifests.ENTRY))
    scene.apply(world.finetunejob("found"))

    def until(stage: str) -> installed.Raw:
        """The pod of this stage runs; those of the stages before have ended."""

        def there() -> list[installed.Raw]:
            scene.step(until=stage)
            return scene.pods(**{label.STAGE: stage, label.JOB: "found"})

        (pod,) = eventually(there, 30)
        scene.run(pod)
        return pod

    expected = {"http://127.0.0.1:8080/metrics": {"namespace": installed.SYSTEM, "pod": "operator-0"}}
    job = {"namespace": scene.namespace, "finetunejob": "found"}

    def pods(selector: str) -> list[installed.Raw]:
        """Without those that other tests left on this control plane, all at the same address."""
        listed = [
            core.list_namespaced_pod(namespace, label_selector=selector, _preload_content=False)
            for namespace in (installed.SYSTEM, scene.namespace)
        ]
        return [pod for answer in listed for pod in json.loads(answer.data)["items"]]

    def labels(server: prometheus.Prometheus) -> dict[str, dict[str, str]]:
        """Those of the targets' own, without what the Prometheus operator adds for itself."""
        of_its_own = {"instance", "job", "container", "endpoint"}
        return {
            target["scrapeUrl"]: {k: v for k, v in target["labels"].items() if k not in of_its_own}
            for target in server.get("targets")["activeTargets"]
        }

    with contextlib.ExitStack() as stack:
        discovery = stack.enter_context(prometheus.discovering(pods))
        rules = (prometheus.chart(installed.CHART), monitored(control_plane, tmp_path_factory.mktemp("monitored")))
        servers = [
            stack.enter_context(
                prometheus.running(tmp_path_factory.mktemp("server"), prometheus.of_cluster(rule, discovery))
            )
            for rule in rules
        ]
        for stage, port in (("train", 9400), ("evaluate", 9400), ("verify", 8000)):
            pod = until(stage)
            revision = scene.job("found")["status"]["revision"]
            if stage == "verify":
                (pod,) = [pod for pod in scene.pods() if label.RELEASE in pod["metadata"]["labels"]]
            found = {**job, "revision": revision, "stage": "serve" if stage == "verify" else stage}
            wanted = expected | {f"http://127.0.0.1:{port}/metrics": {**found, "pod": pod["metadata"]["name"]}}

            end = time.monotonic() + 60
            while (seen := [labels(server) for server in servers]) != [wanted] * 2 and time.monotonic() < end:
                time.sleep(0.2)
            assert seen == [wanted] * 2


def monitored(control_plane: controlplane.ControlPlane, folder: Path) -> list[installed.Raw]:
    """The scrape rules that the Prometheus operator makes of the chart's PodMonitors, by the values of the guide."""
    text = re.search(r"```yaml\n# observed.yaml\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert text is not None
    chosen = installed.rendered(control_plane, yaml.safe_load(text[1]))
    ours = [m for m in chosen if m["kind"] in {"PodMonitor", "PrometheusRule"}]
    names = {rule["alert"] for m in ours for group in m["spec"].get("groups", []) for rule in group["rules"]}
    with prometheus_operator.running(control_plane, folder) as made:
        listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": ours})
        control_plane.kubectl("apply", "--server-side", "-f", "-", stdin=listed)
        eventually(lambda: len(made.scrape_configs()) == sum(m["kind"] == "PodMonitor" for m in ours), 60)
        eventually(lambda: made.alerts() == names, 60)
        return made.scrape_configs()


def test_a_jobs_series_end_with_the_job(
    observed: tuple[prometheus.Prometheus, float], scene: installed.Stage, operator: installed.Replica
) -> None:
    """The last test: it deletes what the others look at."""
    server, _ = observed
    assert server.now(f'{{finetunejob="{BROKEN}"}}')
    for name in (NAME, BROKEN, "found"):
        scene.delete(name)
    here = f'{{finetunejob!="",namespace="{scene.namespace}"}}'  # the control plane has jobs of other tests too
    eventually(lambda: server.now(here) == [], 30)
    with urllib.request.urlopen(f"http://127.0.0.1:{operator.port}/metrics", timeout=5) as answer:
        assert scene.namespace not in answer.read().decode()
