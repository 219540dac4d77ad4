"""The requests that a cluster's start makes to its API server, with the administrator's certificate."""

import base64
import json
import platform
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolbox import say


class Client:
    """`certificates` is the folder that pki.make filled."""

    def __init__(self, server: str, certificates: Path) -> None:
        self.server = server
        self._tls = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
        self._tls.load_cert_chain(certificates / "admin.crt", certificates / "admin.key")

    def request(self, method: str, path: str, body: object = None, kind: str = "application/json") -> Any:
        """Sends a request; returns the JSON answer, or the text where it is none. Raises OSError on any failure."""
        request = urllib.request.Request(  # noqa: S310
            self.server + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": kind, "Accept": "application/json"},
        )
        with urllib.request.urlopen(request, context=self._tls, timeout=10) as answer:  # noqa: S310
            text = answer.read().decode()
        try:
            return json.loads(text)
        except ValueError:
            return text

    def exists(self, path: str) -> bool:
        try:
            self.request("GET", path)
        except OSError:
            return False
        return True

    def create(self, path: str, manifest: dict[str, Any]) -> None:
        """Creates an object; one of that name that exists already is left alone."""
        try:
            self.request("POST", path, manifest)
        except urllib.error.HTTPError as error:
            if error.code != 409:
                raise say.Problem(f"creating {manifest['kind']} failed: {error.read().decode()}") from error

    def node_ready(self, node: str) -> bool:
        try:
            conditions = self.request("GET", f"/api/v1/nodes/{node}")["status"].get("conditions", [])
        except OSError:
            return False
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)

    def set_gpus(self, node: str, count: int) -> None:
        """Gives the node GPUs that exist for the scheduler only; the kubelet keeps resources that it does not manage."""
        patch = [
            {"op": "add", "path": f"/status/{field}/nvidia.com~1gpu", "value": str(count)}
            for field in ("capacity", "allocatable")
        ]
        self.request("PATCH", f"/api/v1/nodes/{node}/status", patch, kind="application/json-patch+json")


def wait(what: str, ready: Callable[[], bool], check: Callable[[], None], seconds: float = 120) -> None:
    """Polls until `ready`; `check` raises when waiting has become pointless."""
    deadline = time.monotonic() + seconds
    while not ready():
        check()
        if time.monotonic() > deadline:
            raise say.Problem(f"{what} is not ready after {seconds:.0f} s")
        time.sleep(0.05)


def kubeconfig(server: str, certificates: Path, identity: str) -> str:
    """A kubeconfig with everything inside, so that a copy of the file works elsewhere. (JSON is YAML.)"""

    def data(name: str) -> str:
        return base64.b64encode((certificates / name).read_bytes()).decode()

    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "local", "cluster": {"server": server, "certificate-authority-data": data("ca.crt")}}
            ],
            "users": [
                {
                    "name": identity,
                    "user": {
                        "client-certificate-data": data(f"{identity}.crt"),
                        "client-key-data": data(f"{identity}.key"),
                    },
                }
            ],
            "contexts": [{"name": "local", "context": {"cluster": "local", "user": identity}}],
            "current-context": "local",
        },
        indent=2,
    )


def architecture() -> str:
    """The machine's name in image configurations."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
