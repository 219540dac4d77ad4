"""After an upgrade: what earlier releases kept for each job is removed, except for what their pods need to start."""

import base64
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.observe import label
from flow import world
from support import controlplane, installed

pytestmark = pytest.mark.cluster

PROGRAM = installed.CHART / "files" / "cleanup.py"
UNUSED, USED = "gone", "serves"
Raw = dict[str, Any]


class Earlier:
    """A namespace with a FineTuneJob and what an operator of an earlier release made for it."""

    def __init__(self, plane: controlplane.ControlPlane) -> None:
        self.plane, self.namespace = plane, f"earlier-{uuid.uuid4().hex[:8]}"
        plane.kubectl("create", "namespace", self.namespace)
        self.where = f"--namespace={self.namespace}"
        self.apply(world.finetunejob("old"))
        job = json.loads(plane.kubectl("get", "ftj", "old", self.where, "-o", "json"))
        owner = {"apiVersion": job["apiVersion"], "kind": "FineTuneJob", "name": "old", "uid": job["metadata"]["uid"]}
        self.meta: Raw = {
            "labels": {"app.kubernetes.io/managed-by": "finetune-operator", label.UID: owner["uid"], label.JOB: "old"},
            "ownerReferences": [owner],
        }
        for name in (UNUSED, USED):
            self.make("v1", "ConfigMap", f"{name}-run", data={"run.json": "{}"})
            self.make("v1", "ServiceAccount", f"{name}-trainer")
        self.make("v1", "ConfigMap", "old-progress")
        rbac = "rbac.authorization.k8s.io"
        self.make(f"{rbac}/v1", "Role", "old-trainer", rules=[])
        role = {"apiGroup": rbac, "kind": "Role", "name": "old-trainer"}
        subject = {"kind": "ServiceAccount", "name": f"{USED}-trainer", "namespace": self.namespace}
        self.make(f"{rbac}/v1", "RoleBinding", "old-trainer", roleRef=role, subjects=[subject])
        self.make("apps/v1", "Deployment", "old-server", spec=self.server())
        host = {"host": "old.example.com"}
        self.make("networking.k8s.io/v1", "Ingress", "old", spec={"rules": [host]})
        self.apply(
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "Ingress",
                "metadata": {"name": "mine"},
                "spec": {"rules": [host]},
            }
        )
        # those of others: by label, by owner, by neither
        self.apply(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "labelled", "labels": self.meta["labels"]}}
        )
        self.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owned", "ownerReferences": [owner]}})
        self.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine"}})

    def apply(self, manifest: Raw) -> None:
        self.plane.kubectl("apply", "--server-side", self.where, "-f", "-", stdin=json.dumps(manifest))

    def make(self, version: str, kind: str, name: str, **content: Any) -> None:
        self.apply({"apiVersion": version, "kind": kind, "metadata": {"name": name} | self.meta, **content})

    def server(self) -> Raw:
        pod = {
            "serviceAccountName": f"{USED}-trainer",
            "containers": [{"name": "server", "image": "reg/vllm:1"}],
            "volumes": [{"name": "run", "configMap": {"name": f"{USED}-run"}}],
        }
        labels = self.meta["labels"]
        return {
            "selector": {"matchLabels": {label.UID: labels[label.UID]}},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        }

    def names(self, kind: str) -> set[str]:
        every = self.plane.kubectl("get", kind, self.where, "-o", "name").split()
        return {name.partition("/")[2] for name in every} - {"kube-root-ca.crt", "default"}


@pytest.fixture
def earlier(control_plane: controlplane.ControlPlane) -> Iterator[Earlier]:
    made = Earlier(control_plane)
    yield made
    control_plane.kubectl("delete", "namespace", made.namespace, "--wait=false")


