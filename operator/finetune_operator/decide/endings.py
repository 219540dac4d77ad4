"""How an attempt ended, and what follows: its outcome is used, it is retried by the exit-code contract, or the revision
ends."""

import dataclasses
import datetime
from collections.abc import Callable

from finetune_api import course, outcome, status
from finetune_api.exits import Exit
from finetune_api.reasons import Reason, Stage
from finetune_operator import conditions
from finetune_operator.decide import diagnosis, gang, verdict
from finetune_operator.decide.verdict import Ended, Verdict
from finetune_operator.decide.world import World, fails

LONGEST_PAUSE = 300.0
LATE = 10.0
"""Seconds by which the event of a pod's end may come after that of its Job: two watches, in no order."""


def ending(world: World, stage: Stage, pods: gang.Gang, read: Callable[[World, outcome.Outcome], Verdict]) -> Verdict:
    """Scenario D. Its end is decided, or one of several pods was evicted."""
    present, first = pods.job, pods.first
    done = first is not None and first.terminated is not None and first.terminated.exit_code == Exit.DONE
    if done and (answer := diagnosis.answer(first)):
        # What happened to the others afterwards does not matter.
        if not (present.over or pods.lingering):
            return Verdict(job=present.name)
        return dataclasses.replace(read(world, answer), ended=_ended(world, stage, pods, "succeeded"))
    if pods.overdrawn:
        return _failed(world, stage, pods, diagnosis.evicted(f"the {stage} pod", pods.overdrawn))
    if pods.unserved:
        return _failed(world, stage, pods, diagnosis.unserved(stage, pods.unserved))
    if pods.disrupted:
        return _uncounted(world, stage, pods, pods.disrupted)
    if not (present.over or pods.lingering):
        problem = next(filter(None, map(diagnosis.disrupted, pods.pods)), None)
        if problem is None:
            return Verdict(job=present.name)
        kind = conditions.STAGE_CONDITIONS[stage]
        return verdict.says(kind, "Unknown", problem.reason, problem.message, job=present.name)
    if present.finished is not None and not pods.ends_known:
        late = present.finished + datetime.timedelta(seconds=LATE)
        if world.obs.now < late:
            return Verdict(job=present.name, again=late)
    if why := _nobodys_failure(world, stage, pods):
        return _uncounted(world, stage, pods, why, _pause(world))
    return _failed(world, stage, pods, _problem(stage, pods))


def _nobodys_failure(world: World, stage: Stage, pods: gang.Gang) -> str:
    """Why the end of an attempt does not count as a failure; empty if it does."""
    present = pods.job
    if present.succeeded and not pods.ends_known:
        # Evicted or deleted at the moment of its end, while no replica was leader: its results are in S3.
        return f"attempt {present.attempt} of {stage} succeeded, but its pod was deleted before its outcome was read"
    if pods.refused:
        return f"the kubelet ended pod {pods.refused.name} ({pods.refused.words})"
    if pods.lost:
        return f"the node of pod {pods.lost.name} restarted and lost its containers"
    condition = world.condition(conditions.STAGE_CONDITIONS[stage])
    if pods.stopped and (condition is None or condition.reason != Reason.RUNNING):
        return f"attempt {present.attempt} of {stage} ended before its {present.nodes} pods had connected"
    return ""


def _problem(stage: Stage, pods: gang.Gang) -> diagnosis.Problem:
    cause, failure = (None, "its outcome was lost") if pods.job.succeeded else (pods.cause, pods.job.failure)
    problem = diagnosis.failed(stage, cause, failure)
    if cause is not None and pods.job.nodes > 1:
        return dataclasses.replace(problem, message=f"pod {cause.name}: {problem.message}")
    return problem


