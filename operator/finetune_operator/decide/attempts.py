"""A stage and its attempts: one Job each, started, watched, and repeated by the exit-code contract."""

import dataclasses
import datetime
from typing import Any

from finetune_api import job, outcome, revision, run, status
from finetune_api.exits import Exit
from finetune_api.reasons import Reason, Stage
from finetune_operator import conditions
from finetune_operator.decide import diagnosis, gang, queue
from finetune_operator.decide.draft import Draft, Ended
from finetune_operator.manifests import configs, identity, meta, service, stages
from finetune_operator.observe import observation, projections

LONGEST_PAUSE = 300.0
SMALLEST_SHARE = 0.5
"""An out-of-memory is answered once, with half the micro-batch."""
LATE = 10.0
"""Seconds by which the news of a pod's end may come after those of its Job's: two watches, in no order."""
REFUSED_AGAIN = 15.0
"""Seconds after which a Job without a pod is looked at again: what refuses its pods sends no event."""


def run_of(draft: Draft, named: str, base: run.ResolvedBaseModel) -> run.Run:
    """The run file of the revision of this name."""
    parent = draft.obs.parent
    return revision.run_of(
        draft.spec,
        base,
        name=parent.name,
        namespace=parent.namespace,
        uid=parent.uid,
        revision=named,
        evaluation_hash=draft.wanted.evaluation_hash,
        memory=_memory(draft),
        progress_config_map=meta.progress_config(parent, named),
        **_price(draft),
    )


def _memory(draft: Draft) -> str | None:
    """What training may use, as far as chart and spec tell."""
    wanted = draft.spec.resources
    if not wanted.gpus:
        return wanted.requests.memory
    known = draft.obs.settings.gpu_types.get(wanted.gpu_type or "")
    return f"{known.memory_gi_b:g}Gi" if known is not None and known.memory_gi_b else None


def _price(draft: Draft) -> dict[str, Any]:
    """What an hour of the training's GPUs costs, where the chart knows."""
    known = draft.obs.settings.gpu_types.get(draft.spec.resources.gpu_type or "")
    if known is None or known.price_per_hour is None:
        return {}
    return {"price_per_gpu_hour": known.price_per_hour, "currency": draft.obs.settings.currency}


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
    nodes: int = 1,
    api_key_secret: str | None = None,
) -> outcome.Outcome | None:
    """Take the stage one step further. Returns its answer once it succeeded, else None: it runs, waits, or failed."""
    draft.enter_once(stage)
    attempt = draft.status.attempt or 1
    name = meta.stage_job(draft.obs.parent, draft.wanted, stage, attempt)
    present = draft.obs.jobs.get(name)
    introduce(draft, max(nodes, present.nodes if present else 1))
    if draft.status.retry_at is not None:
        if draft.obs.now < draft.status.retry_at:
            draft.again_at(draft.status.retry_at)
            return None
        draft.edit(retry_at=None)
    content = run_of(draft, draft.wanted.revision, base)
    manifest = stages.build(
        draft.obs.parent,
        draft.obs.settings,
        content,
        name=name,
        stage=stage,
        attempt=attempt,
        wanted=resources,
        arguments=[*arguments, "--attempt", str(attempt)] if stage in stages.REPORTING else arguments,
        nodes=nodes,
        queue=draft.spec.resources.queue_name if stage in stages.QUEUED else None,
        api_key_secret=api_key_secret,
    )
    account = content.storage.service_account_name
    rights = identity.build(draft.obs.parent, draft.obs.settings, draft.wanted.revision, account)
    draft.active_job = name
    furnish(draft, content)
    if present is None:
        if others := _others(draft, stage, name):
            _say_who_is_lost(draft, stage, others)
        else:
            # A further attempt mends what somebody took away.
            given = attempt == 1 and draft.obs.granted == identity.digest(rights)
            draft.apply += [*([] if given else rights), manifest]
            _waits(draft, stage, nodes, nodes, Reason.RETRYING if draft.status.failure else Reason.WAITING)
        return None
    if present.deleting:
        return None
    pods = gang.of(draft.obs, present)
    if present.over or present.ending or pods.disrupted:
        return _ending(draft, stage, pods)
    if not pods.begun and present.hash != meta.hash_of(manifest):
        # It has not begun, and it is no longer what is asked for (resources, image): the next attempt replaces it.
        _next(draft)
        return None
    if present.suspended:
        queue.wait(draft, stage, present)
        return None
    refusal = draft.obs.refusals.get(name, "")
    if refusal:
        # perhaps for want of the ServiceAccount, which is not watched
        draft.apply += rights
    _watched(draft, stage, pods, refusal)
    return None


