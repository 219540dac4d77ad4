"""One cluster as requested: its name, folders, address and ports. Everything else is derived from it.

Written to plan.json in the cluster's state before the first process starts, so that every later command, and the next
one after a crash, knows the cluster.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from toolbox import cache, say

REGION = "us-east-1"
SERVICES = "10.96.0.0/16"
SERVICES_FIRST = "10.96.0.1"
_CONTROL_PLANE_PORTS = ("etcd", "etcd-peer", "apiserver", "controller-manager")
_NODE_PORTS = ("kubelet", "kubelet-health", "proxy-health", "proxy-metrics", "registry")


@dataclass(frozen=True)
class Plan:
    name: str
    bin: str
    address: str  # where the API server and S3 listen: the bridge's address when there is a node
    node: bool
    scheduler: bool
    s3: bool
    subnet: str = ""  # of the pods
    ports: dict[str, int] = field(default_factory=dict)
    access_key: str = ""
    secret_key: str = ""

    @property
    def state(self) -> Path:
        return clusters() / self.name

    @property
    def logs(self) -> Path:
        return cache.root() / "logs" / self.name

    @property
    def certificates(self) -> Path:
        return self.state / "certificates"

    @property
    def records(self) -> Path:
        return self.state / "processes"

    @property
    def server(self) -> str:
        return f"https://{self.address}:{self.ports['apiserver']}"

    @property
    def s3_endpoint(self) -> str:
        return f"http://{self.address}:{self.ports['s3']}"

    @property
    def registry(self) -> str:
        return f"127.0.0.1:{self.ports['registry']}"

    @property
    def node_name(self) -> str:
        return f"{self.name}-node"

    @property
    def containerd_socket(self) -> Path:
        return self.state / "containerd.sock"

    def kubeconfig(self, identity: str) -> Path:
        return self.state / f"{identity}.kubeconfig"

    def binary(self, name: str) -> Path:
        return Path(self.bin) / name

    def port_names(self) -> tuple[str, ...]:
        names: tuple[str, ...] = _CONTROL_PLANE_PORTS
        if self.scheduler:
            names = (*names, "scheduler")
        if self.s3:
            names = (*names, "s3")
        return (*names, *_NODE_PORTS) if self.node else names

    def save(self) -> None:
        path = self.state / "plan.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(self), indent=2))

    def summary(self) -> dict[str, object]:
        """What users of the cluster need to know: the contents of cluster.json."""
        return {
            "name": self.name,
            "kubeconfig": str(self.kubeconfig("admin")),
            "node": self.node,
            "apiserver": self.server,
            "registry": self.registry if self.node else None,
            "s3": {
                "endpoint": self.s3_endpoint,
                "accessKey": self.access_key,
                "secretKey": self.secret_key,
                "region": REGION,
            }
            if self.s3
            else None,
            "auditLog": str(self.logs / "audit.log"),
            "logs": str(self.logs),
            "bin": self.bin,
            "containerdSocket": str(self.containerd_socket) if self.node else None,
        }


def clusters() -> Path:
    return cache.root() / "clusters"


def check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?", name):
        raise say.Problem(f"'{name}' is no cluster name: use up to 20 of a-z, 0-9 and inner dashes")


def check_socket(name: str) -> None:
    """A node has sockets in its state folder, and their names have a limit."""
    socket = clusters() / name / "containerd.sock.ttrpc"
    if len(str(socket)) > 100:
        raise say.Problem(
            f"{socket} is too long for a Unix socket (100 characters): set FINETUNE_CACHE to a shorter folder"
        )


def load(name: str) -> Plan | None:
    try:
        return Plan(**json.loads((clusters() / name / "plan.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def names() -> list[str]:
    """The clusters that have a state folder, running or not."""
    return sorted(path.name for path in clusters().glob("*") if path.is_dir())


def all_plans() -> Iterator[Plan]:
    for name in names():
        if plan := load(name):
            yield plan
