"""The summary of a status: Ready, Reconciling and Stalled by kstatus' rules, then the phase for people."""

from finetune_api import run, status
from finetune_api import serving as api
from finetune_api.reasons import Condition, Reason, Stage
from finetune_operator import conditions
from finetune_operator.decide import diagnosis, drift, sleep, switching
from finetune_operator.decide.verdict import Say, Verdict
from finetune_operator.decide.world import STAGES, World
from finetune_operator.manifests import gateway, meta
from finetune_operator.observe import projections, records


def sum_up(world: World) -> status.Status:
    """The status as it is written."""
    generation = world.obs.parent.generation
    state = conditions.seen(_summarized(world), generation)
    return state.model_copy(update={"observed_generation": generation, "phase": conditions.phase(state)})


def _summarized(world: World) -> status.Status:
    if says := _settled(world):
        return world.settled(Verdict(says=says, edits={"waiting": None} if world.state.waiting else {})).state
    kinds = (Condition.ACCEPTED, *STAGES)
    found = [c for c in map(world.condition, kinds) if c is not None and c.status != "True"]
    reason, text = (found[0].reason, found[0].message) if found else (Reason.WAITING, "starting")
    return conditions.waits(
        world.state,
        reason,
        text + _meanwhile(world),
        world.obs.parent.generation,
        world.obs.now,
        world.obs.settings.stalled_after_seconds,
    )


def _settled(world: World) -> tuple[Say, ...]:
    """The summary of a job that neither waits nor works towards its release; empty if it does."""
    if world.true(Condition.FAILED):
        return _failed(world)
    if world.true(Condition.COMPLETE):
        return _complete(world)
    if world.true(Condition.SUSPENDED):
        text = "suspended: set spec.suspend to false to resume" + _meanwhile(world)
        return _kstatus("False", False, False, Reason.SUSPENDED, text)
    serving = world.serving
    if serving is not None and serving.name == world.release_name and world.true(Condition.DEPLOYED):
        return _serves(world, serving)
    return ()


def _failed(world: World) -> tuple[Say, ...]:
    """Scenario J, or K, where Deployed stays True for the serving release."""
    failed, failure, serving = world.condition(Condition.FAILED), world.state.failure, world.serving
    assert failed is not None
    summary = _kstatus("False", False, True, failed.reason, failed.message + _meanwhile(world))
    if serving is None:
        return summary
    if switching.seems_lost(world, serving):
        return (Say(Condition.DEPLOYED, "Unknown", Reason.STARTING, _lost(world, serving)), *summary)
    rolled = Reason.ROLLED_BACK if failure and failure.stage == Stage.VERIFY else Reason.SERVING
    text = f"revision {serving.revision} serves; the current one failed"
    return (Say(Condition.DEPLOYED, "True", rolled, text), *summary)


def _complete(world: World) -> tuple[Say, ...]:
    complete = world.condition(Condition.COMPLETE)
    if complete is not None and complete.reason == Reason.PROMPT_ALREADY_SUFFICIENT:
        reason, text = Reason.PROMPT_ALREADY_SUFFICIENT, complete.message
    else:
        reason, text = Reason.SUCCEEDED, "complete: deployment is disabled"
    return _kstatus("True", False, False, reason, text + _meanwhile(world))


