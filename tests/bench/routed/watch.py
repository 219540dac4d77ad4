"""What the API server says while a rollout is under way: the route's weights, the pods' addresses, the operator's comparisons."""

import dataclasses
import json
import threading
import time
from typing import Any

from bench.routed import shares
from support.site import JOBS, NAMESPACE, Site

ROUTES = f"/apis/gateway.networking.k8s.io/v1/namespaces/{NAMESPACE}/httproutes"


@dataclasses.dataclass
class Seen:
    weights: list[tuple[float, shares.Weights]] = dataclasses.field(default_factory=list)
    pods: dict[str, str] = dataclasses.field(default_factory=dict)
    """Address -> release."""
    looks: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """Number of the comparison -> status.rollout then."""
    problems: set[str] = dataclasses.field(default_factory=set)


class Watch:
    """Looks twice a second while the block lasts."""

    def __init__(self, site: Site, name: str) -> None:
        self._site, self._name, self.seen = site, name, Seen()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Seen:
        self._thread.start()
        return self.seen

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.5):
            try:
                self._look()
            except (OSError, LookupError, ValueError) as error:
                self.seen.problems.add(repr(error))

    def _look(self) -> None:
        route = json.loads(self._site.raw(f"{ROUTES}/{self._name}"))
        weights = {one["name"]: one["weight"] for one in route["spec"]["rules"][0]["backendRefs"]}
        if not self.seen.weights or self.seen.weights[-1][1] != weights:
            self.seen.weights.append((time.time(), weights))
        for pod in self._site.pods(self._name):
            release = pod["metadata"]["labels"].get("finetune.dev/release")
            if release and pod["status"].get("podIP"):
                self.seen.pods[pod["status"]["podIP"]] = release
        rollout = json.loads(self._site.raw(f"{JOBS}/{self._name}")).get("status", {}).get("rollout") or {}
        if rollout.get("findings"):  # a step begins without
            self.seen.looks[rollout["looks"]] = rollout
