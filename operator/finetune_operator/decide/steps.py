"""Traffic in steps for a verified candidate, and the comparison between them: in a ServingPool, whose gateways share and count
the requests, or behind an HTTPRoute, where a Gateway shares them, and the servers count them.

    approval ──> step 1 .. n ──> all traffic
                   │
                   shown to be worse: back to the former revision
"""

import dataclasses
import datetime

from finetune_api import deployment, run, serving, status
from finetune_api.reasons import Condition, Reason, Stage
from finetune_operator.decide import approval, routes, switching, traffic, verdict
from finetune_operator.decide.verdict import Verdict
from finetune_operator.decide.world import World, fails
from finetune_operator.observe import members, shared
from finetune_operator.observe.records import Release

LONGEST = 6
"""A step without enough requests, or with a comparison that shows nothing either way, ends after this many times its pause."""
AGAIN = datetime.timedelta(seconds=15)


def advance(world: World, candidate: Release) -> Verdict:
    """Scenario Q. The next step of a verified candidate: approval, a share of the traffic, all of it, or back."""
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
        missing, due = _missing(world, current, rollout, candidate)
        if missing:
            text = (
                f"step {rollout.step} of {len(steps)}: revision {candidate.revision} answers {rollout.weight} % of the "
                f"requests; {missing}{_unread(world, candidate)}"
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
    """None where there is no traffic to share: no other revision under this name in this pool, or behind this route."""
    can_share = switching.share(world.serving, candidate) or routes.share(world, candidate)
    return world.spec.deployment.rollout.steps if can_share else []


def _looked(world: World, candidate: Release, rollout: status.Rollout) -> tuple[status.Rollout, str]:
    """The rollout after another look at the traffic, if one is due, and what the new revision was shown to be worse by."""
    assert world.serving is not None
    new, old = (side(world, release, rollout) for release in (candidate, world.serving))
    wanted = world.spec.deployment.rollout.minimum_requests
    rules = traffic.IN_STEPS if candidate.pool is not None else traffic.BY_ENGINE
    return compared(rollout, new, old, rules, wanted)


def compared(
    rollout: status.Rollout, new: serving.Counts, old: serving.Counts, rules: traffic.Rules, wanted: int = 0
) -> tuple[status.Rollout, str]:
    """The rollout after a look, if one is due, and what was shown to be worse. `wanted`: requests at which to look anyway."""
    # fewer than before: a gateway has started again and counts from there
    looked = rollout.requests if new.requests >= rollout.requests else 0
    if not (traffic.due(new.requests, looked) or looked < wanted <= new.requests):
        return rollout, ""
    look = rollout.looks + 1
    found = traffic.findings(new, old, rules)
    worse = traffic.worse(found, traffic.level(look))
    seen = {"looks": look, "requests": new.requests, "findings": found}
    return rollout.model_copy(update=seen), "; ".join(map(traffic.text, worse))


def side(world: World, release: Release, rollout: status.Rollout) -> serving.Counts:
    """The traffic of a release in this step, of all pods."""
    parent, step = world.obs.parent, members.step_name(rollout.wire(), "")
    if release.pool is None:
        seen = [world.obs.counted.get(pod.name, shared.Counted()).traffic for pod in world.obs.pods_of(release.name)]
        return traffic.side(one for one in seen if one is not None and one.step == step)
    pool = world.obs.pools.get(str(release.pool))
    found = pool.traffic(parent.namespace, parent.name) if pool is not None else []
    return traffic.side(one for one in found if (one.revision, one.step) == (release.revision, step))


def _unread(world: World, candidate: Release) -> str:
    """Which servers of the job's own cannot be read, so that their requests are missing."""
    if candidate.pool is not None:
        return ""
    problem = next((one.problem for _, one in sorted(world.obs.counted.items()) if one.problem), "")
    return (
        f". A server's requests cannot be counted ({problem}): allow the operator's pods to reach TCP port {run.SERVER_PORT} of "
        "the servers (NetworkPolicy, service mesh)"
        if problem
        else ""
    )


def _missing(
    world: World, step: deployment.Step, rollout: status.Rollout, candidate: Release
) -> tuple[str, datetime.datetime | None]:
    """What the next step waits for, and when to look again; empty if it may begin."""
    assert rollout.since is not None
    pause = datetime.timedelta(seconds=deployment.seconds(step.pause))
    over, longest = rollout.since + pause, rollout.since + LONGEST * pause
    if world.obs.now < over:
        return f"the next step begins at {over:%H:%M:%S} UTC at the earliest{_seen(rollout)}", _soonest(world, over)
    found = switching.held(world, candidate)
    if found.ready < found.pods:  # requests for an adapter that a pod lacks are in no comparison
        text = f"the next step waits for all pods of ServingPool {candidate.pool} to have it ({found.problem})"
        return text, world.obs.now + AGAIN
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
