"""KEDA beside a control plane: its operator, which makes an HPA of a ScaledObject, and its metrics server.

Built once from its Go module, with its own CRDs and roles. The certificates are ours, its admission webhooks do not run.
"""

import contextlib
import pathlib
from collections.abc import Iterator

from tests.bench.operator import place

from bench.scale import aggregated
from support import authority, controlplane, installed, ports
from toolbox import gotool

NAME, TOOL, MODULE, NAMESPACE = "KEDA", "keda", "github.com/kedacore/keda/v2", "keda"
ACCOUNT, SERVICE = "keda-operator", "keda-metrics-apiserver"
USER = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"
HPA = "keda-hpa-chat"
ABOUT = "KEDA's operator and metrics server (its admission webhooks do not run, its certificates are ours)"
PAGE, COMMAND = "scale-check-keda.md", 'make scale-check ARGS="--keda"'
GROUP, VERSIONS = "external.metrics.k8s.io", ("v1beta1",)
ROLES = ("rbac/role", "rbac/role_binding", "metrics-server/role", "metrics-server/role_binding")


def version() -> str:
    return gotool.version(TOOL, MODULE)


def programs() -> list[pathlib.Path]:
    return [gotool.build(TOOL, "23 min of a core", f"{MODULE}/cmd/{name}") for name in ("operator", "adapter")]


def autoscaler(part: float, url: str) -> aggregated.Raw:
    made = aggregated.example("keda.yaml", part)
    for trigger in made["spec"]["triggers"]:
        trigger["metadata"]["serverAddress"] = url
    return made


@contextlib.contextmanager
def running(plane: controlplane.ControlPlane, url: str, folder: pathlib.Path) -> Iterator[None]:
    """It scales by any Prometheus that a ScaledObject names, within the block."""
    config = gotool.source(TOOL, MODULE) / "config"
    crds = config / "crd" / "bases"
    plane.kubectl("apply", "--server-side", "-f", crds)
    plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", crds)
    plane.kubectl("create", "namespace", NAMESPACE)
    plane.kubectl("create", "serviceaccount", ACCOUNT, f"--namespace={NAMESPACE}")
    for name in ROLES:
        plane.kubectl("apply", "-f", config / f"{name}.yaml")
    host = f"{SERVICE}.{NAMESPACE}.svc"
    ca, certificate, key = authority.issue(folder, host)
    kubeconfig = installed.kubeconfig(plane, ACCOUNT, NAMESPACE, folder / "kubeconfig")
    within = ("POD_NAMESPACE", "KEDA_CLUSTER_OBJECT_NAMESPACE")
    environment = {"KUBECONFIG": str(kubeconfig), "WATCH_NAMESPACE": ""} | dict.fromkeys(within, NAMESPACE)
    between, port = f"127.0.0.1:{ports.free()}", ports.free()
    operator, server = programs()
    asked = [
        operator, f"--cert-dir={folder}", f"--metrics-service-bind-address={between}",
        "--health-probe-bind-address=0", "--enable-prometheus-metrics=false",
    ]  # fmt: skip
    asking = [
        server, f"--secure-port={port}", "--bind-address=127.0.0.1", f"--port={ports.free()}", f"--cert-dir={folder}",
        f"--tls-cert-file={certificate}", f"--tls-private-key-file={key}",
        *(f"--{what}-kubeconfig={kubeconfig}" for what in ("lister", "authentication", "authorization")),
        f"--metrics-service-address={between}", f"--metrics-service-grpc-authority={host}",
    ]  # fmt: skip
    aggregated.register(plane, {"name": SERVICE, "namespace": NAMESPACE}, GROUP, VERSIONS, port, ca)
    with (
        place.running(asked, folder / "operator.log", **environment),
        place.running(asking, folder / "server.log", **environment),
    ):
        aggregated.available(plane, GROUP, VERSIONS)
        yield
