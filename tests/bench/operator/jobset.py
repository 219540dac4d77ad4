"""JobSet's controller, which makes Jobs of the JobSets of Kubeflow Trainer, as its manifests install it.

Its webhooks serve, too: the API server reaches them by their address, with certificates of our own making.
"""

import contextlib
import json
import pathlib
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import yaml
from tests.bench.operator import audit, peer, place

from localcluster import pki
from support import controlplane, installed, ports
from toolbox import gotool

TOOL, MODULE = "jobset", "sigs.k8s.io/jobset"
SYSTEM, ACCOUNT = "jobset-system", "jobset-controller-manager"
SIDE = audit.Side(peer.SIDE.users | {f"system:serviceaccount:{SYSTEM}:{ACCOUNT}"}, "trainjobs", "jobs")
"""Of Trainer and JobSet together: a TrainJob is begun when it has its first Job."""


def version() -> str:
    return gotool.version(TOOL, MODULE)


def program() -> pathlib.Path:
    return gotool.build(TOOL, "1 min", MODULE)


@contextlib.contextmanager
def controller(plane: controlplane.ControlPlane, folder: pathlib.Path) -> Iterator[int]:
    """The running controller's pid. The CRD of JobSets is there already, by peer.controller."""
    source = gotool.source(TOOL, MODULE)
    health, webhook = ports.free(), ports.free()
    kubeconfig = _account(plane, source, folder)
    certificates = folder / "jobset"
    pki.make(certificates, [pki.Identity("tls", "jobset", addresses=("IP:127.0.0.1",))])
    file = folder / "jobset.json"
    file.write_text(
        json.dumps(
            {
                "apiVersion": "config.jobset.x-k8s.io/v1alpha1",
                "kind": "Configuration",
                "leaderElection": {"leaderElect": False},
                "internalCertManagement": {"enable": False},
                "webhook": {"host": "127.0.0.1", "port": webhook, "certDir": str(certificates)},
                "metrics": {"bindAddress": "0"},
                "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
            }
        )
    )
    argv: list[str | pathlib.Path] = [program(), f"--config={file}", "--zap-log-level=error"]
    with place.running(argv, folder / "jobset.log", KUBECONFIG=str(kubeconfig)) as child:

        def ready() -> bool:
            assert child.poll() is None, (folder / "jobset.log").read_text()[-2000:]
            with urllib.request.urlopen(f"http://127.0.0.1:{health}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)

        installed.eventually(ready, 60, 0.5)
        for hook in _webhooks(source, f"https://127.0.0.1:{webhook}", (certificates / "ca.crt").read_bytes()):
            plane.kubectl("create", "-f", "-", stdin=json.dumps(hook))
        yield child.pid


def _account(plane: controlplane.ControlPlane, source: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """A kubeconfig of its ServiceAccount, which has the ClusterRole of its manifests."""
    plane.kubectl("create", "namespace", SYSTEM)
    plane.kubectl("create", "serviceaccount", ACCOUNT, f"--namespace={SYSTEM}")
    role = yaml.safe_load((source / "config/components/rbac/role.yaml").read_text())
    plane.kubectl("create", "-f", "-", stdin=json.dumps(role | {"metadata": {"name": ACCOUNT}}))
    account = f"--serviceaccount={SYSTEM}:{ACCOUNT}"
    plane.kubectl("create", "clusterrolebinding", ACCOUNT, f"--clusterrole={ACCOUNT}", account)
    return place.kubeconfig(plane, SYSTEM, ACCOUNT, folder / "jobset.kubeconfig")


def _webhooks(source: pathlib.Path, address: str, authority: bytes) -> list[dict[str, Any]]:
    """Those of its manifests, at this address."""
    found = list(yaml.safe_load_all((source / "config/components/webhook/manifests.yaml").read_text()))
    for document in found:
        document["metadata"]["name"] = f"jobset-{document['metadata']['name']}"
        for hook in document["webhooks"]:
            path = hook["clientConfig"]["service"]["path"]
            hook["clientConfig"] = {"url": address + path, "caBundle": b64encode(authority).decode()}
    return found
