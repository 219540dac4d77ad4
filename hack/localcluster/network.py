"""The node's network: one private bridge, on which the API server, S3 and DNS listen, and to which all pods are connected."""

import contextlib
import ipaddress
import json
from pathlib import Path

from localcluster.plan import Plan
from toolbox import debian, say, shell

BRIDGE = "finetune0"
CNI_NAME = "finetune-localcluster"
NAMESPACES = Path("/run/netns")
_SUBNETS = tuple(f"10.{second}.0.0/24" for second in (244, 245, 246, 247, 249, 251))
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_BRIDGE_TO_IPTABLES = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


def choose_subnet() -> str:
    """The first of our subnets that nothing on this machine uses."""
    used = _used_networks()
    for subnet in _SUBNETS:
        if not any(ipaddress.ip_network(subnet).overlaps(network) for network in used):
            return subnet
    raise say.Problem(f"every subnet for pods is in use on this machine: {', '.join(_SUBNETS)}")


def _used_networks() -> list[ipaddress.IPv4Network]:
    routes = json.loads(shell.run(["ip", "-json", "-4", "route"]) or "[]")
    return [ipaddress.IPv4Network(route["dst"]) for route in routes if route.get("dst", "default") != "default"]


def gateway(subnet: str) -> str:
    return str(ipaddress.IPv4Network(subnet)[1])


def forwarding() -> str:
    return _FORWARDING.read_text().strip()


def set_forwarding(value: str) -> None:
    if forwarding() != value:
        _FORWARDING.write_text(value)


def create(plan: Plan) -> None:
    """Creates the bridge and enables forwarding between pods and Services."""
    length = plan.subnet.rsplit("/", 1)[1]
    if not Path("/sys/class/net", BRIDGE).exists():
        shell.run(["ip", "link", "add", BRIDGE, "type", "bridge"])
    shell.run(["ip", "address", "replace", f"{plan.address}/{length}", "dev", BRIDGE])
    shell.run(["ip", "link", "set", BRIDGE, "up"])
    set_forwarding("1")
    # Answers from a Service's pod to a pod on the same bridge must pass iptables too, or their address is never
    # translated back. Older kernels have this as a module.
    if shell.find("modprobe"):
        shell.run(["modprobe", "br_netfilter"], check=False)
    if _BRIDGE_TO_IPTABLES.exists():
        _BRIDGE_TO_IPTABLES.write_text("1")
    folder = plan.state / "cni"
    folder.mkdir(exist_ok=True)
    (folder / "10-local.conflist").write_text(json.dumps(cni(plan)))


def cni(plan: Plan) -> dict[str, object]:
    """Addresses from the subnet, the bridge as gateway; no masquerading: pods reach the machine, not the world."""
    return {
        "cniVersion": "0.4.0",
        "name": CNI_NAME,
        "plugins": [
            {
                "type": "bridge",
                "bridge": BRIDGE,
                "isGateway": True,
                "ipMasq": False,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "subnet": plan.subnet,
                    "gateway": plan.address,
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "dataDir": str(plan.state / "cni-addresses"),
                },
            }
        ],
    }


def cni_plugins() -> str:
    return str(Path(debian.locate("/usr/lib/cni/bridge") or "/usr/lib/cni/bridge").parent)


def forget_results() -> None:
    """Removes what CNI remembers of our containers; theirs is also the record of each one's loopback interface."""
    results = Path("/var/lib/cni/results")
    for path in results.glob(f"{CNI_NAME}-*"):
        container = path.name.removeprefix(f"{CNI_NAME}-").rsplit("-", 1)[0]
        for record in results.glob(f"*-{container}-*"):
            record.unlink(missing_ok=True)
    for folder in (results, results.parent):
        with contextlib.suppress(OSError):
            folder.rmdir()
