"""ServingPools on a real API server: what it accepts and refuses, scaling, columns; and an operator that keeps one."""

import json
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api import API_VERSION
from finetune_operator.observe import label
from support import controlplane, installed, manifests
from support.installed import eventually

pytestmark = pytest.mark.cluster

POOL = {
    "apiVersion": API_VERSION,
    "kind": "ServingPool",
    "metadata": {"name": "chat"},
    "spec": {"baseModel": {"name": manifests.ENTRY["metadata"]["name"]}},
}


def refusal(plane: controlplane.ControlPlane, manifest: Any, namespace: str) -> str:
    """What kubectl says of a manifest that is refused; empty if it is accepted."""
    words = ("apply", f"--namespace={namespace}", "--server-side", "--dry-run=server", "-f", "-")
    done = plane.run(*words, stdin=json.dumps(manifest))
    return "" if done.returncode == 0 else done.stderr


def test_a_pool_with_every_field_is_accepted(control_plane: controlplane.ControlPlane) -> None:
    text = (controlplane.REPOSITORY / "examples" / "serving-pool.yaml").read_text()
    manifest = yaml.safe_load(text)
    control_plane.run("create", "namespace", manifest["metadata"]["namespace"])
    assert refusal(control_plane, manifest, manifest["metadata"]["namespace"]) == ""


def test_the_example_of_an_autoscaler_is_accepted_and_asks_for_what_the_adapter_serves(
    control_plane: controlplane.ControlPlane,
) -> None:
    folder = controlplane.REPOSITORY / "examples" / "autoscaling"
    scaler = yaml.safe_load((folder / "hpa.yaml").read_text())
    control_plane.run("create", "namespace", scaler["metadata"]["namespace"])
    assert refusal(control_plane, scaler, scaler["metadata"]["namespace"]) == ""
    rules = yaml.safe_load((folder / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    asked = [metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]]
    assert asked == [rule["name"]["as"] for rule in rules]


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("a name that is too long", {"metadata.name": "a" * 58}, "must have at most 57 characters"),
    ("a name with a dot", {"metadata.name": "a.b"}, "must not contain a dot"),
    ("other namespaces without keys", {"spec.allowedNamespaces": ["*"]}, "allowedNamespaces needs keysSecret"),
    ("an address outside without keys", {"spec.ingress": {"host": "a.b"}}, "ingress needs keysSecret"),
    ("a URL as host", {"spec.ingress": {"host": "https://a.b"}, "spec.keysSecret": "keys"}, "without scheme, port"),
    ("fewer adapters in memory than on the GPU", {"spec.adapters": {"onGpu": 8, "inMemory": 4}}, "must not be below"),
    ("a context length by the back door", {"spec.extraArgs": ["--max_model_len=10"]}, "set contextLength"),
    ("an argument that jobs may not set", {"spec.extraArgs": ["--max-loras=4"]}, "must not contain --max-loras"),
    ("adapters that are gone with its pods", {"spec.idle": {"after": "30m"}}, "idle needs adapters.claimName"),
    ("no pod", {"spec.replicas": 0}, "should be greater than or equal to 1"),
]


@pytest.mark.parametrize(("what", "changes", "words"), REFUSED, ids=[what for what, _, _ in REFUSED])
def test_a_pool_is_refused_that_has(
    control_plane: controlplane.ControlPlane, what: str, changes: dict[str, Any], words: str
) -> None:
    assert words in refusal(control_plane, manifests.changed(POOL, **changes), "default").replace("\n", " ")


ALONE: list[tuple[str, dict[str, Any]]] = [
    ("replicas", {"replicas": 2}),
    ("resources", {"resources": {"gpus": 1}}),
    ("image", {"image": "registry.example/vllm:1"}),
    ("extraArgs", {"extraArgs": ["--seed=1"]}),
    ("apiKeySecret", {"apiKeySecret": "key"}),
    ("rollout.strategy", {"rollout": {"strategy": "Recreate"}}),
    ("route", {"route": {"host": "tone.example.com"}, "apiKeySecret": "key"}),
]


@pytest.mark.parametrize(("field", "deployment"), ALONE, ids=[field for field, _ in ALONE])
def test_a_job_in_a_pool_has_no_fields_of_a_server_of_its_own(
    control_plane: controlplane.ControlPlane, field: str, deployment: dict[str, Any]
) -> None:
    job = manifests.changed(manifests.MINIMAL, **{"spec.deployment": {"pool": "chat", **deployment}})
    assert f"deployment.{field} has no effect with deployment.pool" in refusal(control_plane, job, "default")
    alone = manifests.changed(manifests.MINIMAL, **{"spec.deployment": {"pool": "Dedicated", **deployment}})
    assert refusal(control_plane, alone, "default") == ""


@pytest.fixture
def scene(
    control_plane: controlplane.ControlPlane, namespace: str, tmp_path: Path
) -> Iterator[tuple[installed.Stage, installed.Replica]]:
    files = installed.install(control_plane, tmp_path, {"ingress": {"enabled": True}})
    control_plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifests.ENTRY))
    replica = installed.start("pools-0", tmp_path, *files)
    try:
        eventually(replica.leads, 25)
        with control_plane.client() as client:
            yield installed.Stage(client, namespace, lambda labels: ""), replica
    finally:
        replica.end(signal.SIGKILL)


def test_a_pool_starts_is_scaled_shows_its_numbers_and_its_index(
    scene: tuple[installed.Stage, installed.Replica], control_plane: controlplane.ControlPlane
) -> None:
    stage, replica = scene
    here = f"--namespace={stage.namespace}"
    control_plane.kubectl("apply", here, "-f", "-", stdin=json.dumps(POOL))

    def shows(pods: str) -> bool:
        stage.step()
        return control_plane.kubectl("get", here, "spool/chat", "-o=jsonpath={.status.pods}") == pods

    eventually(lambda: shows("1/1"), 40)
    control_plane.kubectl("scale", here, "servingpool/chat", "--replicas=2")
    eventually(lambda: shows("2/2"), 40)
    assert len(stage.pods(**{label.POOL: "chat"})) == 2
    columns, values = control_plane.kubectl("get", here, "spool").splitlines()
    assert columns.split() == [
        *("NAME", "READY", "REASON", "PODS", "ADAPTERS", "LOADING", "FAILED", "REQ/S", "GPUS", "SAVED", "AGE")
    ]
    assert values.split()[:5] == ["chat", "True", "Serving", "2/2", "0"]
    way_in = {"spec.keysSecret": "keys", "spec.ingress": {"host": "models.example.com", "tlsSecretName": "cert"}}
    for changes, expected in ((way_in, "ingress.networking.k8s.io/chat\n"), ({}, "")):
        wanted = manifests.changed(POOL, **{"spec.replicas": 2} | changes)
        control_plane.kubectl("apply", here, "-f", "-", stdin=json.dumps(wanted))
        eventually(lambda expected=expected: control_plane.kubectl("get", here, "ingress", "-o=name") == expected, 40)
    edited = manifests.changed(POOL, **{"spec.baseModel": {"source": "hf://other/model"}})
    assert "baseModel cannot be changed" in refusal(control_plane, edited, stage.namespace)

    def index(path: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{replica.index_port}{path}", timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, None

    status, found = index(f"/pools/{stage.namespace}/chat")
    assert (status, found["pool"], found["models"]) == (200, f"{stage.namespace}/chat", [])
    assert index(f"/pools/{stage.namespace}/other")[0] == 404
