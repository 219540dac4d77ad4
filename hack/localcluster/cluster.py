"""Starts and stops a cluster, step by step. The parts are in the other modules."""

import json
import secrets
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from localcluster import (
    api,
    binaries,
    cgroups,
    controlplane,
    machine,
    network,
    node,
    plan,
    ports,
    process,
    services,
)
from localcluster.plan import Plan
from toolbox import cache, debian, lock, say

_NODE_PROGRAMS = ("openssl", "containerd", "ctr", "runc", "/usr/lib/cni/bridge", "iptables", "ip", "conntrack",
                  "docker-registry")  # fmt: skip
# Kept data is theirs to close; everything else holds nothing that outlives the cluster.
_GRACEFUL = ("containerd", "registry")


def up(name: str, *, with_node: bool, scheduler: bool, s3: bool, gpus: int) -> Path:
    """Brings up a cluster, or completes one that runs already; returns the path of its cluster.json."""
    plan.check_name(name)
    with lock.held(plan.clusters() / f".{name}.lock", f"another command on cluster '{name}'"):
        if running := _running(name):
            _complete(running, with_node=with_node)
            wanted = running
        else:
            wanted = _start(name, with_node=with_node, scheduler=scheduler, s3=s3)
        if gpus and wanted.node:
            api.Client(wanted.server, wanted.certificates).set_gpus(wanted.node_name, gpus)
            say.line(f"  the node says that it has {gpus} GPUs (nvidia.com/gpu; for the scheduler only)")
    return summary_path(name)


def summary_path(name: str) -> Path:
    return plan.clusters() / name / "cluster.json"


def _running(name: str) -> Plan | None:
    """The cluster's plan if it came up and any of its processes lives; leftovers of a dead one do not count."""
    found = plan.load(name)
    if found is None or not summary_path(name).exists():
        return None
    return found if any(map(process.alive, process.load(found.records).values())) else None


def _complete(running: Plan, *, with_node: bool) -> None:
    if with_node != running.node:
        raise say.Problem(
            f"cluster '{running.name}' runs {'with' if running.node else 'without'} a node."
            f" Stop it first (python3 hack/localcluster down --name {running.name}) or choose another --name."
        )
    restart(running, dead(running))
    say.line(f"  cluster '{running.name}' is up")


def restart(running: Plan, names: Sequence[str]) -> None:
    """Starts these processes again as they were started first; those that live are ended before, at once."""
    for record in _recorded(running, names):
        say.line(f"  starting {record.name} again")
        process.end([record], grace=0)
        process.start(record.name, record.argv, records=running.records, log=Path(record.log))
    if names:
        _wait_ready(running)


def kill(running: Plan, names: Sequence[str]) -> None:
    """SIGKILL: these processes are gone until `restart` or `up`."""
    process.end(_recorded(running, names), grace=0)


def pause(running: Plan, names: Sequence[str]) -> None:
    """SIGSTOP: these processes hang, with their ports and connections open, until `resume`."""
    process.send(_recorded(running, names), signal.SIGSTOP)


def resume(running: Plan, names: Sequence[str]) -> None:
    process.send(_recorded(running, names), signal.SIGCONT)


def dead(running: Plan) -> list[str]:
    """Names of processes that ended unexpectedly."""
    return [record.name for record in process.load(running.records).values() if not process.alive(record)]


def _recorded(running: Plan, names: Sequence[str]) -> list[process.Record]:
    records = process.load(running.records)
    for name in names:
        if name not in records:
            raise say.Problem(f"cluster '{running.name}' has no process '{name}'; it has: {', '.join(records)}")
    return [records[name] for name in names]


def _start(name: str, *, with_node: bool, scheduler: bool, s3: bool) -> Plan:
    if with_node:
        plan.check_socket(name)
    debian.ensure(_NODE_PROGRAMS if with_node else ("openssl",), "the local cluster")
    wanted = list(binaries.NODE if with_node else binaries.CONTROL_PLANE)
    wanted += ["kube-scheduler"] * scheduler + ["versitygw"] * s3
    folder = binaries.ensure(wanted)
    draft = Plan(
        name=name,
        bin=str(folder),
        address="127.0.0.1",
        node=with_node,
        scheduler=scheduler or with_node,
        s3=s3 or with_node,
        access_key="local" + secrets.token_hex(6),
        secret_key=secrets.token_hex(20),
    )
    if not with_node:
        return _start_planned(draft)
    with lock.held(machine.LOCK, "another command on this machine's node"):
        machine.claim(name)
        return _start_planned(draft)


def _start_planned(draft: Plan) -> Plan:
    with lock.held(plan.clusters() / ".ports.lock", "another cluster to choose its ports"):
        _discard(draft)
        draft.state.mkdir(parents=True, mode=0o700)
        draft.logs.mkdir(parents=True)
        chosen = replace(draft, ports=ports.reserve(draft.port_names(), draft.state))
        if chosen.node:
            subnet = network.choose_subnet()
            registry = _registry_port(chosen.ports["registry"])
            ports_ = {**chosen.ports, "registry": registry}
            chosen = replace(chosen, subnet=subnet, address=network.gateway(subnet), ports=ports_)
        chosen.save()
    try:
        if chosen.node:
            machine.remember(chosen.name, node.containerd_root())
        _launch(chosen)
    except BaseException:
        say.line(f"  the start failed: ending what runs already; logs are kept in {chosen.logs}")
        _stop(chosen)
        raise
    return chosen


def _registry_port(fallback: int) -> int:
    """The same port in every run, where it is free: image names hold it, and pulled images are known by name."""
    return next((port for port in (5050, 5051, 5052) if ports.free(port)), fallback)


