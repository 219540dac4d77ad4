"""A release in a ServingPool: delivered and verified by its verify stage, then traffic in steps, then a watch.

    candidate ──> verify stage: delivers the adapter, asks every pod ──> approval ──> step 1 .. n ──> all traffic ──> watch
       │                                                                               │                        │
       held by the index                                        shown to be worse: back to the former revision <─┘

The index (`observe.members`) follows from `status.serving`, `candidate`, `previous` and `rollout`, which this writes.
Pods of a pool are not the job's: nothing is applied here.
"""

import datetime
import functools

from finetune_api import deployment, job
from finetune_api.reasons import Condition, Reason, Stage
from finetune_operator.decide import approval, attempts, leftovers, steps, switching, traffic, verdict
from finetune_operator.decide.verdict import AS_IT_IS, Ref, Verdict
from finetune_operator.decide.world import World, written
from finetune_operator.manifests import meta, stages
from finetune_operator.observe.records import Release
from finetune_operator.observe.shared import Pool

LOOKS = datetime.timedelta(seconds=60)
"""In which every pod has been looked at."""


def rolls_out(world: World, candidate: Release) -> Verdict:
    """Scenarios P and Q."""
    pool = world.obs.pools[str(candidate.pool)]
    if approval.is_verified(world, candidate):
        return steps.advance(world, candidate)
    if not pool.pods and attempts.name_of(world, Stage.VERIFY) not in world.obs.jobs:
        text = f"ServingPool {pool.name} has no ready pod: see its status"
        return verdict.says(Condition.DEPLOYED, "Unknown", Reason.STARTING, text)
    return attempts.advance(world, _delivery(pool, candidate), functools.partial(approval.verified, candidate))


def _delivery(pool: Pool, release: Release) -> attempts.Work:
    """The verify stage, which delivers the adapter and asks every pod."""
    canary = ("--canary", release.canary) if release.canary else ()
    return attempts.Work(
        Stage.VERIFY,
        job.Resources(gpus=0),
        arguments=(
            *("--pool", pool.pods_host, "--base-model", pool.base.name if pool.base else ""),
            *("--adapter", release.adapter.uri, "--sha256", release.adapter.sha256, *canary),
        ),
    )


# -- adapters that all pods have lost --


def delivers_again(world: World) -> Verdict:
    """In every world, whatever the stage: adapters that no pod of their pool has any more (the last pod ended, and its disk with
    it) are delivered again, one after the other. They were verified, and are checked by hash: they serve as soon as a pod has
    them."""
    jobs = {job.name: job for job in world.obs.jobs.values() if job.attempt == stages.AGAIN}
    held, due = {meta.delivery(one.name): one for one in _verified(world)}, list[datetime.datetime]()
    if running := [job for job in jobs.values() if not job.over]:
        return Verdict(
            delete=tuple(Ref("Job", job.name) for job in running if not job.deleting and job.name not in held)
        )
    for name, one in held.items():
        if not switching.is_lost(world, one):
            if switching.seems_lost(world, one):
                due.append(world.obs.now + LOOKS)
            continue
        if name not in jobs:
            return Verdict(apply=(_again(world, one, name),))
        ended = jobs[name].finished or world.obs.now
        due.append(ended + (LOOKS if jobs[name].succeeded else switching.PAUSE))
        if world.obs.now >= due[-1]:
            return Verdict(delete=(Ref("Job", name),))
    return Verdict(again=min(due, default=None))


def _verified(world: World) -> list[Release]:
    """The releases in pools that their verify stage has delivered; what serves is first."""
    candidate = world.candidate
    shown = candidate if candidate is not None and approval.is_verified(world, candidate) else None
    return [one for one in (world.serving, shown, *world.previous) if one is not None and one.pool is not None]


def _again(world: World, release: Release, name: str) -> meta.Manifest:
    """A Job as the verify stage's, by the record of the release, where the spec is of another one."""
    content = attempts.run_of(world, release.revision, release.base_model)
    if release.name != world.release_name:
        content = content.model_copy(update={"storage": release.storage})
    work = _delivery(world.obs.pools[str(release.pool)], release)
    return stages.build(
        world.obs.parent,
        world.obs.settings,
        content,
        name=name,
        stage=work.stage,
        attempt=stages.AGAIN,
        wanted=work.resources,
        arguments=list(work.arguments),
    )


# -- the watch after the last step --


def the_former_revision_was_better(world: World) -> Verdict | None:
    """Scenario R. The current release serves in a pool that still holds the former one: it is watched for a while, and a person
    can go back for as long."""
    rollout, serves = world.state.rollout, world.serving
    if rollout is None or serves is None or not rollout.release == serves.name == world.release_name:
        return None
    former = next((one for one in world.previous if one.place == serves.place), None)
    if former is None:
        return None
    if approval.order(world, serves).verb == "rollback":
        return switching.back(world, former, f"annotation {deployment.ROLLOUT} says {world.obs.parent.order}")
    if rollout.watched_until is None:
        return None
    if world.obs.now >= rollout.watched_until:
        over: dict[str, object] = {"watched_until": None, "former": None, "findings": []}
        return Verdict(edits={"rollout": rollout.model_copy(update=over)}, proceed=True)
    before = traffic.side([rollout.former] if rollout.former is not None else [])
    looked, worse = steps.compared(rollout, steps.side(world, serves, rollout), before, traffic.AFTERWARDS)
    if worse:
        return switching.back(
            world, former, f"revision {serves.revision} answers worse than the former one did: {worse}"
        )
    return Verdict(edits={"rollout": looked}, proceed=True) if looked is not rollout else None


def settle(world: World) -> Verdict:
    """In every world: which releases the pools hold, and how long. Whatever is neither verified nor in traffic is given up."""
    held, rollout, serves = world.candidate, world.state.rollout, world.serving
    record = written(held) if held is not None and held.pool is not None else None
    edits: dict[str, object] = {"candidate": record} if world.state.candidate != record else {}
    if rollout is not None and rollout.release not in {one.name for one in (held, serves) if one is not None}:
        edits["rollout"] = rollout = None
        if world.state.stage == Stage.VERIFY and not world.true(Condition.FAILED):
            edits |= {"attempt": world.attempt + 1, "retry_at": None}  # its adapter leaves the pods
    former, again = _former(world)
    if rollout is not None and rollout.watched_until is not None:
        again = [*again, min(rollout.watched_until, world.obs.now + steps.AGAIN)]
    previous = former if former != world.previous else None
    if not edits and previous is None and not again:
        return AS_IT_IS
    return Verdict(edits=edits, previous=previous, again=min(again, default=None))


def _former(world: World) -> tuple[tuple[Release, ...], list[datetime.datetime]]:
    """The former releases that stay: of the same place as many as the job says, and one during the watch; of another place
    until they are drained. And when to look again."""
    serves, rollout = world.serving, world.state.rollout
    if serves is None:
        return (), []
    watched = rollout is not None and rollout.watched_until is not None
    most = max(world.spec.deployment.rollout.keep_previous, int(watched))
    here = [one for one in world.previous if one.place == serves.place and one.name != serves.name][:most]
    drained = leftovers.drained_at(world)
    elsewhere = [one for one in world.previous if one.place != serves.place] if world.obs.now < drained else []
    return tuple(one for one in world.previous if one in here or one in elsewhere), [drained] if elsewhere else []
