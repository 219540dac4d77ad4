"""Where the demo runs: the local cluster of this machine, or an existing one, behind one interface."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from demo import child
from demo.kube import Kube
from toolbox import cache, say, shell

NAME = "demo"
_LOCALCLUSTER = cache.REPOSITORY / "hack" / "localcluster"


@dataclass(frozen=True)
class ObjectStore:
    """An S3 store: how pods reach it, and its credentials."""

    endpoint: str
    access_key: str
    secret_key: str
    region: str


@dataclass(frozen=True)
class Place:
    local: bool
    kube: Kube
    registry: str
    store: ObjectStore | None  # the cluster's store; None: the demo starts one as a pod
    logs: str = ""


def existing() -> tuple[str, str] | None:
    """KUBECONFIG and REGISTRY of an existing cluster, when both are given; None: the local cluster."""
    config, registry = os.environ.get("KUBECONFIG", ""), os.environ.get("REGISTRY", "")
    if config and not registry:
        raise say.Problem(
            "KUBECONFIG is set and REGISTRY is not. For that cluster, set REGISTRY to a registry to which this machine"
            " may push and from which the cluster may pull (for example localhost:5001 with kind, or"
            " registry.example.com/ml). For a local cluster: env -u KUBECONFIG make demo"
        )
    if registry and not config:
        raise say.Problem(
            "REGISTRY is set and KUBECONFIG is not: set both for an existing cluster, none for a local one"
        )
    return (config, registry) if config else None


def use_existing(config: str, registry: str) -> Place:
    kube = Kube(kubectl=_program("kubectl"), helm=_program("helm"), config=config)
    try:
        kube.run("get", "--raw", "/readyz", timeout=30)
    except say.Problem as problem:
        raise say.Problem(f"the cluster of KUBECONFIG={config} does not answer: {problem}") from problem
    return Place(local=False, kube=kube, registry=registry.rstrip("/"), store=None)


def start_local() -> Place:
    summary = Path(child.tool(_LOCALCLUSTER, "up", "--name", NAME))
    return read(summary)


def running_local() -> Place | None:
    """The demo's local cluster, if it has one."""
    summary = cache.root() / "clusters" / NAME / "cluster.json"
    return read(summary) if summary.exists() else None


def stop_local() -> None:
    child.tool(_LOCALCLUSTER, "down", "--name", NAME)


def read(summary: Path) -> Place:
    document = json.loads(summary.read_text())
    folder = _binaries("kubectl", "helm")
    s3 = document["s3"]
    return Place(
        local=True,
        kube=Kube(kubectl=str(folder / "kubectl"), helm=str(folder / "helm"), config=document["kubeconfig"]),
        registry=document["registry"],
        store=ObjectStore(s3["endpoint"], s3["accessKey"], s3["secretKey"], s3["region"]),
        logs=document["logs"],
    )


def _program(name: str) -> str:
    return shell.find(name) or str(_binaries(name) / name)


def _binaries(*names: str) -> Path:
    return Path(child.tool(_LOCALCLUSTER, "binaries", *names))
