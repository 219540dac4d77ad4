"""Rules of a job's life around its stages: prerequisites, suspension, the deadline, and the end."""

import datetime

from finetune_api import revision
from finetune_api.reasons import Condition, Reason, Stage
from finetune_operator import conditions
from finetune_operator.decide import attempts, baseline, verdict
from finetune_operator.decide.verdict import Say, Verdict
from finetune_operator.decide.world import ENDS, World, fails

UNWATCHED = datetime.timedelta(seconds=attempts.REFUSED_AGAIN)
"""After which Services of others, and the kubelet's events, are read again."""


def time_to_live_is_over(world: World) -> Verdict | None:
    """Scenarios J and L. Finished, not serving, and its time is up."""
    due = _removal_due(world)
    return Verdict(remove_parent=True) if due is not None and world.obs.now >= due else None


def _removal_due(world: World) -> datetime.datetime | None:
    ttl, finished = world.spec.ttl_seconds_after_finished, world.state.completion_time
    unchanged = world.state.observed_generation == world.obs.parent.generation
    if ttl is None or finished is None or not unchanged or world.serving is not None or not any(map(world.true, ENDS)):
        return None
    return finished + datetime.timedelta(seconds=ttl)


def serving_was_turned_off(world: World) -> Verdict | None:
    """Scenarios H, I and K. deployment.enabled is false now: the serving release is removed, whatever else the job does."""
    if world.spec.deployment.enabled or world.serving is None:
        return None
    text = "not served, because deployment.enabled is false"
    return verdict.says(
        Condition.DEPLOYED,
        "False",
        Reason.DISABLED,
        text,
        withdraws=True,
        previous=(),
        edits={"deployment": None, "rollout": None},
        proceed=True,
    )


def suspension_is_over(world: World) -> Verdict | None:
    """Scenario M. Resuming starts the next attempt with a new deadline, unless the last one ended before it could be
    stopped."""
    if world.spec.suspend or not world.true(Condition.SUSPENDED):
        return None
    clock = {"start_time": world.now, "queue": None}
    next_attempt = {"attempt": (world.state.attempt or 0) + 1, "retry_at": None}
    stopped = world.state.stage is not None and not attempts.had_ended(world, Stage(world.state.stage))
    return verdict.says(
        Condition.SUSPENDED,
        "False",
        Reason.RESUMED,
        "resumed from the last checkpoint, if there was one",
        edits=clock | (next_attempt if stopped else {}),
        proceed=True,
    )


def gpu_type_is_unknown(world: World) -> Verdict | None:
    """Scenario A. A type that is not in the operator's settings can never be scheduled: reported before anything starts."""
    known = world.obs.settings.gpu_types
    wanted = [world.spec.resources, world.spec.evaluation.resources, world.spec.deployment.resources]
    missing = [r.gpu_type for r in wanted if r and r.gpu_type and r.gpu_type not in known]
    if not missing or world.true(Condition.FAILED) or world.state.revision is not None:
        return None
    return verdict.says(
        Condition.ACCEPTED,
        "False",
        Reason.UNSCHEDULABLE,
        f"gpuType {missing[0]} is not in the operator's settings, which have: {', '.join(sorted(known)) or 'none'}. "
        "Choose one of these, or ask the platform team to add it to the chart's gpuTypes.",
    )


def base_model_is_not_in_the_catalogue(world: World) -> Verdict | None:
    """Scenarios A and N."""
    if world.base is not None:
        return None
    return verdict.says(
        Condition.ACCEPTED,
        "False",
        Reason.BASE_MODEL_NOT_FOUND,
        f"there is no BaseModel {world.spec.base_model.name}: see `kubectl get basemodels`, or ask the platform team "
        "to add it; the job then continues automatically",
        forgets=ENDS if world.wanted.revision != world.state.revision else (),
    )


def pool_cannot_serve_it(world: World) -> Verdict | None:
    """Scenarios A and N. The ServingPool does not exist, or does not fit: reported before anything starts. A job that was
    accepted with it continues until it trains, or until its model is to be served."""
    accepted = world.true(Condition.ACCEPTED) and world.state.release == world.release_name
    if not world.placement.problem or accepted or baseline.prompt_is_enough(world):
        return None
    return verdict.says(
        Condition.ACCEPTED,
        "False",
        world.placement.reason,
        world.placement.problem,
        forgets=(Condition.COMPLETE,),
    )


