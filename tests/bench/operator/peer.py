"""Kubeflow Trainer's controller, which makes a JobSet of each TrainJob, as its manifests install it.

Its webhook is not reachable from an API server without pods: the webhook's configuration goes once the controller is ready, so
that TrainJobs are not validated, which spares it work. A Job is made only where
JobSet's controller runs, too (jobset.py).
"""

import contextlib
import json
import pathlib
import shutil
import urllib.request
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import yaml
from tests.bench.operator import audit, place

from support import controlplane, installed, ports
from toolbox import gotool

MODULE, JOBSET = "github.com/kubeflow/trainer/v2", "sigs.k8s.io/jobset"
TOOL = "kubeflow-trainer"
SYSTEM, ACCOUNT = "kubeflow-system", "kubeflow-trainer-controller-manager"
SECRET, WEBHOOK = "kubeflow-trainer-webhook-cert", "validator.trainer.kubeflow.org"
CERTIFICATES = pathlib.Path("/tmp/k8s-webhook-server/serving-certs")
"""Where the program looks for its certificate; it can be told no other place."""
USER = f"system:serviceaccount:{SYSTEM}:{ACCOUNT}"
SIDE = audit.Side(frozenset({USER}), "trainjobs", "jobsets")
PATH = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{place.NAMESPACE}/trainjobs"
RUNTIME = "torch-distributed"


def version() -> str:
    return gotool.version(TOOL, MODULE)


def program() -> pathlib.Path:
    return gotool.build(TOOL, "2 min", f"{MODULE}/cmd/trainer-controller-manager")


def manifest(name: str) -> dict[str, Any]:
    """The smallest TrainJob."""
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name},
        "spec": {"runtimeRef": {"name": RUNTIME}},
    }


@contextlib.contextmanager
def controller(plane: controlplane.ControlPlane, folder: pathlib.Path) -> Iterator[int]:
    """The running controller's pid."""
    source = gotool.source(TOOL, MODULE)
    kubeconfig = _install(plane, source, folder)
    health, webhook = ports.free(), ports.free()
    argv: list[str | pathlib.Path] = [
        program(),
        f"--health-probe-bind-address=127.0.0.1:{health}",
        f"--webhook-server-port={webhook}",
    ]
    made = not CERTIFICATES.exists()
    try:
        with place.running(argv, folder / "peer.log", KUBECONFIG=str(kubeconfig)) as child:

            def there() -> bool:
                assert child.poll() is None, (folder / "peer.log").read_text()[-2000:]
                return _ready(plane, health)

            installed.eventually(there, 90, 0.5)
            plane.kubectl("delete", "validatingwebhookconfiguration", WEBHOOK)
            plane.kubectl("apply", "--server-side", "-f", source / "manifests/base/runtimes/torch_distributed.yaml")
            yield child.pid
    finally:
        if made:
            shutil.rmtree(CERTIFICATES.parent, ignore_errors=True)


def _install(plane: controlplane.ControlPlane, source: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Its CRDs, JobSet's, its ClusterRole and webhook; a kubeconfig of its ServiceAccount."""
    jobset = gotool.source(TOOL, JOBSET)
    crds = [
        *sorted((source / "manifests/base/crds").glob("trainer.*.yaml")),
        *jobset.glob("config/components/crd/bases/*.yaml"),
    ]
    for crd in crds:
        plane.kubectl("apply", "--server-side", "-f", crd)
    # kubectl wait gives up on a CRD that has no status yet.
    waits = ("wait", "--for=condition=Established", "--timeout=30s", *(word for crd in crds for word in ("-f", crd)))
    installed.eventually(lambda: plane.run(*waits).returncode == 0, 60)
    plane.kubectl("create", "namespace", SYSTEM)
    plane.kubectl("create", "serviceaccount", ACCOUNT, f"--namespace={SYSTEM}")
    plane.kubectl("create", "secret", "generic", SECRET, f"--namespace={SYSTEM}")
    plane.kubectl("apply", "--server-side", "-f", source / "manifests/base/rbac/role.yaml")
    account = f"--serviceaccount={SYSTEM}:{ACCOUNT}"
    plane.kubectl("create", "clusterrolebinding", ACCOUNT, f"--clusterrole={ACCOUNT}", account)
    hook = yaml.safe_load((source / "manifests/base/webhook/manifests.yaml").read_text())
    hook["metadata"]["name"] = WEBHOOK
    for one in hook["webhooks"]:
        one["clientConfig"]["service"] |= {"name": ACCOUNT, "namespace": SYSTEM}
    plane.kubectl("create", "-f", "-", stdin=json.dumps(hook))
    return place.kubeconfig(plane, SYSTEM, ACCOUNT, folder / "peer.kubeconfig")


def _ready(plane: controlplane.ControlPlane, port: int) -> bool:
    """Whether it is; hands it the certificate that it put into its Secret, as a kubelet would mount it."""
    data = (
        json.loads(plane.kubectl("get", "secret", SECRET, f"--namespace={SYSTEM}", "--output=json")).get("data") or {}
    )
    if data:
        CERTIFICATES.mkdir(parents=True, exist_ok=True)
        for name, value in data.items():
            file = CERTIFICATES / name
            if not file.exists() or file.read_bytes() != b64decode(value):
                file.write_bytes(b64decode(value))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
        return bool(answer.status == 200)
