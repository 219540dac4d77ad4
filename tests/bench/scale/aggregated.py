"""What autoscalers share that serve metrics as an aggregated API server beside a control plane: prometheus-adapter and KEDA.

The API server reaches them on this machine by a Service of type ExternalName, since a control plane alone routes nothing to pods,
and trusts the certificate's authority. They take the API server's word for who asks, as any aggregated API server does.
"""

import base64
import json
import pathlib
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import yaml

from support import controlplane

EXAMPLES = controlplane.REPOSITORY / "examples" / "autoscaling"
Raw = dict[str, Any]


class Autoscaler(Protocol):
    """A module of this folder."""

    NAME: str
    USER: str
    """Who it is for the API server."""
    HPA: str
    """Name of the HPA that scales the pool."""
    ABOUT: str
    PAGE: str
    COMMAND: str

    def version(self) -> str: ...

    def programs(self) -> Sequence[pathlib.Path]:
        """Built if need be."""

    def autoscaler(self, part: float, url: str) -> Raw:
        """The example with a part of its times, for the Prometheus at `url`."""

    def running(
        self, plane: controlplane.ControlPlane, url: str, folder: pathlib.Path
    ) -> AbstractContextManager[None]: ...


def example(file: str, part: float) -> Raw:
    """With a part of its times."""
    text = (EXAMPLES / file).read_text()
    text = re.sub(r"(Seconds: )(\d+)", lambda found: f"{found[1]}{max(1, round(int(found[2]) * part))}", text)
    return dict(yaml.safe_load(text))


def register(
    plane: controlplane.ControlPlane, service: Raw, group: str, versions: Sequence[str], port: int, ca: pathlib.Path
) -> None:
    """`service`: its name and namespace."""
    shared = {
        "group": group,
        "groupPriorityMinimum": 100,
        "versionPriority": 100,
        "caBundle": base64.b64encode(ca.read_bytes()).decode(),
        "service": service | {"port": port},
    }
    kind = {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService"}
    named = [kind | {"metadata": {"name": f"{one}.{group}"}, "spec": shared | {"version": one}} for one in versions]
    spec = {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]}
    routed = {"apiVersion": "v1", "kind": "Service", "metadata": service, "spec": spec}
    made = {"apiVersion": "v1", "kind": "List", "items": [routed, *named]}
    plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(made))


def available(plane: controlplane.ControlPlane, group: str, versions: Sequence[str]) -> None:
    for name in versions:
        plane.kubectl("wait", "--for=condition=Available", "--timeout=50s", f"apiservice/{name}.{group}")
