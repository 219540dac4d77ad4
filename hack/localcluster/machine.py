"""What a node changes on the machine, recorded beforehand, and how all of it is undone.

The bridge, network namespaces, iptables chains and control groups belong to the machine, so there is one node at a
time; the record in /run is valid for the whole machine, also for a run with another cache folder or after a kill.
"""

import contextlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from localcluster import cgroups, network, process, shims
from toolbox import cache, mounts, say, shell

RECORD = Path("/run/finetune-localcluster.json")
LOCK = Path("/run/finetune-localcluster.lock")
# The kubelet makes these wherever its own folder is.
_DEVICE_PLUGINS = Path("/var/lib/kubelet/device-plugins")
_TABLES = ("filter", "nat", "mangle", "raw")


@dataclass(frozen=True)
class Node:
    """The machine's one node. `foreign` are network namespaces, `forwarding` the setting, from before it."""

    name: str
    cache: str
    foreign: tuple[str, ...]
    forwarding: str
    containers: str  # the folder of containerd's layers

    @property
    def state(self) -> Path:
        return Path(self.cache) / "clusters" / self.name


def current() -> Node | None:
    try:
        fields = json.loads(RECORD.read_text())
        return Node(**{**fields, "foreign": tuple(fields["foreign"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def remember(name: str, containers: Path) -> None:
    foreign = tuple(path.name for path in network.NAMESPACES.glob("cni-*"))
    node = Node(name, str(cache.root()), foreign, network.forwarding(), str(containers))
    RECORD.write_text(json.dumps(asdict(node)))


def running(node: Node) -> bool:
    """Whether anything of the recorded node still runs."""
    return any(process.alive(record) for record in process.load(node.state / "processes").values())


def claim(name: str) -> None:
    """Makes sure that the machine is free for a node of this name: refuses when one runs, cleans up after dead ones."""
    node = current()
    if node and running(node):
        own = "" if node.cache == str(cache.root()) else f"FINETUNE_CACHE={node.cache} "
        raise say.Problem(
            f"the node '{node.name}' is running on this machine, and there can be only one (bridges, iptables chains"
            f" and control groups are the machine's).\n  Use it:   {own}python3 hack/localcluster env --name"
            f" {node.name}\n  Stop it:  {own}python3 hack/localcluster down --name {node.name}\n  Without a node, any"
            f" number of control planes can run: python3 hack/localcluster up --control-plane-only --name {name}"
        )
    if node:
        with say.step(f"cleaning up after the node '{node.name}', which did not end properly"):
            clean(node)
    if found := foreign_node():
        raise say.Problem(
            f"another {found} runs on this machine: this is a Kubernetes node already, and a second one would break"
            " it. Give its KUBECONFIG and a REGISTRY instead."
        )


def foreign_node() -> str | None:
    """A kubelet or kube-proxy that is not ours, by name and pid."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            program = path.read_text().strip()
        except OSError:
            continue
        # One that ended a moment ago is listed until its parent takes note.
        if program in ("kubelet", "kube-proxy") and process.start_time(int(path.parent.name)) is not None:
            return f"{program} (pid {path.parent.name})"
    return None


def clean(node: Node) -> None:
    """Undoes everything that the node changed; its processes, but for the pods', have ended."""
    cgroups.kill()
    shims.end(node.state / "containerd.sock")
    mounts.remove(node.state)
    mounts.remove(Path(node.containers))
    for path in network.NAMESPACES.glob("cni-*"):
        if path.name not in node.foreign:
            shell.run(["ip", "netns", "delete", path.name], check=False)
    if Path("/sys/class/net", network.BRIDGE).exists():
        shell.run(["ip", "link", "delete", network.BRIDGE])
    for family in ("iptables", "ip6tables"):
        if shell.find(family):
            _remove_chains(family)
    network.forget_results()
    logs = Path(node.cache) / "logs" / node.name
    for path in Path("/var/log/containers").glob("*.log"):
        if path.is_symlink() and path.readlink().is_relative_to(logs):
            path.unlink(missing_ok=True)
    _remove_empty(Path("/var/log/containers"))
    _remove_empty(network.NAMESPACES)
    _DEVICE_PLUGINS.joinpath("kubelet.sock").unlink(missing_ok=True)
    _remove_empty(_DEVICE_PLUGINS)
    _remove_empty(_DEVICE_PLUGINS.parent)
    cgroups.remove()
    network.set_forwarding(node.forwarding)
    RECORD.unlink(missing_ok=True)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _remove_chains(family: str) -> None:
    for table in _TABLES:
        rules = shell.run([f"{family}-save", "-t", table], check=False)
        if script := chain_removal(table, rules):
            shell.run([f"{family}-restore", "--noflush"], stdin=script)


def chain_removal(table: str, rules: str) -> str:
    """Input for iptables-restore that removes Kubernetes' chains and the jumps into them; empty: there are none."""
    chains = re.findall(r"^:(KUBE-\S+)", rules, re.MULTILINE)
    if not chains:
        return ""
    jumps = re.findall(r"^-A ((?!KUBE-)\S+ .*-j KUBE-\S+.*)$", rules, re.MULTILINE)
    lines = [f"*{table}", *(f":{chain} - [0:0]" for chain in chains), *(f"-D {jump}" for jump in jumps)]
    return "\n".join([*lines, *(f"-X {chain}" for chain in chains), "COMMIT", ""])
