"""A release in a ServingPool: delivered and verified by its verify stage, then traffic in steps, then a watch.

    candidate ──> verify stage: delivers the adapter, asks every pod ──> approval ──> step 1 .. n ──> all traffic ──> watch
       │                                                                               │                        │
       held by the index                                        shown to be worse: back to the former revision <─┘

The index (`observe.members`) follows from `status.serving`, `candidate`, `previous` and `rollout`, which this writes.
Pods of a pool are not the job's: nothing is applied here.
"""

import dataclasses
import datetime
import functools

from finetune_api import deployment, job, outcome, status
from finetune_api.reasons import Condition, Reason, Stage
from finetune_operator.decide import approval, attempts, leftovers, switching, traffic, verdict
from finetune_operator.decide.verdict import AS_IT_IS, Verdict
from finetune_operator.decide.world import World, fails, written
from finetune_operator.observe import members
from finetune_operator.observe.records import Release
from finetune_operator.observe.shared import Pool

LONGEST = 6
"""A step without enough requests, or with a comparison that shows nothing either way, ends after this many times its pause."""
AGAIN = datetime.timedelta(seconds=15)
LOOKS = datetime.timedelta(seconds=60)
"""In which every pod has been looked at."""


def rolls_out(world: World, candidate: Release) -> Verdict:
    """Scenarios P and Q."""
    pool = world.obs.pools[str(candidate.pool)]
    if approval.is_verified(world, candidate):
        return _after_verification(world, candidate)
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


# -- an adapter that all pods have lost --


def is_lost(world: World) -> bool:
    """Whether no pod of its pool has the adapter of the release that serves: the last pod ended, and its disk with it."""
    serves = world.serving
    if serves is None or serves.pool is None or serves.name != world.release_name or serves.pool not in world.obs.pools:
        return False
    found = world.obs.pools[serves.pool].adapters(serves.adapter.sha256)
    return bool(found) and all(one is not None and one.state == "Missing" for one in found.values())


def delivers_again(world: World, serves: Release) -> Verdict:
    """Scenario H, without its adapter. It was verified, and is checked by its hash: it serves as soon as a pod has it."""
    pool = world.obs.pools[str(serves.pool)]
    if world.true(Condition.DEPLOYED):
        text = f"no pod of ServingPool {pool.name} has the adapter any more, which is delivered again"
        found = verdict.says(Condition.DEPLOYED, "Unknown", Reason.STARTING, text, proceed=True)
        return dataclasses.replace(found, edits={**attempts.begin(Stage.VERIFY).edits, "attempt": world.attempt + 1})
    return attempts.advance(world, _delivery(pool, serves), _was_delivered)


def _was_delivered(world: World, _: outcome.Outcome) -> Verdict:
    """The pods have it, and say so at the next look; or have lost it once more."""
    return Verdict(edits={"attempt": world.attempt + 1, "retry_at": world.now + LOOKS})


# -- steps --


def _after_verification(world: World, candidate: Release) -> Verdict:
    """Scenario Q."""
    rollout, steps = world.state.rollout, _steps(world, candidate)
    assert rollout is not None
    asked = approval.order(world, candidate).verb
    if asked == "rollback":
        return _refused(world, f"annotation {deployment.ROLLOUT} says {world.obs.parent.order}")
    if rollout.step:
        rollout, worse = _looked(world, candidate, rollout)
        if worse:
            return _refused(world, f"revision {candidate.revision} answers worse than the former one: {worse}")
    if held := approval.waits(world, candidate):
        return dataclasses.replace(held, edits={**held.edits, "rollout": rollout}, again=_next_look(world, rollout))
    if asked == "promote" or rollout.step > len(steps) or (not rollout.step and not steps):
        return switching.switch(world, candidate)
    if rollout.step:
        current = steps[rollout.step - 1]
        missing, due = _missing(world, current, rollout)
        if missing:
            text = (
                f"step {rollout.step} of {len(steps)}: revision {candidate.revision} answers {rollout.weight} % of the "
                f"requests; {missing}"
            )
            return verdict.says(
                Condition.DEPLOYED, "Unknown", Reason.ROLLING_OUT, text, edits={"rollout": rollout}, again=due
            )
    if rollout.step == len(steps):
        return switching.switch(world, candidate)
    following = steps[rollout.step]
    rollout = rollout.model_copy(
        update={"step": rollout.step + 1, "weight": following.weight, "since": world.now, "requests": 0, "findings": []}
    )
    return Verdict(edits={"rollout": rollout}, candidate=candidate, proceed=True)


