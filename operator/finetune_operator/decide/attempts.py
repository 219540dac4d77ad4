"""A stage and its attempts: one Job each, started, watched, and repeated by the exit-code contract."""

import datetime

from finetune_api import job, outcome, run, status
from finetune_api.reasons import Reason, Stage
from finetune_operator import conditions, observe
from finetune_operator.decide import diagnosis
from finetune_operator.decide.draft import Draft, Ended, Ref
from finetune_operator.manifests import configs, identity, meta, stages

LONGEST_PAUSE = 300.0
SMALLEST_SHARE = 0.5
"""An out-of-memory is answered once, with half the micro-batch."""
LATE = 10.0
"""Seconds by which the news of a pod's end may come after those of its Job's: two watches, in no order."""
REFUSED_AGAIN = 15.0
"""Seconds after which a Job without a pod is looked at again: what refuses its pods sends no event."""


def run_of(draft: Draft, revision: str, base: run.ResolvedBaseModel) -> run.Run:
    """The run file of a revision."""
    spec, parent = draft.spec, draft.obs.parent
    return run.Run(
        name=parent.name,
        namespace=parent.namespace,
        revision=revision,
        evaluation_hash=draft.wanted.evaluation_hash,
        advice=spec.intent.advice,
        base_model=base,
        dataset=spec.dataset,
        storage=spec.storage,
        training=spec.training,
        evaluation=spec.evaluation,
        gpus=spec.resources.gpus,
        served_model_name=spec.deployment.served_model_name or parent.name,
        progress_config_map=meta.progress_config(parent, revision),
    )


def furnish(draft: Draft, content: run.Run) -> None:
    """What the pods of a revision need besides themselves; applied only where absent or different."""
    parent, chart = draft.obs.parent, draft.obs.settings
    wanted = [configs.run_file(parent, chart, content), configs.progress(parent, chart, content.revision)]
    for manifest in wanted:
        present = draft.obs.configs.get(manifest["metadata"]["name"])
        if present is None or present.hash != meta.hash_of(manifest):
            draft.apply.append(manifest)


def advance(
    draft: Draft,
    stage: Stage,
    base: run.ResolvedBaseModel,
    resources: job.Resources,
    arguments: list[str],
    api_key_secret: str | None = None,
) -> outcome.Outcome | None:
    """Take the stage one step further. Returns its answer once it succeeded, else None: it runs, waits, or failed."""
    draft.enter_once(stage)
    attempt = draft.status.attempt or 1
    if draft.status.retry_at is not None:
        if draft.obs.now < draft.status.retry_at:
            draft.again_at(draft.status.retry_at)
            return None
        draft.edit(retry_at=None)
    content = run_of(draft, draft.wanted.revision, base)
    name = meta.stage_job(draft.obs.parent, draft.wanted, stage, attempt)
    manifest = stages.build(
        draft.obs.parent,
        draft.obs.settings,
        content,
        name=name,
        stage=stage,
        attempt=attempt,
        wanted=resources,
        arguments=[*arguments, "--attempt", str(attempt)] if stage in {Stage.TRAIN, Stage.EVALUATE} else arguments,
        api_key_secret=api_key_secret,
    )
    draft.active_job = name
    furnish(draft, content)
    present = draft.obs.jobs.get(name)
    if present is None:
        if any(j.stage == stage and j.name != name and not j.over for j in draft.obs.jobs.values()):
            # an earlier attempt is still saving its checkpoint: never two at once
            return None
        chosen = content.storage.service_account_name
        draft.apply += [*identity.build(draft.obs.parent, draft.obs.settings, draft.wanted.revision, chosen), manifest]
        draft.say(
            conditions.STAGE_CONDITIONS[stage],
            "Unknown",
            Reason.RETRYING if draft.status.failure is not None else Reason.WAITING,
            f"{stage} attempt {attempt} waits for its pod",
        )
        return None
    if present.deleting:
        return None
    pods = draft.obs.pods_of(name)
    pod = pods[-1] if pods else None
    if present.over and present.finished is not None and not any(p.terminated and not p.disrupted for p in pods):
        late = present.finished + datetime.timedelta(seconds=LATE)
        if draft.obs.now < late:
            draft.again_at(late)
            return None
    if present.succeeded:
        return _succeeded(draft, stage, present, pods)
    if present.failed:
        _failed(draft, stage, present, diagnosis.failed(stage, pod, present.failure))
        return None
    if (pod is None or pod.started is None) and present.hash != meta.hash_of(manifest):
        # It has not begun, and it is no longer what is asked for (resources, image): the next attempt replaces it.
        draft.delete.append(Ref("Job", name))
        draft.edit(attempt=attempt + 1)
        draft.again_in(0.2)
        return None
    refusal = draft.obs.refusals.get(name, "")
    if refusal:
        # perhaps for want of the ServiceAccount, which is not watched
        draft.apply += identity.build(
            draft.obs.parent, draft.obs.settings, draft.wanted.revision, content.storage.service_account_name
        )
    if pod is None:
        age = (draft.obs.now - present.created).total_seconds() if present.created else 0.0
        draft.again_in(observe.PATIENCE - age + 0.1 if age < observe.PATIENCE else REFUSED_AGAIN)
    _watched(draft, stage, attempt, pod, refusal)
    return None