def introduce(draft: Draft, nodes: int) -> None:
    """Where several pods train, a Service gives each a name by which the others find it."""
    if nodes == 1:
        return
    manifest = service.nodes(draft.obs.parent, draft.obs.settings, draft.wanted.revision)
    draft.nodes_service = manifest["metadata"]["name"]
    present = draft.obs.services.get(draft.nodes_service)
    if present is None or present.guarded != projections.service(manifest).guarded:
        draft.apply.append(manifest)


def had_ended(draft: Draft, stage: Stage) -> bool:
    """Whether the Job of the present attempt came to its own end."""
    job_ = draft.obs.jobs.get(meta.stage_job(draft.obs.parent, draft.wanted, stage, draft.status.attempt or 1))
    return job_ is not None and job_.over and not job_.deleting


def _others(draft: Draft, stage: Stage, name: str) -> list[projections.StageJob]:
    """Earlier attempts that are still saving their checkpoint: never two at once."""
    return [
        job_
        for job_ in draft.obs.jobs.values()
        if job_.stage == stage
        and job_.name != name
        and (not job_.over or any(pod.deleting and pod.terminated is None for pod in draft.obs.pods_of(job_.name)))
    ]


def _say_who_is_lost(draft: Draft, stage: Stage, others: list[projections.StageJob]) -> None:
    """An earlier attempt that cannot end, since the machine below one of its pods does not answer."""
    pods = [pod for other in others for pod in draft.obs.pods_of(other.name) if pod.silent]
    if problem := diagnosis.disrupted(pods[0] if pods else None):
        text = f"attempt {draft.status.attempt} of {stage} waits: {problem.message}"
        draft.say(conditions.STAGE_CONDITIONS[stage], "Unknown", problem.reason, text)


def _next(draft: Draft) -> None:
    """The next attempt takes over at once; the Job of this one is stopped, since it is not the active one any more."""
    draft.edit(attempt=(draft.status.attempt or 1) + 1)
    draft.active_job = None
    draft.again_in(0.2)


def _watched(draft: Draft, stage: Stage, pods: gang.Gang, refusal: str) -> None:
    """Say what the pods wait for, or that they run."""
    present = pods.job
    if None in pods.pods:
        age = (draft.obs.now - present.created).total_seconds() if present.created else 0.0
        draft.again_in(observation.PATIENCE - age + 0.1 if age < observation.PATIENCE else REFUSED_AGAIN)
    kind = conditions.STAGE_CONDITIONS[stage]
    problems = [p for p in (diagnosis.not_started(pod, refusal) for pod in pods.pods) if p is not None]
    taken = [p for p in map(diagnosis.disrupted, pods.pods) if p is not None]
    if taken:
        draft.say(kind, "Unknown", taken[0].reason, taken[0].message)
    elif problems:
        several = f"{len(problems)} of {present.nodes} pods wait: " if present.nodes > 1 else ""
        draft.say(kind, "Unknown", problems[0].reason, several + problems[0].message)
    elif not pods.begun:
        started = sum(pod.started is not None for pod in pods.present)
        _waits(draft, stage, present.nodes - started, present.nodes, Reason.WAITING)
    else:
        where = f"in pod {pods.present[0].name}" + (f" and {present.nodes - 1} more" if present.nodes > 1 else "")
        draft.say(kind, "Unknown", Reason.RUNNING, f"{stage} attempt {draft.status.attempt} runs {where}")


def _waits(draft: Draft, stage: Stage, missing: int, nodes: int, reason: Reason) -> None:
    whom = f"{missing} of its {nodes} pods" if nodes > 1 else "its pod"
    text = f"{stage} attempt {draft.status.attempt} waits for {whom}"
    draft.say(conditions.STAGE_CONDITIONS[stage], "Unknown", reason, text)