def _steps(world: World, candidate: Release) -> list[deployment.Step]:
    """None where there is no traffic to share: no other revision under this name in this pool."""
    shared = switching.share(world.serving, candidate)
    return world.spec.deployment.rollout.steps if shared else []


def _looked(world: World, candidate: Release, rollout: status.Rollout) -> tuple[status.Rollout, str]:
    """The rollout after another look at the traffic, if one is due, and what the new revision was shown to be worse by."""
    assert world.serving is not None
    new, old = (_side(world, release, rollout) for release in (candidate, world.serving))
    wanted = world.spec.deployment.rollout.minimum_requests
    return _compared(rollout, new, old, traffic.IN_STEPS, wanted)


def _compared(
    rollout: status.Rollout, new: traffic.Side, old: traffic.Side, rules: traffic.Rules, wanted: int = 0
) -> tuple[status.Rollout, str]:
    # fewer than before: a gateway has started again and counts from there
    looked = rollout.requests if new.requests >= rollout.requests else 0
    if not (traffic.due(new.requests, looked) or looked < wanted <= new.requests):
        return rollout, ""
    look = rollout.looks + 1
    found = traffic.findings(new, old, rules)
    worse = traffic.worse(found, traffic.level(look))
    seen = {"looks": look, "requests": new.requests, "findings": found}
    return rollout.model_copy(update=seen), "; ".join(map(traffic.text, worse))


def _side(world: World, release: Release, rollout: status.Rollout) -> traffic.Side:
    """The traffic of a release in this step, of all pods."""
    parent, step = world.obs.parent, members.step_name(rollout.wire(), "")
    pool = world.obs.pools.get(str(release.pool))
    found = pool.traffic(parent.namespace, parent.name) if pool is not None else []
    return traffic.side(one for one in found if (one.revision, one.step) == (release.revision, step))


def _missing(world: World, step: deployment.Step, rollout: status.Rollout) -> tuple[str, datetime.datetime | None]:
    """What the next step waits for, and when to look again; empty if it may begin."""
    assert rollout.since is not None
    pause = datetime.timedelta(seconds=deployment.seconds(step.pause))
    over, longest = rollout.since + pause, rollout.since + LONGEST * pause
    if world.obs.now < over:
        return f"the next step begins at {over:%H:%M:%S} UTC at the earliest{_seen(rollout)}", _soonest(world, over)
    if world.obs.now >= longest:
        return "", None
    until = f", or {longest:%Y-%m-%d %H:%M} UTC{_seen(rollout)}"
    wanted = world.spec.deployment.rollout.minimum_requests
    if rollout.requests < wanted:
        text = f"the next step waits for {wanted - rollout.requests} more requests of the new revision{until}"
        return text, _soonest(world, longest)
    if _is_suspicious(rollout):
        more = int(rollout.requests * traffic.GROWTH) + 1 - rollout.requests
        text = f"it may answer worse, but that is not shown: the next step waits for {more} more requests{until}"
        return text, _soonest(world, longest)
    return "", None


def _is_suspicious(rollout: status.Rollout) -> bool:
    """Whether the last comparison alone, without regard to those before it, would show the new revision to be worse."""
    return any(one.p <= traffic.LEVEL for one in rollout.findings)


def _seen(rollout: status.Rollout) -> str:
    return f" ({rollout.requests} requests compared: {traffic.text(rollout.findings[0])})" if rollout.findings else ""


def _soonest(world: World, time: datetime.datetime) -> datetime.datetime:
    return min(time, world.obs.now + AGAIN)


def _next_look(world: World, rollout: status.Rollout) -> datetime.datetime | None:
    return world.obs.now + AGAIN if rollout.step else None


def _refused(world: World, text: str) -> Verdict:
    """Back to the former revision, which still serves; no other attempt until the spec changes."""
    failed = fails(world, Stage.VERIFY, Reason.ROLLED_BACK, f"{text}. Its evaluation is in status.evaluation")
    return dataclasses.replace(failed, edits={**failed.edits, "rollout": None})


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
    looked, worse = _compared(rollout, _side(world, serves, rollout), before, traffic.AFTERWARDS)
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
        again = [*again, min(rollout.watched_until, world.obs.now + AGAIN)]
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
