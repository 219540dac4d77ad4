"""The node's processes: containerd, kubelet, kube-proxy and CoreDNS, with their configuration files."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from localcluster import api, cgroups, network
from localcluster.plan import Plan
from toolbox import cache, overlay, say, shell

_PAUSE = "localhost/pause:local"
_SYS_RESOURCE = 24  # the capability that lowering an OOM score needs


def containerd_root() -> Path:
    """Images stay between runs: the second start of a cluster pulls nothing."""
    return cache.folder("containerd")


def containerd(plan: Plan) -> list[str | Path]:
    root = containerd_root()
    config = plan.state / "containerd.toml"
    cri = "io.containerd.grpc.v1.cri"
    config.write_text(f"""version = 2
root = "{root}"
state = "{plan.state / "containerd"}"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.tracing"]
[grpc]
address = "{plan.containerd_socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "{root / "opt"}"
[plugins."{cri}"]
sandbox_image = "{_PAUSE}"
restrict_oom_score_adj = {json.dumps(not may_lower_oom_score())}
[plugins."{cri}".cni]
bin_dir = "{network.cni_plugins()}"
conf_dir = "{plan.state / "cni"}"
[plugins."{cri}".containerd]
snapshotter = "{"overlayfs" if overlay.works(root) else "native"}"
# The compressed layers are in the registry as well; unpacked ones are what containers need.
discard_unpacked_layers = true
[plugins."{cri}".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."{cri}".containerd.runtimes.runc.options]
BinaryName = "{shell.find("runc") or "runc"}"
SystemdCgroup = false
Root = "{plan.state / "runc"}"
""")
    return ["containerd", "--config", config]


def may_lower_oom_score() -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _SYS_RESOURCE & 1)
    return False


def ctr(plan: Plan, *words: str | Path, check: bool = True) -> str:
    argv: list[str | Path] = ["ctr", "--address", plan.containerd_socket, "--namespace", "k8s.io", *words]
    return shell.run(argv, timeout=60, check=check)


def containerd_answers(plan: Plan) -> bool:
    if not plan.containerd_socket.exists():
        return False
    argv: list[str | Path] = ["ctr", "--address", plan.containerd_socket, "--connect-timeout", "1s", "version"]
    return "Server:" in shell.run(argv, timeout=5, check=False)


def remove_containers(plan: Plan) -> None:
    """Forgets every container; their processes are dead already. Images and their layers stay."""
    if left := ctr(plan, "containers", "list", "--quiet", check=False).split():
        ctr(plan, "tasks", "delete", "--force", *left, check=False)
        ctr(plan, "containers", "delete", *left, check=False)


def import_pause(plan: Plan) -> None:
    if _PAUSE in ctr(plan, "images", "list", "--quiet").split():
        return
    archive = plan.state / "pause.tar"
    archive.write_bytes(image_archive(plan.binary("pause").read_bytes(), "pause", _PAUSE))
    ctr(plan, "images", "import", archive)
    archive.unlink()


def prune_images(plan: Plan) -> None:
    """Removes images of ours that newer builds replaced; the image builder's list says which are recent."""
    listed = cache.root() / "images" / "recent.json"
    recent: dict[str, list[str]] = json.loads(listed.read_text()) if listed.exists() else {}
    rows = [line.split() for line in ctr(plan, "images", "list").splitlines()[1:]]
    images = [(row[0], row[2]) for row in rows if len(row) > 2]
    if old := outdated(images, plan.registry, recent):
        say.line(f"  removing {len(old)} images from the node that newer builds replaced")
        ctr(plan, "images", "remove", "--sync", *old)


def outdated(images: Sequence[tuple[str, str]], registry: str, recent: Mapping[str, Sequence[str]]) -> list[str]:
    """Names to remove, of (name, digest) pairs: one image has a tag, a digest and an id as names, all of one digest."""
    gone: set[str] = set()
    recent_digests: set[str] = set()
    for name, digest in images:
        repository, _, tag = name.removeprefix(f"{registry}/").rpartition(":")
        if name.startswith(f"{registry}/") and "@" not in name and repository in recent:
            (recent_digests if tag in recent[repository] else gone).add(digest)
    return [name for name, digest in images if digest in gone - recent_digests]