def _launch(chosen: Plan) -> None:
    what = "node, Services, DNS, registry, S3" if chosen.node else "control plane"
    with say.step(f"starting cluster '{chosen.name}': {what}", "7 s" if chosen.node else "3 s"):
        launcher = _Launcher(chosen)
        launcher.start("etcd", controlplane.etcd(chosen))
        if chosen.node:
            network.create(chosen)
            cgroups.make()
            launcher.start("containerd", node.containerd(chosen))
            services.collect_garbage(chosen)
            launcher.start("registry", services.registry(chosen))
        if chosen.s3:
            launcher.start("s3", services.s3(chosen), services.s3_environment(chosen))
        controlplane.configure(chosen)
        launcher.start("kube-apiserver", controlplane.apiserver(chosen))
        if chosen.node:
            launcher.wait("containerd", lambda: node.containerd_answers(chosen))
            node.remove_containers(chosen)
            node.import_pause(chosen)
            node.prune_images(chosen)
        client = api.Client(chosen.server, chosen.certificates)
        launcher.wait("kube-apiserver", lambda: client.exists("/readyz"))
        launcher.start("kube-controller-manager", controlplane.controller_manager(chosen))
        if chosen.scheduler:
            launcher.start("kube-scheduler", controlplane.scheduler(chosen))
        if chosen.node:
            node.allow_coredns(client)
            launcher.start("kubelet", node.kubelet(chosen))
            launcher.start("kube-proxy", node.proxy(chosen))
            launcher.start("coredns", node.coredns(chosen))
        _wait_ready(chosen)
    path = summary_path(chosen.name)
    path.touch(mode=0o600)
    path.write_text(json.dumps(chosen.summary(), indent=2) + "\n")


class _Launcher:
    """Starts the processes of one cluster and watches over those that it started."""

    def __init__(self, chosen: Plan) -> None:
        self._plan = chosen
        self._started: list[process.Record] = []

    def start(self, name: str, argv: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
        log = self._plan.logs / f"{name}.log"
        self._started.append(process.start(name, argv, records=self._plan.records, log=log, environment=environment))

    def wait(self, what: str, ready: Callable[[], bool]) -> None:
        api.wait(what, ready, lambda: process.check(self._started))


def _wait_ready(running: Plan) -> None:
    """Until pods can be created: the API answers, service accounts are made, the node is Ready, S3 listens."""
    client = api.Client(running.server, running.certificates)
    records = list(process.load(running.records).values())

    def wait(what: str, ready: Callable[[], bool]) -> None:
        api.wait(what, ready, lambda: process.check(records))

    wait("kube-apiserver", lambda: client.exists("/readyz"))
    wait("kube-controller-manager", lambda: client.exists("/api/v1/namespaces/default/serviceaccounts/default"))
    if running.s3:
        wait("s3", lambda: ports.answers(running.address, running.ports["s3"]))
    if running.node:
        wait("registry", lambda: ports.answers("127.0.0.1", running.ports["registry"]))
        wait("coredns", lambda: ports.answers(running.address, 53))
        wait("the node", lambda: client.node_ready(running.node_name))
    process.check(records)


def down(name: str) -> None:
    """Stops a cluster, also a partly started one; logs stay."""
    plan.check_name(name)
    with lock.held(plan.clusters() / f".{name}.lock", f"another command on cluster '{name}'"):
        found = plan.load(name)
        left = machine.current()
        of_node = left is not None and left.name == name and left.cache == str(cache.root())
        if found is None and not of_node:
            shutil.rmtree(plan.clusters() / name, ignore_errors=True)
            say.line(f"  cluster '{name}' is not running")
            return
        with say.step(f"stopping cluster '{name}'", "3 s" if of_node else "1 s"):
            if of_node:
                with lock.held(machine.LOCK, "another command on this machine's node"):
                    _stop(found)
            else:
                _stop(found)


def _stop(found: Plan | None) -> None:
    records = process.load(found.records) if found else {}
    # First the supervisors, which would restart what ends; then the pods, while containerd is there to tidy up after them.
    restarters = ("kubelet", "kube-controller-manager", "kube-scheduler", "kube-proxy", "coredns", "s3")
    process.end([record for name, record in records.items() if name in restarters], grace=0)
    left = machine.current()
    if found and found.node:
        cgroups.kill()
        if "containerd" in records and process.alive(records["containerd"]):
            node.remove_containers(found)
    process.end([record for name, record in records.items() if name not in (*_GRACEFUL, *restarters)], grace=0)
    process.end([record for name, record in records.items() if name in _GRACEFUL], grace=3)
    if left and (found is None or left.name == found.name):
        machine.clean(left)
    if found:
        shutil.rmtree(found.state)


def _discard(draft: Plan) -> None:
    """Clears what an earlier run under this name left: processes without a summary, state; the last logs are kept."""
    if left := plan.load(draft.name):
        _stop(left)
    shutil.rmtree(draft.state, ignore_errors=True)
    if draft.logs.exists():
        before = draft.logs.with_name(f"{draft.name}.previous")
        shutil.rmtree(before, ignore_errors=True)
        draft.logs.rename(before)
    for old in outdated_logs(draft.logs.parent):
        shutil.rmtree(old, ignore_errors=True)


def outdated_logs(folder: Path) -> list[Path]:
    """Log folders beyond the newest thirty, except those of running clusters: tests give clusters new names each time."""
    living = plan.names()
    ended = [path for path in folder.glob("*") if path.name not in living]
    return sorted(ended, key=lambda path: path.stat().st_mtime, reverse=True)[30:]
