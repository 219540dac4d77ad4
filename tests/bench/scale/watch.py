"""What the API server and Prometheus say of a pool and its autoscaler, second by second; of equal looks the first is kept."""

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import kubernetes.client
import urllib3

import finetune_api
from support import prometheus


@dataclasses.dataclass(frozen=True)
class Look:
    """`wanted`: spec.replicas of the pool; `servers`: of its Deployment; `generation`: edits of the pool's spec; `active`: the
    condition ScalingActive of the HPA, and its reason; `waiting`: vllm:num_requests_waiting of all pods."""

    wanted: int
    servers: int
    ready: int
    generation: int
    asleep: bool
    active: str
    waiting: float | None = dataclasses.field(compare=False, default=None)


Condition = Callable[[Look], bool]
Seen = Sequence[tuple[float, Look]]
"""Seconds since the epoch, and what was seen from then on."""


class Watch:
    """Looks once a second while the block lasts."""

    def __init__(
        self, client: kubernetes.client.ApiClient, server: prometheus.Prometheus, namespace: str, pool: str, hpa: str
    ) -> None:
        self._custom = kubernetes.client.CustomObjectsApi(client)
        self._apps = kubernetes.client.AppsV1Api(client)
        self._scalers = kubernetes.client.AutoscalingV2Api(client)
        self._server, self._namespace, self._pool, self._hpa = server, namespace, pool, hpa
        self.seen: list[tuple[float, Look]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def last(self) -> Look | None:
        return self.seen[-1][1] if self.seen else None

    def since(self, begun: float) -> Seen:
        """What was seen then, and later."""
        before = [look for at, look in self.seen if at <= begun][-1:]
        return [*((begun, look) for look in before), *((at, look) for at, look in self.seen if at > begun)]

    def _run(self) -> None:
        while not self._over.wait(1):
            try:
                look = self._look()
            except (OSError, LookupError, urllib3.exceptions.HTTPError, kubernetes.client.ApiException):
                continue
            if self.last != look:
                self.seen.append((time.time(), look))

    def _look(self) -> Look:
        where = (finetune_api.GROUP, finetune_api.VERSION, self._namespace, "servingpools", self._pool)
        pool: dict[str, Any] = self._custom.get_namespaced_custom_object(*where)
        state = pool.get("status", {})
        waiting = self._server.now(f'sum(vllm:num_requests_waiting{{namespace="{self._namespace}"}})')
        return Look(
            wanted=pool["spec"]["replicas"],
            servers=self._apps.read_namespaced_deployment(self._pool, self._namespace).spec.replicas,
            ready=state.get("readyReplicas") or 0,
            generation=pool["metadata"]["generation"],
            asleep=bool(state.get("asleepSince")),
            active=self._active(),
            waiting=float(waiting[0]["value"][1]) if waiting else None,
        )

    def _active(self) -> str:
        try:
            scaler = self._scalers.read_namespaced_horizontal_pod_autoscaler(self._hpa, self._namespace)
        except kubernetes.client.ApiException as error:
            if error.status == 404:
                return "no autoscaler"
            raise
        found = [one for one in scaler.status.conditions or [] if one.type == "ScalingActive"]
        return f"{found[0].status} ({found[0].reason})" if found else "unknown"


def course(seen: Seen) -> list[tuple[float, int]]:
    """Seconds since the first look, and the replicas that the pool was to have from then on."""
    found: list[tuple[float, int]] = []
    for at, look in seen:
        if not found or found[-1][1] != look.wanted:
            found.append((at - seen[0][0], look.wanted))
    return found