def clean(plane: controlplane.ControlPlane, folder: Path, namespaces: list[str]) -> str:
    """Run the program as the hook's pod does: with the hook's ServiceAccount and rights. What it printed."""
    text = subprocess.run(
        [
            *(plane.bin / "helm", "template", "upgraded", installed.CHART, f"--namespace={installed.SYSTEM}"),
            *("--kube-version=1.30", "--is-upgrade", "--show-only=templates/upgrade/cleanup.yaml", "--values=-"),
        ],
        input=json.dumps({"namespaces": namespaces}), capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    rendered = [m for m in yaml.safe_load_all(text) if m]
    hooks = [m for m in rendered if m["kind"] != "Job"]
    (job,) = [m for m in rendered if m["kind"] == "Job"]
    (named,) = job["spec"]["template"]["spec"]["containers"][0]["env"]
    if plane.run("get", "namespace", installed.SYSTEM).returncode:
        plane.kubectl("create", "namespace", installed.SYSTEM)
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": hooks})
    plane.kubectl("apply", "--server-side", "-f", "-", stdin=listed)
    account = next(m["metadata"]["name"] for m in hooks if m["kind"] == "ServiceAccount")
    token = plane.kubectl("create", "token", account, f"--namespace={installed.SYSTEM}").strip()
    admin = yaml.safe_load(plane.kubeconfig.read_text())["clusters"][0]["cluster"]
    server = re.fullmatch(r"https://(.+):(\d+)", admin["server"])
    assert server
    (folder / "token").write_text(token)
    data = admin.get("certificate-authority-data")
    (folder / "ca.crt").write_bytes(
        base64.b64decode(data) if data else Path(admin["certificate-authority"]).read_bytes()
    )
    place = {"ACCOUNT": str(folder), "KUBERNETES_SERVICE_HOST": server[1], "KUBERNETES_SERVICE_PORT": server[2]}
    words = [sys.executable, "-c", PROGRAM.read_text(), *namespaces]
    try:
        return subprocess.run(
            words,
            env={"PATH": os.environ["PATH"], named["name"]: named["value"]} | place,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    finally:
        plane.kubectl("delete", "-f", "-", stdin=listed)


@pytest.mark.parametrize("mode", ["namespaces", "everywhere"])
def test_objects_of_an_earlier_release_are_deleted_unless_its_pods_need_them(
    control_plane: controlplane.ControlPlane, earlier: Earlier, tmp_path: Path, mode: str
) -> None:
    printed = clean(control_plane, tmp_path, [earlier.namespace] if mode == "namespaces" else [])
    assert "5 objects of an earlier release were removed" in printed
    assert earlier.names("rolebinding") == earlier.names("role") == set()
    assert earlier.names("configmap") == {f"{USED}-run", "labelled", "owned", "mine"}
    assert earlier.names("serviceaccount") == {f"{USED}-trainer"}
    assert earlier.names("deployment") == {"old-server"}
    assert earlier.names("ingress") == {"mine"}, "the chart's ingress.enabled is false"


def test_the_rest_is_deleted_with_the_next_upgrade_after_the_server(
    control_plane: controlplane.ControlPlane, earlier: Earlier, tmp_path: Path
) -> None:
    clean(control_plane, tmp_path, [earlier.namespace])
    control_plane.kubectl("delete", "deployment", "old-server", earlier.where)
    assert "2 objects" in clean(control_plane, tmp_path, [earlier.namespace])
    assert earlier.names("configmap") == {"labelled", "owned", "mine"}
    assert earlier.names("serviceaccount") == set()


def test_a_refusal_is_reported_and_fails_no_upgrade(
    control_plane: controlplane.ControlPlane, earlier: Earlier, tmp_path: Path
) -> None:
    """Told of a namespace that it has no right in."""
    (tmp_path / "token").write_text("nobody")
    (tmp_path / "ca.crt").write_text("")
    place = {"ACCOUNT": str(tmp_path), "KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "1"}
    words = [sys.executable, "-c", PROGRAM.read_text(), earlier.namespace]
    done = subprocess.run(words, env={"PATH": os.environ["PATH"]} | place, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "may be left behind" in done.stdout