def _ended(world: World, stage: Stage, pods: gang.Gang, result: str) -> tuple[Ended, ...]:
    """For the metrics: the duration of the attempt, and how long it waited for the last of its pods."""
    present = pods.job
    if present.created is None:
        return ()
    finished = present.finished or world.obs.now
    starts: dict[int, datetime.datetime] = {}
    for pod in world.obs.pods_of(present.name):
        if pod.started is not None:
            starts.setdefault(pod.node, pod.started)
    waits = starts and not present.queue  # otherwise it was counted when it left the queue
    waited = (max(starts.values()) - present.created).total_seconds() if waits else None
    return (Ended(stage, result, (finished - present.created).total_seconds(), waited),)


def next_attempt(world: World) -> Verdict:
    """The next attempt starts at once; the Job of this one is stopped because it is not the active one any more."""
    soon = world.obs.now + datetime.timedelta(seconds=0.2)
    return Verdict(edits={"attempt": world.attempt + 1}, again=soon)


def _uncounted(world: World, stage: Stage, pods: gang.Gang, why: str, pause: float = 0.0) -> Verdict:
    """Several pods cannot continue without one of them, or a pod was lost with its node: all are stopped, and the next
    attempt resumes. This does not count as a failure."""
    following = next_attempt(world)
    retry = {"retry_at": world.now + datetime.timedelta(seconds=pause)} if pause else {}
    text = f"{why}: attempt {world.attempt + 1} of {stage} resumes from the newest checkpoint, if there is one"
    return dataclasses.replace(
        following,
        edits={**following.edits, **retry},
        says=(verdict.Say(conditions.STAGE_CONDITIONS[stage], "Unknown", Reason.RETRYING, text),),
        ended=_ended(world, stage, pods, "disrupted"),
    )


def _pause(world: World) -> float:
    """Seconds before the next attempt, growing with each."""
    return min(world.obs.settings.retry_backoff_seconds * 2.0 ** min(world.attempt - 1, 16), LONGEST_PAUSE)


def _failed(world: World, stage: Stage, pods: gang.Gang, problem: diagnosis.Problem) -> Verdict:
    """Retry, or end: exit codes 2 and 4 are never retried, out of memory once with half the micro-batch, storage until the
    deadline, all others up to `training.retries`. Only the others count as failed attempts."""
    failures = world.state.failed_attempts or 0
    share = world.state.micro_batch_scale
    ends = problem.ends
    if problem.reason is Reason.TRAINER_OUT_OF_MEMORY:
        share = course.smaller(share)
        ends = ends or share is None
    elif problem.reason is not Reason.STORAGE_UNAVAILABLE:
        ends = ends or failures >= world.spec.training.retries
        failures += 1
    if ends:
        end = fails(
            world, stage, problem.reason, problem.message, exit_code=problem.exit_code, log_tail=problem.log_tail
        )
        return dataclasses.replace(end, ended=_ended(world, stage, pods, "failed"))
    again = _repeated(world, stage, problem, failures, share)
    return dataclasses.replace(again, ended=_ended(world, stage, pods, "failed"))


def _repeated(world: World, stage: Stage, problem: diagnosis.Problem, failures: int, share: float | None) -> Verdict:
    attempt, pause = world.attempt, _pause(world)
    failure = status.Failure(
        stage=stage,
        reason=problem.reason,
        attempt=attempt,
        exit_code=problem.exit_code,
        message=problem.message,
        log_tail=problem.log_tail,
        time=world.now,
    )
    waiting = problem.reason is Reason.STORAGE_UNAVAILABLE
    return verdict.says(
        conditions.STAGE_CONDITIONS[stage],
        "Unknown",
        problem.reason if waiting else Reason.RETRYING,
        f"attempt {attempt} of {stage} failed: {problem.message[:800]}; attempt {attempt + 1} starts in {pause:.0f} s",
        edits={
            "attempt": attempt + 1,
            "failed_attempts": failures,
            "micro_batch_scale": share,
            "retry_at": world.now + datetime.timedelta(seconds=pause),
            "failure": failure,
        },
        retried=((stage, problem.reason),),
        again=world.obs.now + datetime.timedelta(seconds=pause),
    )