def image_archive(program: bytes, name: str, reference: str) -> bytes:
    """An image of one static program, in the format of `docker save`, without any image builder."""
    layer = _tar({name: (program, 0o755)})
    config = json.dumps(
        {
            "architecture": api.architecture(),
            "os": "linux",
            "config": {"Entrypoint": [f"/{name}"], "User": "65535:65535"},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
    ).encode()
    digest = hashlib.sha256(config).hexdigest()
    index = [{"Config": f"{digest}.json", "RepoTags": [reference], "Layers": ["layer.tar"]}]
    return _tar(
        {
            f"{digest}.json": (config, 0o644),
            "layer.tar": (layer, 0o644),
            "manifest.json": (json.dumps(index).encode(), 0o644),
        }
    )


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, (content, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def kubelet(plan: Plan) -> list[str | Path]:
    resolver = Path("/run/systemd/resolve/resolv.conf")
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": plan.address,
        "port": plan.ports["kubelet"],
        "healthzPort": plan.ports["kubelet-health"],
        "authentication": {
            "x509": {"clientCAFile": str(plan.certificates / "ca.crt")},
            "webhook": {"enabled": True},
            "anonymous": {"enabled": False},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(plan.certificates / "kubelet.crt"),
        "tlsPrivateKeyFile": str(plan.certificates / "kubelet.key"),
        "containerRuntimeEndpoint": f"unix://{plan.containerd_socket}",
        "clusterDNS": [plan.address],
        "clusterDomain": "cluster.local",
        "resolvConf": str(resolver if resolver.exists() else "/etc/resolv.conf"),
        "podLogsDir": str(plan.logs / "pods"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroups.NAME}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": ["none"],
        # The machine is also used for development: do not evict pods or images before memory is really short.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
        },
        "makeIPTablesUtilChains": False,
        "registerNode": True,
        "shutdownGracePeriod": "0s",
        "syncFrequency": "10s",
        # Tests wait for the eviction of a pod that fills its disk.
        "volumeStatsAggPeriod": "10s",
        "serializeImagePulls": False,
        "maxPods": 200,
        "volumePluginDir": str(plan.state / "volume-plugins"),
    }
    path = plan.state / "kubelet.json"
    path.write_text(json.dumps(config, indent=2))
    return [
        plan.binary("kubelet"),
        f"--config={path}",
        f"--kubeconfig={plan.kubeconfig('kubelet')}",
        f"--root-dir={plan.state / 'kubelet'}",
        f"--hostname-override={plan.node_name}",
        f"--node-ip={plan.address}",
    ]


def proxy(plan: Plan) -> list[str | Path]:
    config = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": str(plan.kubeconfig("proxy"))},
        "hostnameOverride": plan.node_name,
        "bindAddress": plan.address,
        "clusterCIDR": plan.subnet,
        "healthzBindAddress": f"127.0.0.1:{plan.ports['proxy-health']}",
        "metricsBindAddress": f"127.0.0.1:{plan.ports['proxy-metrics']}",
        # The machine's own limits and timeouts are not ours to change.
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "iptables": {"minSyncPeriod": "200ms"},
    }
    path = plan.state / "proxy.json"
    path.write_text(json.dumps(config, indent=2))
    return [plan.binary("kube-proxy"), f"--config={path}"]


def coredns(plan: Plan) -> list[str | Path]:
    path = plan.state / "Corefile"
    path.write_text(f""".:53 {{
  bind {plan.address}
  errors
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {plan.kubeconfig("coredns")} local
    pods insecure
    ttl 5
  }}
}}
""")
    return [plan.binary("coredns"), "-conf", path]


def allow_coredns(client: api.Client) -> None:
    rules = [
        {"apiGroups": [""], "resources": ["services", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    group = "rbac.authorization.k8s.io"
    name = {"name": "localcluster-coredns"}
    base = {"apiVersion": f"{group}/v1", "metadata": name}
    client.create(f"/apis/{group}/v1/clusterroles", {**base, "kind": "ClusterRole", "rules": rules})
    client.create(
        f"/apis/{group}/v1/clusterrolebindings",
        {
            **base,
            "kind": "ClusterRoleBinding",
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", **name},
            "subjects": [{"apiGroup": group, "kind": "User", "name": "localcluster:coredns"}],
        },
    )
