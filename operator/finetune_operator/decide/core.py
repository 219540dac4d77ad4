"""Decide the next step of one job: pure, level-triggered, from the whole of what is observed.

The journey is a list of rules named after facts; the first that says True ends it. Whatever the journey says, what serves is
kept, what is left over is removed, and the status is summed up.
"""

import datetime
import json
from collections.abc import Callable

from finetune_api import revision, status
from finetune_api.reasons import Condition, Reason, Stage
from finetune_operator import conditions, revisions
from finetune_operator.decide import attempts, baseline, cost, edits, queue, rollout, summary
from finetune_operator.decide.draft import ENDS, Decision, Draft, Ref
from finetune_operator.manifests import meta
from finetune_operator.observe import observation, parents


def decide(obs: observation.Observation) -> Decision:
    """The next step of a job whose spec can be read."""
    try:
        recorded = json.loads(obs.parent.status.resolved) if obs.parent.status.resolved else None
        wanted = revisions.want(obs.spec, obs.parent.run_annotation, recorded)
        draft = Draft(obs=obs, wanted=wanted, status=obs.parent.status)
        _ = draft.serving
    except (ValueError, TypeError, AttributeError) as error:
        return refuse(
            obs.parent,
            obs.now,
            f"the records of the status (resolved, serving) are not as this operator wrote them: {str(error)[:200]}. Nothing "
            "is touched: restore the status, or delete the job and create it again",
        )
    for rule in JOURNEY:
        if rule(draft):
            break
    if not draft.remove_parent:
        rollout.keep_serving(draft)
        rollout.retire(draft)
        stop_what_is_not_wanted(draft)
        queue.settle(draft)
        cost.settle(draft)
        summary.sum_up(draft)
    return draft.decision()


def refuse(parent: parents.Parent, now: datetime.datetime, message: str = "") -> Decision:
    """What cannot be read (a spec that an API server without our schema let in, a status that other hands wrote): say so, and
    leave alone what runs and serves."""
    say = parent.status
    message = message or f"the spec is not valid: {parent.error}; edit it"
    for kind, value in ((Condition.ACCEPTED, "False"), (Condition.STALLED, "True"), (Condition.READY, "False")):
        state: conditions.State = "True" if value == "True" else "False"
        say = conditions.put(say, kind, state, Reason.INVALID_SPEC, message, parent.generation, now)
    say = conditions.put(say, Condition.RECONCILING, "False", Reason.INVALID_SPEC, message, parent.generation, now)
    return Decision(
        status=say.model_copy(update={"observed_generation": parent.generation, "phase": conditions.phase(say)})
    )


def time_to_live_is_over(draft: Draft) -> bool:
    """Finished, not serving, and its time is up."""
    ttl, finished = draft.spec.ttl_seconds_after_finished, draft.status.completion_time
    ended = any(conditions.is_true(draft.status, kind) for kind in ENDS)
    unchanged = draft.status.observed_generation == draft.obs.parent.generation
    if ttl is None or finished is None or not ended or not unchanged or draft.status.serving is not None:
        return False
    due = finished + datetime.timedelta(seconds=ttl)
    if draft.obs.now < due:
        draft.again_at(due)
        return False
    draft.remove_parent = True
    return True


def nothing_shall_be_served(draft: Draft) -> bool:
    """deployment.enabled was turned off: what serves goes, whatever else the job does."""
    if not draft.spec.deployment.enabled and draft.serving is not None:
        draft.edit(serving=None, deployment=None)
        draft.say(Condition.DEPLOYED, "False", Reason.DISABLED, "deployment.enabled is false")
    return False


def gpu_type_is_unknown(draft: Draft) -> bool:
    """A type that the operator's settings lack can never be scheduled: said before anything starts."""
    known = draft.obs.settings.gpu_types
    wanted = [draft.spec.resources, draft.spec.evaluation.resources, draft.spec.deployment.resources]
    missing = [r.gpu_type for r in wanted if r and r.gpu_type and r.gpu_type not in known]
    if not missing or conditions.is_true(draft.status, Condition.FAILED) or draft.status.revision is not None:
        return False
    draft.say(
        Condition.ACCEPTED,
        "False",
        Reason.UNSCHEDULABLE,
        f"gpuType {missing[0]} is not among the operator's: {', '.join(sorted(known)) or 'none are set'}. Choose one of them, or "
        "let the platform team add it to the chart's gpuTypes.",
    )
    return True


def base_model_is_not_in_the_catalogue(draft: Draft) -> bool:
    if revision.BASE_MODEL in draft.wanted.resolved:
        return False
    base = revision.resolve(draft.spec.base_model, draft.obs.entry)
    if base is not None:
        draft.wanted.resolved[revision.BASE_MODEL] = base.wire()
        return False
    if draft.wanted.revision != draft.status.revision:
        draft.forget(*ENDS)
    draft.say(
        Condition.ACCEPTED,
        "False",
        Reason.BASE_MODEL_NOT_FOUND,
        f"there is no BaseModel {draft.spec.base_model.name}: see `kubectl get basemodels`, or let the platform team add it; the "
        "job goes on by itself",
    )
    return True