def served_name_is_taken(world: World) -> Verdict | None:
    """Scenarios A and N. Clients that name this model would reach another one, where a gateway routes by name. A job that was
    accepted under its name keeps it; one that was complete without a server had none."""
    recorded = (world.obs.parent.records.inputs or {}).get(revision.RELEASE)
    accepted = recorded is not None and recorded.get("servedModelName") == world.spec.deployment.served_model_name
    keeps = accepted and world.true(Condition.ACCEPTED) and not world.true(Condition.COMPLETE)
    if not world.obs.name_holder or keeps or baseline.prompt_is_enough(world):
        return None
    name = world.spec.deployment.served_model_name or world.obs.parent.name
    return verdict.says(
        Condition.ACCEPTED,
        "False",
        Reason.SERVED_NAME_TAKEN,
        f"FineTuneJob {world.obs.name_holder} of this namespace answers as {name}, too: set another "
        "deployment.servedModelName, or delete one of the jobs; this one then continues automatically",
        forgets=(Condition.COMPLETE,),
    )


def service_name_is_taken(world: World) -> Verdict | None:
    """Scenarios A and N. The job's Service could not be created at the end of all work: somebody else's has its name."""
    if not world.obs.service_taken or world.placement.pool or baseline.prompt_is_enough(world):
        return None
    return verdict.says(
        Condition.ACCEPTED,
        "False",
        Reason.SERVED_NAME_TAKEN,
        f"Service {world.obs.parent.name} exists and is not this job's, which needs one of its own name: rename the job, or "
        "delete that Service; the job then continues automatically",
        forgets=(Condition.COMPLETE,),
        again=world.obs.now + UNWATCHED,
    )


def failure_is_final(world: World) -> Verdict | None:
    """Scenarios J and K. A deleted child or a restart of the operator never restarts a finished revision."""
    return verdict.AS_IT_IS if world.true(Condition.FAILED) else None


def everything_is_done(world: World) -> Verdict | None:
    """Scenarios H and L. Complete without a server, or the current release serves, or a prompt was enough."""
    if not world.spec.deployment.enabled or baseline.prompt_is_enough(world):
        done = world.true(Condition.COMPLETE)
    else:
        serves = world.serving is not None and world.serving.name == world.release_name
        done = serves and world.true(Condition.DEPLOYED)
    return verdict.AS_IT_IS if done else None


def job_is_suspended(world: World) -> Verdict | None:
    """Scenario M. The running stage is stopped, its checkpoints stay."""
    if not world.spec.suspend:
        return None
    stage, says = world.state.stage, list[Say]()
    if stage and not world.true(Condition.SUSPENDED):
        kind = conditions.STAGE_CONDITIONS[Stage(stage)]
        says.append(Say(kind, "Unknown", Reason.SUSPENDED, f"{stage} is suspended"))
    text = "spec.suspend is true: set it to false to resume"
    return Verdict(says=(*says, Say(Condition.SUSPENDED, "True", Reason.SUSPENDED, text)))


def deadline_has_passed(world: World) -> Verdict | None:
    """Scenarios B to G. Waiting in a queue is not counted, since the job cannot influence it."""
    due = _deadline(world)
    if due is None or world.obs.now < due:
        return None
    stage = Stage(world.state.stage) if world.state.stage else Stage.PREFLIGHT
    waited = world.condition(conditions.STAGE_CONDITIONS[stage])
    seen = f"; the last condition: {waited.reason}: {waited.message}" if waited else ""
    granted = world.spec.active_deadline_seconds
    text = f"the revision did not end within activeDeadlineSeconds ({granted}): raise it, or remove what delays the job{seen}"
    return fails(world, stage, Reason.DEADLINE_EXCEEDED, text)


def _deadline(world: World) -> datetime.datetime | None:
    started, queued, verified = world.state.start_time, world.state.queue, world.state.rollout
    if verified is not None and verified.release == world.release_name:
        return None  # what follows waits for a person, or for traffic
    if started is None or (queued is not None and queued.since is not None):
        return None
    granted = world.spec.active_deadline_seconds + (queued.waited_seconds if queued else 0)
    return started + datetime.timedelta(seconds=granted)


def _stalls(world: World) -> datetime.datetime | None:
    ready = world.condition(Condition.READY)
    patience = world.obs.settings.stalled_after_seconds
    return conditions.stalls(world.state.waiting, ready.message, patience) if ready is not None else None


def _prepared(world: World) -> datetime.datetime | None:
    times = [world.obs.prepared_by(pod.placed) for pod in world.obs.pods if pod.preparing and pod.placed]
    return min((time if time > world.obs.now else world.obs.now + UNWATCHED for time in times), default=None)


def wake(world: World) -> Verdict:
    """In every world: reconcile again when the deadline, the time to live or the patience with a waiting job has passed, and to
    ask why a node does not start a pod."""
    over = world.true(Condition.SUSPENDED) or world.state.completion_time is not None
    due = [_removal_due(world), None if over else _deadline(world), _stalls(world), _prepared(world)]
    return Verdict(again=min((time for time in due if time is not None and time > world.obs.now), default=None))
