"""The control plane of one scenario, and the parts that make pods run on it: kube-scheduler, and KWOK for the kubelets."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from tests.bench.operator import stages

from localcluster import binaries, process
from support import controlplane, installed, ports
from toolbox import say

NAMESPACE = "bench"
NODES = 20
PROGRAMS = ("kube-scheduler", "kwok", "helm")


@contextlib.contextmanager
def control_plane(crds: pathlib.Path = controlplane.CRDS) -> Iterator[controlplane.ControlPlane]:
    """A fresh one, with these CRDs and the namespace of the jobs; gone afterwards."""
    folder = binaries.ensure((*binaries.CONTROL_PLANE, *PROGRAMS))
    with controlplane.running(f"bench-{os.getpid()}", crds) as plane:
        assert plane.bin == folder, f"one folder for all programs: {plane.bin}, {folder}"
        plane.kubectl("create", "namespace", NAMESPACE)
        # For a moment the API server knows a new kind and has no store for it yet.
        installed.eventually(lambda: plane.run("get", "finetunejobs", "--namespace", NAMESPACE).returncode == 0, 30)
        yield plane


def kubeconfig(plane: controlplane.ControlPlane, namespace: str, account: str, file: pathlib.Path) -> pathlib.Path:
    """`file`, as the kubeconfig of a ServiceAccount."""
    token = plane.kubectl("create", "token", account, f"--namespace={namespace}", "--duration=1h").strip()
    admin = yaml.safe_load(plane.kubeconfig.read_text())
    context = {"name": account, "context": {"cluster": admin["clusters"][0]["name"], "user": account}}
    users = [{"name": account, "user": {"token": token}}]
    file.write_text(json.dumps(admin | {"users": users, "contexts": [context], "current-context": account}))
    return file


def programs(plane: controlplane.ControlPlane) -> dict[str, int]:
    """The pids of the control plane's programs by name."""
    return {name: record.pid for name, record in process.load(plane.kubeconfig.parent / "processes").items()}


@contextlib.contextmanager
def logs(plane: controlplane.ControlPlane, remarks: list[str]) -> Iterator[pathlib.Path]:
    """The folder of all logs. It stays for a look when the block fails or has remarks."""
    folder = pathlib.Path(plane.facts["logs"])
    yield folder
    if remarks:
        say.line(f"      the logs stay in {folder}")
    else:
        shutil.rmtree(folder)


@contextlib.contextmanager
def running(
    argv: Sequence[str | pathlib.Path], log: pathlib.Path, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block; its words are in `log`."""
    with log.open("wb") as out:
        child = subprocess.Popen(
            [str(word) for word in argv],
            env={"PATH": os.environ["PATH"], "HOME": str(log.parent)} | environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextlib.contextmanager
def nodes(plane: controlplane.ControlPlane, folder: pathlib.Path, played: list[dict[str, Any]]) -> Iterator[None]:
    """Nodes that KWOK plays, as it is told by `played`, and a scheduler that gives them the pods."""
    config = folder / "kwok.yaml"
    config.write_text(yaml.safe_dump_all(played))
    kubeconfig = f"--kubeconfig={plane.kubeconfig}"
    kwok = [
        plane.bin / "kwok",
        kubeconfig,
        f"--config={config}",
        "--manage-all-nodes",
        "--node-lease-duration-seconds=40",
    ]
    scheduler = [
        plane.bin / "kube-scheduler",
        kubeconfig,
        f"--secure-port={ports.free()}",
        "--bind-address=127.0.0.1",
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
        "--leader-elect=false",
        "--profiling=false",
    ]
    with running(kwok, folder / "kwok.log") as player, running(scheduler, folder / "scheduler.log") as placer:
        items = [stages.node(f"node-{number}") for number in range(NODES)]
        plane.kubectl("create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        until = time.monotonic() + 60
        while plane.kubectl("get", "nodes", "--no-headers").count(" Ready ") < NODES:
            for child, name in ((player, "kwok"), (placer, "scheduler")):
                if child.poll() is not None:
                    raise say.Problem(f"{name} ended:\n{(folder / name).with_suffix('.log').read_text()[-2000:]}")
            if time.monotonic() > until:
                raise say.Problem(f"the nodes are not Ready:\n{(folder / 'kwok.log').read_text()[-2000:]}")
            time.sleep(0.2)
        yield
