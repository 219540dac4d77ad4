"""The operator on a real control plane, as the chart installs it but as a process: its ServiceAccount, its Role, its settings.

There is no kubelet in a control plane, so a stand-in for one patches the status of pods by hand, as administrator.
"""

import base64
import contextlib
import dataclasses
import datetime
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes.client
import yaml

import finetune_api
from finetune_operator.observe import label
from support import controlplane, ports

SYSTEM = "finetune-system"
LEASE = "finetune-operator"
CHART = controlplane.REPOSITORY / "charts" / "finetune-operator"
NOT_HERE = {"Deployment", "PodDisruptionBudget"}
"""Kinds of the chart that need a node: the process takes their place."""
QUICK = {"retryBackoffSeconds": 0.2, "drainSeconds": 1, "progressSeconds": 0.2}
ADDRESS = "127.0.0.1"
"""Of every pod that is said to run."""
Raw = dict[str, Any]


def rendered(
    plane: controlplane.ControlPlane,
    values: Raw | None = None,
    release: str = "finetune-operator",
    *,
    chart: Path = CHART,
    quick: Raw = QUICK,
) -> list[Raw]:
    """The chart's objects."""
    text = subprocess.run(
        [
            *(plane.bin / "helm", "template", release, chart, f"--namespace={SYSTEM}"),
            *("--kube-version=1.30", "--skip-tests", "--values=-"),
        ],
        input=json.dumps(quick | (values or {})),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


def install(
    plane: controlplane.ControlPlane,
    folder: Path,
    values: Raw | None = None,
    release: str = "finetune-operator",
    *,
    chart: Path = CHART,
    quick: Raw = QUICK,
) -> tuple[Path, Path]:
    """The chart's objects but its pods; a kubeconfig of its ServiceAccount, and its settings file."""
    manifests = [m for m in rendered(plane, values, release, chart=chart, quick=quick) if m["kind"] not in NOT_HERE]
    if plane.run("get", "namespace", SYSTEM).returncode:
        plane.kubectl("create", "namespace", SYSTEM)
    plane.kubectl(
        "apply", "--server-side", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
    )
    account = next(m["metadata"]["name"] for m in manifests if m["kind"] == "ServiceAccount")
    file = folder / "settings.json"
    file.write_text(next(m["data"]["settings.json"] for m in manifests if m["kind"] == "ConfigMap"))
    return kubeconfig(plane, account, SYSTEM, folder / "kubeconfig"), file


def kubeconfig(plane: controlplane.ControlPlane, account: str, namespace: str, file: Path) -> Path:
    """Writes a kubeconfig of a ServiceAccount, for an hour."""
    token = plane.kubectl("create", "token", account, f"--namespace={namespace}", "--duration=1h").strip()
    admin = yaml.safe_load(plane.kubeconfig.read_text())
    user = {"name": account, "user": {"token": token}}
    context = {"name": account, "context": {"cluster": admin["clusters"][0]["name"], "user": account}}
    file.write_text(json.dumps(admin | {"users": [user], "contexts": [context], "current-context": account}))
    return file


@dataclasses.dataclass
class Replica:
    """One process of the operator."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    port: int
    index_port: int = 0

    def log_lines(self) -> list[Raw]:
        """Its log so far; whatever is not one of our JSON lines stands under the message."""
        lines = []
        for line in self.log.read_text().splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                lines.append({"message": line, "level": "?"})
        return lines

    def logged(self, words: str) -> bool:
        return any(words in line["message"] for line in self.log_lines())

    def leads(self) -> bool:
        return self.metric("finetune_leader") == 1

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return float(next(line.rpartition(" ")[2] for line in lines if line.startswith(name + " ")))

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signals this very process and waits for its end; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(20)


def start(name: str, folder: Path, kubeconfig: Path, file: Path, environment: dict[str, str] | None = None) -> Replica:
    """A replica as a process; `environment` is added to the little that it gets."""
    port, index_port = ports.free(), ports.free()
    log = folder / f"{name}.log"
    stored = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    home = {"HOME": str(folder), "KUBECONFIG": str(kubeconfig)}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "finetune_operator", f"--settings={file}", "--host=127.0.0.1"),
                *(f"--port={port}", f"--index-port={index_port}"),
            ],
            env=stored | home | {"POD_NAME": name, "POD_NAMESPACE": SYSTEM} | (environment or {}),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    return Replica(name, process, log, port, index_port)


PATIENCE = 4
"""Times the seconds of a quiet machine that a condition may take: the lanes of a whole run share two cores."""


def eventually(what: Callable[[], Any], seconds: float = 20, pause: float = 0.05) -> Any:
    """The first truthy answer; fails with the last error or answer when there is none in PATIENCE times `seconds`."""
    seconds *= PATIENCE
    end = time.monotonic() + seconds
    while True:
        try:
            answer, error = what(), None
        except (kubernetes.client.ApiException, OSError, LookupError) as problem:
            answer, error = None, problem
        if answer:
            return answer
        assert time.monotonic() < end, f"not within {seconds} s; the last was {error or answer!r}"
        time.sleep(pause)


class Stage:
    """One namespace of jobs, seen and moved by the administrator. Plays the kubelet."""

    def __init__(self, client: kubernetes.client.ApiClient, namespace: str, answer: Callable[[Raw], str]) -> None:
        self.client, self.namespace, self.answer = client, namespace, answer
        self.core = kubernetes.client.CoreV1Api(client)
        self.batch = kubernetes.client.BatchV1Api(client)
        self.apps = kubernetes.client.AppsV1Api(client)
        self.custom = kubernetes.client.CustomObjectsApi(client)
        self.where = (finetune_api.GROUP, finetune_api.VERSION, namespace, "finetunejobs")

    def apply(self, manifest: Raw) -> None:
        self.custom.create_namespaced_custom_object(*self.where, manifest)

    def edit(self, name: str, patch: Raw) -> None:
        self.custom.patch_namespaced_custom_object(*self.where, name, patch)

    def delete(self, name: str) -> None:
        self.custom.delete_namespaced_custom_object(*self.where, name)

    def job(self, name: str) -> Raw:
        return self.custom.get_namespaced_custom_object(*self.where, name)

    def phase(self, name: str) -> str | None:
        return self.job(name).get("status", {}).get("phase")

    def condition(self, name: str, kind: str) -> Raw:
        found = [c for c in self.job(name).get("status", {}).get("conditions", []) if c["type"] == kind]
        return found[0] if found else {}

    def pods(self, **labels: str) -> list[Raw]:
        selector = ",".join([label.UID, *(f"{key}={value}" for key, value in labels.items())])
        listed = self.core.list_namespaced_pod(self.namespace, label_selector=selector)
        return [self.client.sanitize_for_serialization(pod) for pod in listed.items]

    def names(self, kind: str) -> list[str]:
        """Names of all children of a kind."""
        lists = {
            "Job": self.batch.list_namespaced_job,
            "Deployment": self.apps.list_namespaced_deployment,
            "Service": self.core.list_namespaced_service,
            "ConfigMap": self.core.list_namespaced_config_map,
            "ServiceAccount": self.core.list_namespaced_service_account,
            "Role": kubernetes.client.RbacAuthorizationV1Api(self.client).list_namespaced_role,
            "RoleBinding": kubernetes.client.RbacAuthorizationV1Api(self.client).list_namespaced_role_binding,
        }
        return sorted(item.metadata.name for item in lists[kind](self.namespace, label_selector=label.UID).items)

    def place(self, pod: Raw, name: str = "stage") -> None:
        """Be the scheduler: only a pod that has a node is stopped in two steps, as on a real one."""
        node = {"metadata": {"name": name}}
        with contextlib.suppress(kubernetes.client.ApiException):
            self.core.create_node(node)
        target = {"apiVersion": "v1", "kind": "Node", "name": name}
        body = {"metadata": {"name": pod["metadata"]["name"]}, "target": target}
        self.core.create_namespaced_pod_binding(pod["metadata"]["name"], self.namespace, body, _preload_content=False)

    def stop(self, pod: Raw) -> None:
        """Wait until somebody deletes the pod, then let its container stop and the pod go."""
        name = pod["metadata"]["name"]
        eventually(lambda: self.core.read_namespaced_pod(name, self.namespace).metadata.deletion_timestamp)
        self.end(pod, 143)
        self.core.delete_namespaced_pod(name, self.namespace, grace_period_seconds=0)

    def evict(self, pod: Raw) -> None:
        """As `kubectl drain` does."""
        meta = {"name": pod["metadata"]["name"], "namespace": self.namespace}
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": meta}
        self.core.create_namespaced_pod_eviction(meta["name"], self.namespace, body)

    def _patch(self, pod: Raw, status: Raw) -> None:
        try:
            self.core.patch_namespaced_pod_status(pod["metadata"]["name"], self.namespace, {"status": status})
        except kubernetes.client.ApiException as error:
            if error.status != 404:
                raise

    def run(self, pod: Raw) -> None:
        """The container runs; a server's is ready."""
        name = pod["spec"]["containers"][0]["name"]
        server = bool({label.RELEASE, label.POOL} & set(pod["metadata"]["labels"]))
        ready = {"type": "Ready", "status": "True" if server else "False"}
        container = {"name": name, "ready": server, "started": True, "restartCount": 0, "image": "i", "imageID": "i"}
        state = {"running": {"startedAt": now()}}
        self._patch(
            pod,
            {
                "phase": "Running",
                "startTime": now(),
                "podIP": ADDRESS,
                "podIPs": [{"ip": ADDRESS}],
                "conditions": [ready],
                "containerStatuses": [container | {"state": state}],
            },
        )

    def end(self, pod: Raw, code: int = 0, message: str = "", reason: str = "") -> None:
        """The container ends."""
        name = pod["spec"]["containers"][0]["name"]
        container = {"name": name, "ready": False, "restartCount": 0, "image": "i", "imageID": "i"}
        ended = {
            "exitCode": code, "message": message, "startedAt": now(), "finishedAt": now(),
            "reason": reason or ("Completed" if code == 0 else "Error"),
        }  # fmt: skip
        phase = "Succeeded" if code == 0 else "Failed"
        self._patch(pod, {"phase": phase, "containerStatuses": [container | {"state": {"terminated": ended}}]})

    def step(self, until: str = "") -> None:
        """Every pod goes one step further; those of the stage `until` and later ones stay where they are."""
        for pod in self.pods():
            stage, phase = pod["metadata"]["labels"].get(label.STAGE, "server"), pod["status"]["phase"]
            if stage == until or phase not in {"Pending", "Running"}:
                continue
            if phase == "Pending":
                self.run(pod)
            elif stage != "server":
                self.end(pod, 0, self.answer(pod["metadata"]["labels"]))

    def play(self, name: str, phase: str, seconds: float = 30) -> None:
        """Be the kubelet until the job has this phase."""

        def there() -> bool:
            self.step()
            return self.phase(name) == phase

        eventually(there, seconds)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def user_of(kubeconfig: Path) -> str:
    """The user that a kubeconfig's token stands for."""
    token = json.loads(kubeconfig.read_text())["users"][0]["user"]["token"]
    body = token.split(".")[1]
    return str(json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["sub"])
