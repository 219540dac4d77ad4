"""What the Prometheus operator makes of the chart's PodMonitors and alerts: the real program, on a real control plane.

It answers with the configuration of a Prometheus; the pods that it would start never are, since no node is there.
"""

import base64
import contextlib
import gzip
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from support import controlplane, installed, ports
from toolbox import gotool

TOOL, MODULE = "prometheus-operator", "github.com/prometheus-operator/prometheus-operator"
NAMESPACE, NAME = "monitoring", "monitoring"
SELECTED = {"release": NAME}
"""The label that this Prometheus wants of what it takes, as that of kube-prometheus-stack does."""
_TAKES = {"matchLabels": SELECTED}
_PROMETHEUS = {
    "apiVersion": f"{NAMESPACE}.coreos.com/v1",
    "kind": "Prometheus",
    "metadata": {"name": NAME, "namespace": NAMESPACE},
    "spec": {
        **{f"{kind}Selector": _TAKES for kind in ("podMonitor", "serviceMonitor", "rule")},
        **{f"{kind}NamespaceSelector": {} for kind in ("podMonitor", "serviceMonitor", "rule")},
    },
}


class Made:
    """What it has made so far."""

    def __init__(self, plane: controlplane.ControlPlane) -> None:
        self._plane = plane

    def scrape_configs(self) -> list[dict[str, Any]]:
        done = self._plane.run("get", "secret", f"prometheus-{NAME}", "--namespace", NAMESPACE, "--output=json")
        if done.returncode:
            return []
        packed = json.loads(done.stdout)["data"]["prometheus.yaml.gz"]
        # In its pod the reloader would put the number of the replica there.
        text = gzip.decompress(base64.b64decode(packed)).decode().replace("$(SHARD)", "0")
        config = yaml.safe_load(text) or {}
        found: list[dict[str, Any]] = config.get("scrape_configs", [])
        return found

    def alerts(self) -> set[str]:
        """The names of all alerts that it would load."""
        items = json.loads(self._plane.kubectl("get", "configmaps", "--namespace", NAMESPACE, "--output=json"))["items"]
        files = [text for item in items for text in item.get("data", {}).values() if "groups:" in text]
        groups = [group for text in files for group in yaml.safe_load(text)["groups"]]
        return {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}


@contextlib.contextmanager
def running(plane: controlplane.ControlPlane, folder: Path) -> Iterator[Made]:
    """Its CRDs, a Prometheus that selects by the label of `SELECTED`, and the program, as long as the block lasts."""
    program = gotool.build(TOOL, "2 min", f"{MODULE}/cmd/operator")
    crds = sorted((gotool.source(TOOL, MODULE) / "example" / "prometheus-operator-crd").glob("*.yaml"))
    named = [word for crd in crds for word in ("-f", crd)]
    plane.kubectl("apply", "--server-side", *named)
    waits = ("wait", "--for=condition=Established", "--timeout=30s", *named)
    installed.eventually(lambda: plane.run(*waits).returncode == 0, 60)
    plane.kubectl("create", "namespace", NAMESPACE)
    installed.eventually(lambda: plane.run("create", "-f", "-", stdin=json.dumps(_PROMETHEUS)).returncode == 0, 30)
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "KUBECONFIG": str(plane.kubeconfig)}
    with (folder / "prometheus-operator.log").open("wb") as log:
        address = f"--web.listen-address=127.0.0.1:{ports.free()}"
        process = subprocess.Popen([program, address], env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield Made(plane)
    finally:
        process.terminate()
        process.wait(30)
