"""The operator's wall clock, moved while it runs: libfaketime is preloaded into the pods that the chart made.

Image and chart are those of users; a patch of the Deployment adds the library as a ConfigMap. Only the wall clock is moved, as
an administrator or a time server would: the monotonic one, by which programs sleep, is not affected, as on a real node.
"""

import base64
import contextlib
import json
from collections.abc import Iterator

from demo import install
from demo.kube import Kube
from support import faketime
from support import site as sites
from toolbox import say

FILE = "/tmp/faketime"
"""In the operator's pods: what is added to the clock, as `+3600`. Absent: nothing is."""
_MOUNT = "/faketime"


@contextlib.contextmanager
def movable(kube: Kube) -> Iterator[None]:
    """Meanwhile `move` works; afterwards the Deployment is as the chart has it."""
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "faketime", "namespace": install.SYSTEM},
        "binaryData": {faketime.LIBRARY: base64.b64encode(faketime.library().read_bytes()).decode()},
    }
    kube.apply(config)
    environment = faketime.environment(f"{_MOUNT}/{faketime.LIBRARY}", FILE)
    container = {
        "name": "operator",
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "volumeMounts": [{"name": "faketime", "mountPath": _MOUNT, "readOnly": True}],
    }
    pod = {"containers": [container], "volumes": [{"name": "faketime", "configMap": {"name": "faketime"}}]}
    patch = json.dumps({"spec": {"template": {"spec": pod}}})
    where = (f"deployment/{install.RELEASE}", "--namespace", install.SYSTEM)
    kube.run("patch", *where, "--type=strategic", f"--patch={patch}")
    kube.run("rollout", "status", *where, "--timeout=180s")
    yield
    # not after an error: the cluster goes, or is to be looked at
    kube.run("rollout", "undo", *where)
    kube.run("rollout", "status", *where, "--timeout=180s")
    kube.run("delete", "configmap", "faketime", "--namespace", install.SYSTEM)


def move(pod_uid: str, seconds: int) -> None:
    """From now on the operator in this pod reads the clock as so much later; 0: as it is."""
    root = sites.processes(pod_uid, "finetune_operator")[0] / "root"
    if faketime.LIBRARY not in (root.parent / "maps").read_text():
        raise say.Problem(
            f"the operator's image did not load {faketime.LIBRARY}: is its C library older than this machine's?"
        )
    faketime.set_clock(root / FILE.removeprefix("/"), seconds)
