"""All traffic to one release, in a ServingPool or of a server of its own: forward, and back."""

import dataclasses
import datetime
from collections.abc import Iterator

from finetune_api import deployment, serving, status
from finetune_api.reasons import Condition, Reason, Stage
from finetune_operator.decide import traffic, verdict
from finetune_operator.decide.verdict import Verdict
from finetune_operator.decide.world import World, fails
from finetune_operator.manifests import meta, service
from finetune_operator.observe import projections
from finetune_operator.observe.records import Release

PAUSE = datetime.timedelta(seconds=300)
"""After a delivery that failed, before the next one."""


def switch(world: World, candidate: Release) -> Verdict:
    """All traffic is the candidate's; the former release drains, or its pool keeps it."""
    former, rollout, wanted = world.serving, world.state.rollout, world.spec.deployment.rollout
    assert rollout is not None
    finished: dict[str, object] = {
        "step": len(wanted.steps) + 1,
        "weight": 100,
        "since": world.now,
        "requests": 0,
        "findings": [],
    }
    watch = deployment.seconds(wanted.watch)
    if former is not None and share(former, candidate) and watch:
        finished["watched_until"] = world.now + datetime.timedelta(seconds=watch)
        finished["former"] = _traffic_of(world, former)
    held = (former, *world.previous) if former is not None and former.pool is not None else world.previous
    speed = rollout.tokens_per_second
    return verdict.says(
        Condition.DEPLOYED,
        "True",
        Reason.SERVING,
        f"revision {candidate.revision} was verified and serves",
        serves=candidate.model_copy(update={"tokens_per_second": speed}),
        previous=held,
        edits={
            "deployment": _deployed(world, candidate, speed),
            "failure": None,
            "rollout": rollout.model_copy(update=finished),
        },
        outcome=Reason.SERVING,
    )


def share(former: Release | None, candidate: Release) -> bool:
    """Whether two releases can share the traffic of a model in a ServingPool, and be told apart in it."""
    if former is None or candidate.pool is None or former.revision == candidate.revision:
        return False
    return former.place == candidate.place


def back(world: World, former: Release, text: str) -> Verdict:
    """All traffic is the former release's again; no other attempt until the spec changes."""
    failed = fails(world, Stage.VERIFY, Reason.ROLLED_BACK, f"{text}. Revision {former.revision} serves again")
    deployed = _deployed(world, former, former.tokens_per_second)
    return dataclasses.replace(
        failed,
        serves=former,
        previous=tuple(one for one in world.previous if one != former),
        edits={**failed.edits, "deployment": deployed, "rollout": None},
    )


def _traffic_of(world: World, release: Release) -> serving.Traffic | None:
    """Its requests so far, as far as its gateways have counted them."""
    pool, parent = world.obs.pools.get(str(release.pool)), world.obs.parent
    found = pool.traffic(parent.namespace, parent.name) if pool is not None else []
    return traffic.total([one for one in found if one.revision == release.revision])


def _deployed(world: World, release: Release, speed: int | None) -> status.Deployment:
    """The status of a release that gets all traffic from now on."""
    parent = world.obs.parent
    pool = world.obs.pools.get(release.pool) if release.pool is not None else None
    return status.Deployment(
        pool=release.pool,
        endpoint=pool.endpoint if pool is not None else service.endpoint(parent, parent.name),
        model=release.served_model_name,
        revision=release.revision,
        base_model=release.base_model.name,
        release=release.name,
        ready_replicas=held(world, release).ready if release.pool is not None else world.obs.ready(release.name),
        tokens_per_second=speed,
        switched_at=world.now,
    )


@dataclasses.dataclass(frozen=True)
class Held:
    """A release on the ready pods of its pool: how many there are, how many have it, and what the first one without it says."""

    pods: int = 0
    ready: int = 0
    problem: str = ""


def held(world: World, release: Release) -> Held:
    """What the pods report. One that was not read yet (the operator has just started) counts as before: as one that has it, if
    the status says that any had."""
    pool = world.obs.pools.get(str(release.pool))
    if pool is None:
        return Held(problem=f"ServingPool {release.pool} does not exist any more")
    found = pool.adapters(release.adapter.sha256)
    had = world.state.deployment is not None and world.state.deployment.ready_replicas > 0
    ready = sum(had if one is None else one.state == "Ready" for one in found.values())
    failed = [f"pod {name}: {one.message}" for name, one in found.items() if one is not None and one.state == "Failed"]
    lacking = [f"pod {name} does not have it yet" for name, one in found.items() if one and one.state == "Missing"]
    none = [] if found else [f"ServingPool {release.pool} has no ready pod"]
    return Held(len(found), ready, next(iter([*none, *failed, *lacking]), ""))


def seems_lost(world: World, release: Release) -> bool:
    """Whether no pod of its pool had its adapter when it was last read, however long ago."""
    pool = world.obs.pools.get(str(release.pool))
    found = pool.adapters(release.adapter.sha256) if pool is not None else {}
    return bool(found) and all(one is not None and one.state == "Missing" for one in found.values())


def is_lost(world: World, release: Release) -> bool:
    """The same, where every pod can be read, and was after the adapter's last delivery."""
    if not seems_lost(world, release):
        return False
    delivered = max(_deliveries(world, release), default=None)
    times = [pod.read_at for pod in world.obs.pools[str(release.pool)].pods]
    return all(time is not None and (delivered is None or time >= delivered) for time in times)


def _deliveries(world: World, release: Release) -> Iterator[datetime.datetime]:
    """Times at which a pod had its adapter."""
    rollout, deployed, again = world.state.rollout, world.state.deployment, delivery(world, release)
    if rollout is not None and rollout.release == release.name:
        yield rollout.verified_at
    if deployed is not None and deployed.release == release.name and deployed.switched_at is not None:
        yield deployed.switched_at
    if again is not None and again.succeeded and again.finished is not None:
        yield again.finished


def delivery(world: World, release: Release) -> projections.StageJob | None:
    """The Job that delivers its adapter again."""
    return world.obs.jobs.get(meta.delivery(release.name))