def failure_is_final(draft: Draft) -> bool:
    """Sticky: a child that is removed, or a restart of the operator, never starts a finished revision again."""
    return conditions.is_true(draft.status, Condition.FAILED)


def everything_is_done(draft: Draft) -> bool:
    """Complete without a server, or the wanted release serves, or a prompt was enough."""
    if not draft.spec.deployment.enabled or baseline.prompt_is_enough(draft):
        return conditions.is_true(draft.status, Condition.COMPLETE)
    serving = draft.serving
    return (
        serving is not None
        and serving.name == draft.release_name
        and conditions.is_true(draft.status, Condition.DEPLOYED)
    )


def suspension_is_over(draft: Draft) -> bool:
    """Resuming starts the next attempt with a new clock, unless the last one had ended before it could be stopped."""
    if draft.spec.suspend or not conditions.is_true(draft.status, Condition.SUSPENDED):
        return False
    draft.say(Condition.SUSPENDED, "False", Reason.RESUMED, "resumed from the last checkpoint, if there was one")
    if draft.status.stage is not None and not attempts.had_ended(draft, Stage(draft.status.stage)):
        draft.edit(attempt=(draft.status.attempt or 0) + 1, retry_at=None)
    draft.edit(start_time=draft.obs.now.replace(microsecond=0), queue=None)
    return False


def job_is_suspended(draft: Draft) -> bool:
    """The running stage is stopped, its checkpoints stay."""
    if not draft.spec.suspend:
        return False
    stage = draft.status.stage
    if stage and not conditions.is_true(draft.status, Condition.SUSPENDED):
        draft.say(conditions.STAGE_CONDITIONS[Stage(stage)], "Unknown", Reason.SUSPENDED, f"{stage} is suspended")
    draft.say(Condition.SUSPENDED, "True", Reason.SUSPENDED, "spec.suspend is true: set it to false to go on")
    return True


def deadline_has_passed(draft: Draft) -> bool:
    """Waiting in a queue is not counted: when that ends is not the job's to say."""
    started, queued = draft.status.start_time, draft.status.queue
    if started is None or (queued is not None and queued.since is not None):
        return False
    granted = draft.spec.active_deadline_seconds + (queued.waited_seconds if queued else 0)
    due = started + datetime.timedelta(seconds=granted)
    if draft.obs.now < due:
        draft.again_at(due)
        return False
    stage = Stage(draft.status.stage) if draft.status.stage else Stage.PREFLIGHT
    waited = conditions.get(draft.status, conditions.STAGE_CONDITIONS[stage])
    seen = f"; the last that was seen: {waited.reason}: {waited.message}" if waited else ""
    draft.fail(
        stage,
        Reason.DEADLINE_EXCEEDED,
        f"the revision did not end within activeDeadlineSeconds ({draft.spec.active_deadline_seconds}){seen}",
    )
    return True


def preflight_is_not_done(draft: Draft) -> bool:
    if conditions.is_true(draft.status, Condition.PREFLIGHT_PASSED):
        return False
    wanted = draft.spec.resources.model_copy(update={"gpus": 0, "requests": draft.obs.settings.preflight.requests})
    answer = attempts.advance(
        draft, Stage.PREFLIGHT, draft.base_model, wanted.model_copy(update={"gpu_type": None}), []
    )
    if answer is None:
        return True
    found = answer.preflight
    draft.edit(preflight=found)
    if answer.reason is not None:
        draft.fail(Stage.PREFLIGHT, answer.reason, answer.message)
        return True
    text = f"{found.examples} training examples; {found.verdict}" if found else answer.message
    advice = " ".join(found.advice) if found else ""
    draft.say(Condition.PREFLIGHT_PASSED, "True", Reason.SUCCEEDED, f"{text}. {advice}".strip(". ") + ".")
    return False


def training_is_not_done(draft: Draft) -> bool:
    if conditions.is_true(draft.status, Condition.TRAINED):
        return False
    scale = draft.status.micro_batch_scale
    arguments = ["--micro-batch-scale", str(scale)] if scale else []
    wanted = draft.spec.resources
    answer = attempts.advance(draft, Stage.TRAIN, draft.base_model, wanted, arguments, nodes=wanted.nodes)
    copy_progress(draft)
    if answer is None:
        return True
    if answer.training is None:
        draft.fail(
            Stage.TRAIN, Reason.TRAINER_ERROR, "training ended well but named no adapter: look at the trainer's image"
        )
        return True
    done = answer.training
    draft.edit(
        artifacts=status.Artifacts(adapter=done.adapter),
        progress=status.Progress(
            summary="100%",
            percent=100,
            step=done.steps,
            total_steps=done.steps,
            loss=f"{done.loss:.4f}",
            validation_loss=None if done.validation_loss is None else f"{done.validation_loss:.4f}",
            tokens_per_second=round(done.tokens_per_second),
            updated_at=draft.obs.now.replace(microsecond=0),
        ),
    )
    resumed = "" if done.resumed_from is None else f" (resumed from step {done.resumed_from})"
    draft.say(
        Condition.TRAINED,
        "True",
        Reason.SUCCEEDED,
        f"{done.steps} steps{resumed}, loss {done.loss:.4f}: {done.adapter.uri}",
    )
    return False


