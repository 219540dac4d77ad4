"""prometheus-adapter beside a control plane: built once from its Go module, with its own roles and the rules of the examples.

The API server reaches it on this machine by a Service of type ExternalName, since a control plane alone routes nothing to pods,
and trusts the certificate's authority. It takes the API server's word for who asks, as any aggregated API server does.
"""

import base64
import contextlib
import json
import os
import pathlib
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import yaml

from support import authority, controlplane, installed, ports
from toolbox import golang, gotool

EXAMPLES = controlplane.REPOSITORY / "examples" / "autoscaling"
NAME, MODULE, NAMESPACE = "prometheus-adapter", "sigs.k8s.io/prometheus-adapter", "monitoring"
GROUP, VERSIONS = "custom.metrics.k8s.io", ("v1beta1", "v1beta2")
ROLES = ("cluster-role", "cluster-role-binding", "cluster-role-binding-delegator", "role-binding-auth-reader")
Raw = dict[str, Any]


def version() -> str:
    found = re.search(rf"^\s*{re.escape(MODULE)} (v\S+)", (golang.MODULE / NAME / "go.mod").read_text(), re.MULTILINE)
    assert found, f"hack/tools/{NAME}/go.mod requires no {MODULE}"
    return found[1]


def program() -> pathlib.Path:
    return gotool.build(NAME, "4 min", f"{MODULE}/cmd/adapter")


def autoscaler(part: float) -> Raw:
    """The HPA of the examples, with a part of its times."""
    text = (EXAMPLES / "hpa.yaml").read_text()
    text = re.sub(r"(Seconds: )(\d+)", lambda found: f"{found[1]}{max(1, round(int(found[2]) * part))}", text)
    return dict(yaml.safe_load(text))


@contextlib.contextmanager
def running(plane: controlplane.ControlPlane, url: str, folder: pathlib.Path) -> Iterator[None]:
    """It serves custom metrics of the Prometheus at `url` within the block."""
    plane.kubectl("create", "namespace", NAMESPACE)
    for name in ("service-account", *ROLES):
        plane.kubectl("apply", "-f", gotool.source(NAME, MODULE) / "deploy" / "manifests" / f"{name}.yaml")
    port = ports.free()
    ca, certificate, key = authority.issue(folder, f"{NAME}.{NAMESPACE}.svc")
    plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(_registration(port, ca)))
    kubeconfig = installed.kubeconfig(plane, NAME, NAMESPACE, folder / "kubeconfig")
    config = folder / "config.yaml"
    rules = yaml.safe_load((EXAMPLES / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    config.write_text(yaml.safe_dump({"rules": rules}))  # as the Helm chart makes it
    words = [
        program(), f"--secure-port={port}", "--bind-address=127.0.0.1",
        f"--tls-cert-file={certificate}", f"--tls-private-key-file={key}",
        *(f"--{what}-kubeconfig={kubeconfig}" for what in ("lister", "authentication", "authorization")),
        f"--prometheus-url={url}/", f"--config={config}", "--metrics-relist-interval=1m",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, env={"PATH": os.environ["PATH"]})
    try:
        for name in VERSIONS:
            plane.kubectl("wait", "--for=condition=Available", "--timeout=50s", f"apiservice/{name}.{GROUP}")
        yield
    finally:
        process.terminate()
        process.wait(30)


def _registration(port: int, ca: pathlib.Path) -> Raw:
    meta = {"name": NAME, "namespace": NAMESPACE}
    spec = {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]}
    shared = {
        "group": GROUP,
        "groupPriorityMinimum": 100,
        "versionPriority": 100,
        "caBundle": base64.b64encode(ca.read_bytes()).decode(),
        "service": meta | {"port": port},
    }
    kind = {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService"}
    registered = [
        kind | {"metadata": {"name": f"{one}.{GROUP}"}, "spec": shared | {"version": one}} for one in VERSIONS
    ]
    service = {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}
    return {"apiVersion": "v1", "kind": "List", "items": [service, *registered]}