def _ending(draft: Draft, stage: Stage, pods: gang.Gang) -> outcome.Outcome | None:
    """Its end is decided, or one of several pods was taken away. Returns the answer, where there is one; else it is repeated, or
    the job ends."""
    present, first = pods.job, pods.first
    done = first is not None and first.terminated is not None and first.terminated.exit_code == Exit.DONE
    if done and (answer := diagnosis.answer(first)):
        # What happened to the others afterwards does not matter.
        if not present.over:
            return None
        _ended(draft, stage, pods, "succeeded")
        return answer
    if pods.disrupted:
        _uncounted(draft, stage, pods, pods.disrupted)
        return None
    if not present.over:
        if problem := next(filter(None, map(diagnosis.disrupted, pods.pods)), None):
            draft.say(conditions.STAGE_CONDITIONS[stage], "Unknown", problem.reason, problem.message)
        return None
    if present.finished is not None and not pods.told:
        late = present.finished + datetime.timedelta(seconds=LATE)
        if draft.obs.now < late:
            draft.again_at(late)
            return None
    if present.succeeded and not pods.told:
        # Evicted or deleted in the moment of its end, while nobody listened: what it has done lies in S3.
        why = f"attempt {present.attempt} of {stage} ended well, and its pod was gone before its answer was read"
        _uncounted(draft, stage, pods, why, _pause(draft))
        return None
    if pods.lost:
        _uncounted(draft, stage, pods, f"the machine of pod {pods.lost.name} lost its containers", _pause(draft))
        return None
    said = conditions.get(draft.status, conditions.STAGE_CONDITIONS[stage])
    if pods.stopped and (said is None or said.reason != Reason.RUNNING):
        why = f"attempt {present.attempt} of {stage} ended before its {present.nodes} pods had met"
        _uncounted(draft, stage, pods, why, _pause(draft))
        return None
    cause, failure = (None, "its answer was lost") if present.succeeded else (pods.cause, present.failure)
    problem = diagnosis.failed(stage, cause, failure)
    if cause is not None and present.nodes > 1:
        problem = dataclasses.replace(problem, message=f"pod {cause.name}: {problem.message}")
    _ended(draft, stage, pods, "failed")
    _failed(draft, stage, problem)
    return None


def _ended(draft: Draft, stage: Stage, pods: gang.Gang, result: str) -> None:
    """Note for the metrics how long the attempt took, and how long it waited for the last of its pods."""
    present = pods.job
    if present.created is None:
        return
    finished = present.finished or draft.obs.now
    starts: dict[int, datetime.datetime] = {}
    for pod in draft.obs.pods_of(present.name):
        if pod.started is not None:
            starts.setdefault(pod.node, pod.started)
    waits = starts and not present.queue  # else it was counted when it left the queue
    waited = (max(starts.values()) - present.created).total_seconds() if waits else None
    draft.ended.append(Ended(stage, result, (finished - present.created).total_seconds(), waited))


def _uncounted(draft: Draft, stage: Stage, pods: gang.Gang, why: str, pause: float = 0.0) -> None:
    """Several pods cannot go on without one of them, or a pod was lost with its machine: all are stopped, and the next attempt
    resumes. It is nobody's failure."""
    _ended(draft, stage, pods, "disrupted")
    _next(draft)
    if pause:
        draft.edit(retry_at=draft.obs.now.replace(microsecond=0) + datetime.timedelta(seconds=pause))
    text = f"{why}: attempt {draft.status.attempt} of {stage} goes on from the newest checkpoint, if there is one"
    draft.say(conditions.STAGE_CONDITIONS[stage], "Unknown", Reason.RETRYING, text)


def _pause(draft: Draft) -> float:
    """Seconds before the next attempt, growing with each."""
    attempt = draft.status.attempt or 1
    return min(draft.obs.settings.retry_backoff_seconds * 2.0 ** min(attempt - 1, 16), LONGEST_PAUSE)


def _failed(draft: Draft, stage: Stage, problem: diagnosis.Problem) -> None:
    """Repeat, or end: 2 and 4 never again, memory once with half the micro-batch, storage until the deadline, the rest up to
    `training.retries`. Only the rest counts as failed attempts."""
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
    pause = _pause(draft)
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
