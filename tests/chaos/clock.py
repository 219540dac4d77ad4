"""The operator's wall clock, moved while it runs: libfaketime is preloaded into the pods that the chart made.

Image and chart are those of users; a patch of the Deployment adds the library as a ConfigMap. Only the wall clock is moved, as
an administrator or a time server would: the monotonic one, by which programs sleep, goes on as it does on a real machine.
"""

import base64
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from chaos import targets
from demo import install
from demo.kube import Kube
from toolbox import debian, say

LIBRARY = "libfaketimeMT.so.1"
FILE = "/tmp/faketime"
"""In the operator's pods: what is added to the clock, as `+3600`. Absent: nothing is."""
_MOUNT = "/faketime"
_ENVIRONMENT = {
    "LD_PRELOAD": f"{_MOUNT}/{LIBRARY}",
    "FAKETIME_TIMESTAMP_FILE": FILE,
    "FAKETIME_CACHE_DURATION": "1",
    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    "FAKETIME_DISABLE_SHM": "1",
}


def library() -> Path:
    """The library on this machine; Debian's package is installed where it is missing."""
    debian.ensure(("faketime",), "moving the operator's clock")
    found = sorted(Path("/usr/lib").glob(f"*/faketime/{LIBRARY}"))
    if not found:
        raise say.Problem(f"{LIBRARY} is not below /usr/lib/*/faketime although faketime is installed")
    return found[0]


@contextlib.contextmanager
def movable(kube: Kube) -> Iterator[None]:
    """Meanwhile `move` works; afterwards the Deployment is as the chart has it."""
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "faketime", "namespace": install.SYSTEM},
        "binaryData": {LIBRARY: base64.b64encode(library().read_bytes()).decode()},
    }
    kube.apply(config)
    container = {
        "name": "operator",
        "env": [{"name": name, "value": value} for name, value in _ENVIRONMENT.items()],
        "volumeMounts": [{"name": "faketime", "mountPath": _MOUNT, "readOnly": True}],
    }
    pod = {"containers": [container], "volumes": [{"name": "faketime", "configMap": {"name": "faketime"}}]}
    patch = json.dumps({"spec": {"template": {"spec": pod}}})
    where = (f"deployment/{install.RELEASE}", "--namespace", install.SYSTEM)
    kube.run("patch", *where, "--type=strategic", f"--patch={patch}")
    kube.run("rollout", "status", *where, "--timeout=180s")
    try:
        yield
    finally:
        kube.run("rollout", "undo", *where)
        kube.run("rollout", "status", *where, "--timeout=180s")


def move(pod_uid: str, seconds: int) -> None:
    """From now on the operator in this pod reads the clock as so much later; 0: as it is."""
    root = targets.process(pod_uid, "finetune_operator") / "root"
    # not through a link within the pod's file system, which would lead into this machine's
    (root / "tmp" / "faketime").write_text(f"{seconds:+d}\n")
