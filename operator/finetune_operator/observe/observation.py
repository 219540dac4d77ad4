"""All inputs of a decision: one job, its children, its queue, the time and the settings."""

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

from finetune_api import basemodel, job
from finetune_api import candidates as basemodels
from finetune_operator import kueue, settings
from finetune_operator.observe import containers, parents, projections, shared
from finetune_operator.observe import pools as of_pools

PATIENCE = 3.0
"""Seconds without a pod after which the Job controller's events are read."""
PREPARED = 15.0
"""Seconds that a node may take to prepare a pod until the kubelet's events of it are read, and then again each time."""


@dataclasses.dataclass(frozen=True)
class Observation:
    """All inputs of a decision."""

    parent: parents.Parent
    spec: job.FineTuneJobSpec
    """With the current one of baseModel.candidates as its base model."""
    entry: basemodel.BaseModelSpec | None
    jobs: Mapping[str, projections.StageJob]
    pods: tuple[projections.Pod, ...]
    servers: Mapping[str, projections.Server]
    services: Mapping[str, projections.Service]
    reading: projections.Reading | None
    """The progress of training, as reported by its pod; None: not read yet."""
    refusals: Mapping[str, str]
    """Name of a Job that lacks a pod -> why the API server refuses its pods (quota, admission)."""
    workloads: Mapping[str, kueue.Workload] | None
    """Name of a Job in a queue -> its Workload; None until Workloads were listed."""
    now: datetime.datetime
    settings: settings.Settings
    pools: Mapping[str, shared.Pool] = dataclasses.field(default_factory=dict)
    """NAMESPACE/NAME -> each ServingPool."""
    candidates: tuple[basemodels.Candidate, ...] = ()
    """The spec's baseModel.candidates, the smallest first; empty for a job of one base model."""
    measured: tuple[basemodels.Measured, ...] = ()
    """What smaller models reached in the namespace; only before the preflight of a large one."""
    name_holder: str = ""
    """Another job of the namespace that has this job's served name, and had it first; empty if there is none."""
    routes: Mapping[str, projections.Route] = dataclasses.field(default_factory=dict)
    lacks_routes: bool = False
    """Whether the cluster has no HTTPRoutes: the CRDs of Gateway API are not installed."""
    counted: Mapping[str, shared.Counted] = dataclasses.field(default_factory=dict)
    """Pod of a server of the job's own -> what it has counted in the present step of a rollout."""
    asked: Mapping[str, of_pools.Reading] = dataclasses.field(default_factory=dict)
    """Pod of a server of the job's own that may sleep, or of its activator -> when clients last asked it."""
    service_taken: bool = False
    """A Service of the job's name exists, and is somebody else's: asked until the job is accepted."""

    @property
    def no_route(self) -> str:
        """Why the job can have no HTTPRoute; empty if it can."""
        if not self.settings.gateway_api.enabled:
            return (
                "the chart's gatewayAPI.enabled is false: ask the platform team to set it, and the Gateway to attach to"
            )
        if self.lacks_routes:
            return (
                "the cluster has no HTTPRoutes (gateway.networking.k8s.io/v1): ask the platform team to install the CRDs of "
                "Gateway API; the operator looks again every minute"
            )
        return ""

    def pods_of(self, name: str) -> list[projections.Pod]:
        """Pods of a Job or Deployment, the newest last."""
        mine = [p for p in self.pods if p.parent == name]
        return sorted(mine, key=lambda p: (p.created or datetime.datetime.min.replace(tzinfo=datetime.UTC), p.name))

    @property
    def unprepared(self) -> list[projections.Pod]:
        """Pods that have a node, on which nothing has started, and whose status does not say why."""
        return [pod for pod in self.pods if pod.preparing and pod.placed and self.now >= self.prepared_by(pod.placed)]

    def prepared_by(self, placed: datetime.datetime) -> datetime.datetime:
        return placed + datetime.timedelta(seconds=PREPARED)

    def ready(self, release: str) -> int:
        """Ready pods of a release. Its Deployment and its pods are watched apart, and the Deployment's count comes from one more
        controller: a pod is ready when both say so."""
        server = self.servers.get(release)
        return min(server.ready, sum(p.ready and not p.deleting for p in self.pods_of(release))) if server else 0


def by_kind(children: Mapping[tuple[str, str], projections.Child]) -> dict[str, dict[str, Any]]:
    """Children of one job, from (kind, name) to kind -> name -> fact."""
    found: dict[str, dict[str, Any]] = {kind: {} for kind in projections.PROJECTIONS}
    for (kind, name), child in children.items():
        found[kind][name] = child
    return found


def with_events(world: Observation, refusals: Mapping[str, str], unprepared: Mapping[str, str]) -> Observation:
    """The world with what only events say. refusals: by Job; unprepared: by pod, in the kubelet's words."""
    pods = tuple(
        dataclasses.replace(pod, waiting=containers.Waiting("", containers.UNPREPARED, words))
        if (words := unprepared.get(pod.name))
        else pod
        for pod in world.pods
    )
    return dataclasses.replace(world, pods=pods, refusals={name: text for name, text in refusals.items() if text})
