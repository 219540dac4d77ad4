"""The gatherer: all inputs of a decision about one job, from the caches, and from the API server if they lack it.

The possible worlds, by the status (its stage, its conditions) and the children. Rules and tests name them:

       status                      children
    A  nothing, or Accepted=False  none                                             new: references of the spec are looked up
    B  stage, attempt              Job, suspended                                   a stage waits in its queue
    C  stage, attempt              Job ── Pods                                      a stage waits for its pods, or runs
    D  stage, attempt              Job, over ── Pods, ended                         a stage ended: an outcome, or a failed attempt
    E  stage, attempt, retryAt     no Job of this attempt                           between two attempts
    F  Evaluated, stage verify     Deployment (candidate), not ready                a candidate starts
    G  Evaluated, stage verify     Deployment (candidate), ready; Job               a candidate is verified
    P  Evaluated, stage verify     Job; pods of a ServingPool                       a candidate is delivered and verified
    Q  rollout, stage verify       pods of a ServingPool                            it was verified: approval, traffic in steps
    R  Deployed, rollout, previous pods of a ServingPool                            it serves, compared with the former one
    H  Deployed, serving           Deployment ── Pods, Services                     the current release serves
    I  serving, stage              those of H, and those of A to G                  another revision is in progress
    J  Failed                      none                                             failed, nothing serves
    K  Failed, serving             those of H                                       failed, an earlier release serves
    L  Complete                    none                                             done without a server
    M  Suspended                   no Job; those of H, where something serves       suspended
    N  revision, resolved          any                                              the spec differs from the record
    O  any                         any                                              spec or records cannot be read

In each, a Job (RELEASE-again) delivers what all pods of a ServingPool have lost. Every world follows from the status and the
children alone: no state is kept here.
"""

import dataclasses
import datetime
from collections.abc import Mapping

from finetune_api import candidates as basemodels
from finetune_api import revision
from finetune_api.reasons import Condition
from finetune_operator import cache, candidates, cluster, conditions, kueue, settings
from finetune_operator.observe import observation, parents, projections, shared
from finetune_operator.observe import pools as of_pools


class Gatherer:
    """Reads the cache; asks the API server only why a Job has no pods, why a node does not start one, and once whether the
    job's Service would be somebody else's."""

    def __init__(self, api: cluster.Cluster, facts: cache.Cache, chart: settings.Settings) -> None:
        self._api, self._facts, self._settings = api, facts, chart

    async def gather(self, parent: parents.Parent, now: datetime.datetime) -> observation.Observation:
        """The world of a job that can be read (all but scenario O)."""
        assert parent.spec is not None
        kinds = observation.by_kind(self._facts.children.get(parent.uid, {}))
        choice = candidates.table(
            parent.spec,
            parent.run_annotation,
            parent.records.inputs,
            parent.status.candidates,
            self._facts.catalogue,
        )
        spec = basemodels.of(parent.spec, candidates.current(choice).model) if choice else parent.spec
        parent = dataclasses.replace(parent, spec=spec)
        name = spec.base_model.name
        world = observation.Observation(
            parent=parent,
            spec=spec,
            entry=self._facts.catalogue.get(name) if name else None,
            name_holder=self._facts.name_holder(parent.uid),
            service_taken=await self._service_taken(parent, kinds["Service"]),
            jobs=kinds["Job"],
            pods=tuple(kinds["Pod"].values()),
            servers=kinds["Deployment"],
            services=kinds["Service"],
            reading=self._facts.readings.get(parent.uid),
            refusals={},
            workloads=self._workloads(kinds["Job"]),
            now=now,
            settings=self._settings,
            pools=self._pools(),
            routes=kinds["HTTPRoute"],
            lacks_routes="HTTPRoute" in self._facts.lacking,
            counted=self._facts.counted.get(parent.uid, {}),
            asked=self._facts.pool_states.get(parent.uid, {}),
            candidates=choice,
            measured=self._measured(parent, name),
        )
        refusals = {job.name: await self._api.refusal(parent.namespace, job.uid) for job in _without_a_pod(world)}
        unprepared = {pod.name: await self._api.unprepared(parent.namespace, pod.name) for pod in world.unprepared}
        return observation.with_events(world, refusals, unprepared)

    async def _service_taken(self, parent: parents.Parent, services: Mapping[str, projections.Service]) -> bool:
        """Services of others are not watched. One of a job that was deleted disappears automatically."""
        assert parent.spec is not None
        seen = parent.status.observed_generation == parent.generation
        accepted = seen and conditions.is_true(parent.status, Condition.ACCEPTED)
        if accepted or not parent.spec.deployment.enabled or parent.name in services:
            return False
        found = await self._api.find("Service", parent.namespace, parent.name)
        return found is not None and projections.uid_of(found) is None

    def _measured(self, parent: parents.Parent, name: str | None) -> tuple[basemodels.Measured, ...]:
        """What smaller models reached in the namespace, for the preflight of a large one."""
        entry = self._facts.catalogue.get(name or "")
        size = entry.parameters if entry is not None else None
        if size is None or size <= basemodels.LARGE or conditions.is_true(parent.status, Condition.PREFLIGHT_PASSED):
            return ()
        jobs = [one.raw for one in self._facts.parents.values() if one.namespace == parent.namespace]
        return tuple(candidates.measured(jobs, size, self._facts.catalogue))

    def _pools(self) -> dict[str, shared.Pool]:
        """The ServingPools, with what their ready pods report."""
        found = {}
        for uid, pool in self._facts.pools.items():
            if pool.spec is None or pool.deleting:
                continue
            name = pool.spec.base_model.name
            base = revision.resolve(pool.spec.base_model, self._facts.catalogue.get(name) if name else None)
            readings = self._facts.pool_states.get(uid, {})
            pods = tuple(
                shared.Pod(one.name, readings[one.name].state, readings[one.name].read_at)
                if one.name in readings
                else shared.Pod(one.name)
                for one in self._facts.children.get(uid, {}).values()
                if isinstance(one, projections.Pod) and of_pools.serves(one)
            )
            found[pool.key] = shared.Pool(pool.key, pool.spec, base, pods, pool.sleeps, pool.wakes_since)
        return found

    def _workloads(self, jobs: Mapping[str, projections.StageJob]) -> dict[str, kueue.Workload] | None:
        known = self._facts.workloads
        return None if known is None else {name: known[job.uid] for name, job in jobs.items() if job.uid in known}


def _without_a_pod(world: observation.Observation) -> list[projections.StageJob]:
    """Jobs that have lacked a pod for longer than it takes to create one."""
    return [
        job
        for job in world.jobs.values()
        if job.taken_up
        and not (job.over or job.ending or job.deleting or job.suspended)
        and len({pod.node for pod in world.pods_of(job.name)}) < job.nodes
        and job.created
        and (world.now - job.created).total_seconds() > observation.PATIENCE
    ]