def had_ended(draft: Draft, stage: Stage) -> bool:
    """Whether the Job of the present attempt came to its own end."""
    job_ = draft.obs.jobs.get(meta.stage_job(draft.obs.parent, draft.wanted, stage, draft.status.attempt or 1))
    return job_ is not None and job_.over and not job_.deleting


def _watched(draft: Draft, stage: Stage, attempt: int, pod: observe.Pod | None, refusal: str) -> None:
    kind = conditions.STAGE_CONDITIONS[stage]
    if problem := diagnosis.not_started(pod, refusal):
        draft.say(kind, "Unknown", problem.reason, problem.message)
    elif pod is None or pod.started is None:
        draft.say(kind, "Unknown", Reason.WAITING, f"{stage} attempt {attempt} waits for its pod")
    else:
        draft.say(kind, "Unknown", Reason.RUNNING, f"{stage} attempt {attempt} runs in pod {pod.name}")


def _ended(draft: Draft, stage: Stage, present: observe.StageJob, pods: list[observe.Pod], result: str) -> None:
    if present.created is None or present.finished is None:
        return
    starts = [p.started for p in pods if p.started]
    waited = (min(starts) - present.created).total_seconds() if starts else None
    draft.ended.append(Ended(stage, result, (present.finished - present.created).total_seconds(), waited))


def _succeeded(
    draft: Draft, stage: Stage, present: observe.StageJob, pods: list[observe.Pod]
) -> outcome.Outcome | None:
    answers = [a for a in map(diagnosis.answer, pods) if a is not None]
    if not answers:
        _failed(draft, stage, present, diagnosis.failed(stage, None, "its answer was lost"))
        return None
    _ended(draft, stage, present, pods, "succeeded")
    return answers[-1]


def _failed(draft: Draft, stage: Stage, present: observe.StageJob, problem: diagnosis.Problem) -> None:
    """Repeat, or end: 2 and 4 never again, memory once with half the micro-batch, storage until the deadline, the rest up to
    `training.retries`. Only the rest counts as failed attempts."""
    _ended(draft, stage, present, draft.obs.pods_of(present.name), "failed")
    failures = draft.status.failed_attempts or 0
    scale = draft.status.micro_batch_scale or 1.0
    ends = problem.ends
    if problem.reason is Reason.TRAINER_OUT_OF_MEMORY:
        ends = ends or scale <= SMALLEST_SHARE
        scale = scale / 2
    elif problem.reason is not Reason.STORAGE_UNAVAILABLE:
        ends = ends or failures >= draft.spec.training.retries
        failures += 1
    if ends:
        draft.fail(stage, problem.reason, problem.message, exit_code=problem.exit_code, log_tail=problem.log_tail)
        return
    attempt = draft.status.attempt or 1
    pause = min(draft.obs.settings.retry_backoff_seconds * 2.0 ** min(attempt - 1, 16), LONGEST_PAUSE)
    draft.edit(
        attempt=attempt + 1,
        failed_attempts=failures,
        micro_batch_scale=scale if scale < 1 else None,
        retry_at=draft.obs.now.replace(microsecond=0) + datetime.timedelta(seconds=pause),
        failure=status.Failure(
            stage=stage,
            reason=problem.reason,
            attempt=attempt,
            exit_code=problem.exit_code,
            message=problem.message,
            log_tail=problem.log_tail,
            time=draft.obs.now.replace(microsecond=0),
        ),
    )
    draft.retried.append((stage, problem.reason))
    waiting = problem.reason is Reason.STORAGE_UNAVAILABLE
    draft.say(
        conditions.STAGE_CONDITIONS[stage],
        "Unknown",
        problem.reason if waiting else Reason.RETRYING,
        f"attempt {attempt} of {stage} failed: {problem.message[:800]}; attempt {attempt + 1} starts in {pause:.0f} s",
    )
    draft.active_job = None
    draft.again_in(pause)
