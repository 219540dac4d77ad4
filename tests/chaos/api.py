"""The API server as the fleet's author and its observer see it: through `kubectl proxy`, with patience, since it may be away."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from finetune_api import GROUP, VERSION

Raw = dict[str, Any]
T = TypeVar("T")
JOBS, PODS = "/apis/batch/v1/{}/jobs", "/api/v1/{}/pods"
FINETUNEJOBS = f"/apis/{GROUP}/{VERSION}/{{}}/finetunejobs"
SERVINGPOOLS = f"/apis/{GROUP}/{VERSION}/{{}}/servingpools"
CHILDREN = {
    "Job": JOBS,
    "Pod": PODS,
    "ConfigMap": "/api/v1/{}/configmaps",
    "Service": "/api/v1/{}/services",
    "ServiceAccount": "/api/v1/{}/serviceaccounts",
    "Deployment": "/apis/apps/v1/{}/deployments",
    "Role": "/apis/rbac.authorization.k8s.io/v1/{}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/{}/rolebindings",
}
FINAL = {400, 403, 404, 409, 422}
"""What another try would not change."""


class Api:
    """Requests in one namespace. `host`: where `kubectl proxy` listens."""

    def __init__(self, host: str, namespace: str) -> None:
        self._host, self._place = f"http://{host}", f"namespaces/{namespace}"

    def request(
        self, method: str, path: str, body: Any = None, kind: str = "application/json", timeout: float = 10
    ) -> Any:
        """One try. Raises OSError, of which urllib.error.HTTPError is one."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._host + path.format(self._place), method=method, data=data, headers={"Content-Type": kind}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            error.msg = f"{error.msg}: {error.read().decode(errors='replace')[:1000]}"
            raise

    def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """Tries until the API server is back."""
        return patiently(lambda: self.request(method, path, body, kind))

    def apply(self, manifest: Raw) -> Raw:
        """Server-side apply of a FineTuneJob, as its author."""
        path = f"{FINETUNEJOBS}/{manifest['metadata']['name']}?fieldManager=chaos&force=true"
        made: Raw = self.ask("PATCH", path, manifest, "application/apply-patch+yaml")
        return made

    def delete(self, path: str, **options: Any) -> None:
        try:
            self.ask("DELETE", path, options)
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise

    def items(self, path: str, selector: str = "") -> list[Raw]:
        found: list[Raw] = self.ask("GET", f"{path}?labelSelector={selector}")["items"]
        return found

    def watch(self, path: str, version: str, seconds: int = 60) -> Iterator[tuple[str, Raw]]:
        """(ADDED | MODIFIED | DELETED | ERROR, object) until the stream ends. Raises OSError."""
        url = f"{self._host}{path.format(self._place)}?watch=true&resourceVersion={version}&timeoutSeconds={seconds}"
        with urllib.request.urlopen(url, timeout=seconds + 30) as lines:
            for line in lines:
                event = json.loads(line)
                yield event["type"], event["object"]


def patiently(what: Callable[[], T], seconds: float = 300) -> T:
    """The answer, once there is one."""
    end = time.monotonic() + seconds
    while True:
        try:
            return what()
        except (OSError, ValueError) as error:
            final = isinstance(error, urllib.error.HTTPError) and error.code in FINAL
            if final or time.monotonic() > end:
                raise
        time.sleep(0.3)
