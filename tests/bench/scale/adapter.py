"""prometheus-adapter beside a control plane: built once from its Go module, with its own roles and the rules of the examples."""

import contextlib
import pathlib
from collections.abc import Iterator

import yaml
from tests.bench.operator import place

from bench.scale import aggregated
from support import authority, controlplane, installed, ports
from toolbox import gotool

NAME, MODULE, NAMESPACE = "prometheus-adapter", "sigs.k8s.io/prometheus-adapter", "monitoring"
USER = f"system:serviceaccount:{NAMESPACE}:{NAME}"
HPA = "chat"
ABOUT = "prometheus-adapter, which lists series every minute"
PAGE, COMMAND = "scale-check.md", "make scale-check"
GROUP, VERSIONS = "custom.metrics.k8s.io", ("v1beta1", "v1beta2")
ROLES = ("cluster-role", "cluster-role-binding", "cluster-role-binding-delegator", "role-binding-auth-reader")


def version() -> str:
    return gotool.version(NAME, MODULE)


def programs() -> list[pathlib.Path]:
    return [gotool.build(NAME, "4 min", f"{MODULE}/cmd/adapter")]


def autoscaler(part: float, url: str) -> aggregated.Raw:
    return aggregated.example("hpa.yaml", part)


@contextlib.contextmanager
def running(plane: controlplane.ControlPlane, url: str, folder: pathlib.Path) -> Iterator[None]:
    """It serves custom metrics of the Prometheus at `url` within the block."""
    plane.kubectl("create", "namespace", NAMESPACE)
    for name in ("service-account", *ROLES):
        plane.kubectl("apply", "-f", gotool.source(NAME, MODULE) / "deploy" / "manifests" / f"{name}.yaml")
    port = ports.free()
    ca, certificate, key = authority.issue(folder, f"{NAME}.{NAMESPACE}.svc")
    aggregated.register(plane, {"name": NAME, "namespace": NAMESPACE}, GROUP, VERSIONS, port, ca)
    kubeconfig = installed.kubeconfig(plane, NAME, NAMESPACE, folder / "kubeconfig")
    config = folder / "config.yaml"
    rules = yaml.safe_load((aggregated.EXAMPLES / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    config.write_text(yaml.safe_dump({"rules": rules}))  # as the Helm chart makes it
    words = [
        *programs(), f"--secure-port={port}", "--bind-address=127.0.0.1",
        f"--tls-cert-file={certificate}", f"--tls-private-key-file={key}",
        *(f"--{what}-kubeconfig={kubeconfig}" for what in ("lister", "authentication", "authorization")),
        f"--prometheus-url={url}/", f"--config={config}", "--metrics-relist-interval=1m",
    ]  # fmt: skip
    with place.running(words, folder / "log"):
        aggregated.available(plane, GROUP, VERSIONS)
        yield