def _serves(world: World, serving: records.Release) -> tuple[Say, ...]:
    if serving.pool is not None:
        return _serves_in_pool(world, serving)
    ready, replicas = world.obs.ready(serving.name), drift.replicas(world, world.obs.servers.get(serving.name))
    text = f"{ready} of {replicas} pods of revision {serving.revision} are ready"
    problems = [] if ready else [p for p in map(_pod_problem, world.obs.pods_of(serving.name)) if p]
    text = f"{text}: {problems[0]}" if problems else text
    if elsewhere := drift.diverted(world, serving):
        return _kstatus("False", True, False, Reason.CHANGED_BY_OTHERS, elsewhere)
    if asleep := _sleeps(world, serving):
        return asleep
    if not ready and world.state.deployment and world.state.deployment.held_since:
        return _kstatus(
            "False", True, False, Reason.WAKING, f"a request or a step of a rollout starts the servers: {text}"
        )
    if unread := sleep.unread(world):
        text += (
            f". The servers do not sleep (deployment.idle), since when clients asked cannot be read ({unread}): allow the "
            f"operator's pods to reach TCP ports {run.SERVER_PORT} and {api.DELIVERY_PORT} of the job's pods (NetworkPolicy, "
            "service mesh)"
        )
    return _kstatus("True" if ready else "False", ready < replicas, False, Reason.SERVING, text)


def _sleeps(world: World, serving: records.Release) -> tuple[Say, ...]:
    """The summary of a job whose servers sleep; empty if they do not."""
    deployed, wanted = world.state.deployment, world.spec.deployment.idle
    if wanted is None or deployed is None or deployed.asleep_since is None:
        return ()
    text = (
        f"revision {serving.revision} sleeps since {deployed.asleep_since:%Y-%m-%d %H:%M:%S} UTC, after {wanted.after} without a "
        "request: the next one starts its servers"
    )
    if sleep.activators(world):
        return _kstatus("True", False, False, Reason.ASLEEP, text)
    name = gateway.name_of_activator(world.obs.parent.name)
    return _kstatus("False", True, False, Reason.STARTING, f"{text}; the pod that takes it (Deployment {name}) starts")


def _serves_in_pool(world: World, serving: records.Release) -> tuple[Say, ...]:
    if world.state.deployment and world.state.deployment.held_since:
        text = f"ServingPool {serving.pool} sleeps, and requests start its servers"
        return _kstatus("True", False, False, Reason.ASLEEP, text)
    found = switching.held(world, serving)
    reason = Reason.SERVING if serving.pool in world.obs.pools else Reason.POOL_NOT_FOUND
    watched = world.state.rollout.watched_until if world.state.rollout else None
    text = f"{found.ready} of {found.pods} pods of ServingPool {serving.pool} have revision {serving.revision}"
    if switching.is_lost(world, serving):
        text = _lost(world, serving)
    elif found.problem:
        text += f": {found.problem}"
    text += f"; it is compared with the former revision until {watched:%Y-%m-%d %H:%M} UTC" if watched else ""
    return _kstatus("True" if found.ready else "False", found.ready < max(found.pods, 1), False, reason, text)


def _meanwhile(world: World) -> str:
    if world.serving is None:
        return ""
    if switching.seems_lost(world, world.serving):
        return f" ({_lost(world, world.serving)})"
    return f" (revision {world.serving.revision} keeps serving)"


def _lost(world: World, serving: records.Release) -> str:
    adapter = f"the adapter of revision {serving.revision}, which serves"
    if not switching.is_lost(world, serving):
        return f"no pod of ServingPool {serving.pool} had {adapter}, when they were last read"
    text = f"no pod of ServingPool {serving.pool} has {adapter}: Job {meta.delivery(serving.name)}"
    job = switching.delivery(world, serving)
    if job is None or not job.failed or job.finished is None:
        return f"{text} delivers it again"
    return f"{text} failed to deliver it again, see its log; the next one starts at {job.finished + switching.PAUSE:%H:%M:%S} UTC"


def _pod_problem(pod: projections.Pod) -> str:
    problem = diagnosis.server(pod)
    return problem.message if problem else ""


def _kstatus(ready: conditions.State, reconciling: bool, stalled: bool, reason: str, message: str) -> tuple[Say, ...]:
    return (
        Say(Condition.READY, ready, reason, message),
        Say(Condition.RECONCILING, "True" if reconciling else "False", reason, message),
        Say(Condition.STALLED, "True" if stalled else "False", reason, message),
    )
