"""`python3 hack/localcluster VERB`: a real Kubernetes on this machine, without Docker. See hack/README.md."""

import argparse
import os
import platform
import sys
from pathlib import Path

# Run as a folder, Python puts the folder itself on the path, where its modules would shadow the standard library's.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from localcluster import binaries, cluster, disk, plan, report  # noqa: E402
from toolbox import say  # noqa: E402

FAULTS = {
    "restart": (cluster.restart, "end processes of a cluster (SIGKILL) and start them again"),
    "kill": (cluster.kill, "end processes (SIGKILL); `restart` or `up` starts them again"),
    "pause": (cluster.pause, "let processes hang (SIGSTOP)"),
    "resume": (cluster.resume, "continue paused processes (SIGCONT)"),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 hack/localcluster", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    up = verbs.add_parser("up", help="bring a cluster up, or complete one that runs; prints the path of cluster.json")
    up.add_argument("--control-plane-only", action="store_true", help="no node: seconds, no root, several at once")
    up.add_argument("--scheduler", action="store_true", help="with --control-plane-only: a kube-scheduler too")
    up.add_argument("--s3", action="store_true", help="with --control-plane-only: an S3 server too")
    up.add_argument("--gpus", type=int, default=0, metavar="N", help="let the node say that it has N GPUs")
    down = verbs.add_parser("down", help="stop a cluster and take back all that it changed; logs are kept")
    down.add_argument("--all", action="store_true", help="every cluster of this cache folder")
    faults = [verbs.add_parser(name, help=text) for name, (_, text) in FAULTS.items()]
    for fault in faults:
        fault.add_argument("process", nargs="+")
    environment = verbs.add_parser("env", help='print export lines for a shell: eval "$(… env)"')
    for verb in (up, down, *faults, environment):
        verb.add_argument("--name", default="local", help="the cluster's name (default: local)")
    verbs.add_parser("status", help="what runs, where, and how much disk the cache takes")
    programs = verbs.add_parser("binaries", help="make programs available; prints the folder that has them")
    programs.add_argument("program", nargs="*", help="default: all")
    clean = verbs.add_parser("clean", help="free images, build caches and stores of stopped clusters")
    clean.add_argument("--all", action="store_true", help="binaries, models, peers of the benchmark and logs too")
    given = parser.parse_args()
    if platform.system() != "Linux":
        raise say.Problem(
            f"the local cluster needs Linux, this is {platform.system()}: use kind, k3d or minikube and give"
            " KUBECONFIG and REGISTRY of that cluster instead."
        )
    if given.verb == "up":
        if not given.control_plane_only:
            _require_root()
        path = cluster.up(
            given.name,
            with_node=not given.control_plane_only,
            scheduler=given.scheduler,
            s3=given.s3,
            gpus=given.gpus,
        )
        say.result(str(path))
    elif given.verb == "down":
        for name in plan.names() if given.all else [given.name]:
            cluster.down(name)
    elif given.verb in FAULTS:
        FAULTS[given.verb][0](report.running(given.name), given.process)
    elif given.verb == "env":
        say.result(report.exports(report.running(given.name)))
    elif given.verb == "binaries":
        say.result(str(binaries.ensure(given.program or list(binaries.BY_NAME))))
    elif given.verb == "status":
        report.status()
    else:
        disk.clean(everything=given.all)
    return 0


def _require_root() -> None:
    if os.geteuid() != 0:
        raise say.Problem(
            "a node needs root (network, mounts, control groups): run this with sudo, or start a control plane alone"
            " (--control-plane-only), or give KUBECONFIG and REGISTRY of an existing cluster instead."
        )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except say.Problem as problem:
        say.line(f"localcluster: {problem}")
        sys.exit(1)
    except BrokenPipeError:
        # The reader of the output closed the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        say.line("localcluster: interrupted")
        sys.exit(130)