def evaluation_is_not_done(draft: Draft) -> bool:
    if conditions.is_true(draft.status, Condition.EVALUATED):
        return False
    adapter = draft.adapter
    wanted = draft.spec.evaluation.resources or draft.spec.resources
    arguments = ["--adapter", adapter.uri, "--sha256", adapter.sha256]
    if (serving := draft.serving) is not None and serving.revision != draft.wanted.revision:
        arguments += ["--serving", serving.adapter.uri, "--serving-sha256", serving.adapter.sha256]
    answer = attempts.advance(draft, Stage.EVALUATE, draft.base_model, wanted, arguments)
    if answer is None:
        return True
    found = answer.evaluation
    if found is None:
        draft.fail(Stage.EVALUATE, Reason.TRAINER_ERROR, "the evaluation ended well but gave no results")
        return True
    draft.edit(evaluation=found, artifacts=status.Artifacts(adapter=adapter, report=answer.report))
    if not found.passed:
        missed = "; ".join(
            f"{g.metric}: required {g.requirement}, observed {g.observed}" for g in found.gates if not g.passed
        )
        draft.fail(
            Stage.EVALUATE,
            Reason.EVALUATION_BELOW_GATE,
            f"{missed}. Look at the report ({answer.report}), then improve data or training, or change evaluation.gates.",
        )
        return True
    gates = f"{len(found.gates)} of {len(found.gates)} gates passed" if found.gates else "no gates"
    draft.say(Condition.EVALUATED, "True", Reason.SUCCEEDED, f"{gates} on {found.examples} test examples")
    return False


def deployment_is_disabled(draft: Draft) -> bool:
    if draft.spec.deployment.enabled:
        return False
    report = draft.status.artifacts.report if draft.status.artifacts else None
    draft.say(Condition.DEPLOYED, "False", Reason.DISABLED, "deployment.enabled is false")
    draft.say(Condition.COMPLETE, "True", Reason.SUCCEEDED, f"the adapter is trained and measured: {report}")
    draft.edit(failure=None)
    draft.finish(Reason.SUCCEEDED)
    return True


def the_release_is_rolled_out(draft: Draft) -> bool:
    rollout.advance(draft, draft.base_model, draft.adapter)
    return True


JOURNEY: tuple[Callable[[Draft], bool], ...] = (
    time_to_live_is_over,
    nothing_shall_be_served,
    suspension_is_over,
    gpu_type_is_unknown,
    base_model_is_not_in_the_catalogue,
    edits.the_spec_asks_for_other_work,
    failure_is_final,
    everything_is_done,
    job_is_suspended,
    deadline_has_passed,
    preflight_is_not_done,
    baseline.baseline_is_not_done,
    baseline.a_prompt_is_all_it_takes,
    training_is_not_done,
    evaluation_is_not_done,
    deployment_is_disabled,
    the_release_is_rolled_out,
)


def copy_progress(draft: Draft) -> None:
    """The trainer's own words, at most every few seconds, and only of the attempt that runs."""
    config = draft.obs.configs.get(meta.progress_config(draft.obs.parent, draft.wanted.revision))
    report = config.progress if config else None
    if report is None or report.revision != draft.wanted.revision or report.attempt != draft.status.attempt:
        return
    if report.stage not in {None, Stage.TRAIN}:
        return
    old, told = draft.status.progress, report.progress
    said = conditions.get(draft.status, Condition.TRAINED)
    if said is None or said.reason != Reason.RUNNING:
        told = told.model_copy(update={"eta": None})  # it would promise an end while nothing runs
    if told == old:
        return
    if report.checkpoint is not None and report.checkpoint != draft.status.checkpoint:
        draft.edit(checkpoint=report.checkpoint)
    elif old is not None and old.updated_at is not None and report.progress.percent < 100:
        # By the trainer's clock or by ours, since they may differ.
        pause = datetime.timedelta(seconds=draft.obs.settings.progress_seconds)
        due = min(old.updated_at, draft.obs.now) + pause
        if draft.obs.now < due and (told.updated_at is None or told.updated_at < old.updated_at + pause):
            draft.again_at(due)
            return
    draft.edit(progress=told)


def stop_what_is_not_wanted(draft: Draft) -> None:
    """Running Jobs other than the wanted one, and the files of revisions that nobody needs. Finished Jobs stay for a look."""
    draft.delete += [
        Ref("Job", present.name)
        for present in draft.obs.jobs.values()
        if not present.over and not present.deleting and present.name != draft.active_job
    ]
    needed = {draft.status.revision, draft.serving.revision if draft.serving else None} - {None}
    names = {
        name
        for one in needed
        for name in (
            meta.run_config(draft.obs.parent, str(one)),
            meta.progress_config(draft.obs.parent, str(one)),
        )
    }
    # A release that drains still mounts its run file.
    draining = {server.revision for server in draft.obs.servers.values()}
    names |= {meta.run_config(draft.obs.parent, one) for one in draining}
    draft.delete += [Ref("ConfigMap", name) for name in draft.obs.configs if name not in names]
