"""A stage's Job in a queue: what it waits for, in words for people, and how long, which no deadline counts.

Kueue decides when such a Job may run, by its `suspend`, and may take that back. The Job stays the same, so neither is an attempt
(docs/adr/0026-a-queue-holds-the-job.md).
"""

import datetime

from finetune_api import status
from finetune_api.reasons import Reason, Stage
from finetune_operator import conditions, kueue
from finetune_operator.decide.draft import Draft
from finetune_operator.observe import projections

PATIENCE = datetime.timedelta(seconds=10)
"""What Kueue may take to notice a Job."""
REFUSED = {"Inadmissible", "Misconfigured", "Deactivated", "Suspended", "NoMatchingFlavor", "ExceedsMaxQuota"}
"""Kueue's reasons for which waiting does not help: somebody has to change a queue, or the job."""


def wait(draft: Draft, stage: Stage, job: projections.StageJob) -> None:
    """Say why the Job is held back."""
    if not job.queue:
        reason, why = (
            Reason.QUEUED,
            f"Job {job.name} is suspended by another hand, and goes on when that sets spec.suspend to false",
        )
    elif draft.obs.workloads is None:
        reason, why = _unread(draft)
    elif (workload := draft.obs.workloads.get(job.name)) is None:
        reason, why = _unnoticed(draft, job)
    else:
        reason, why = _said(workload)
    where = f"waits in LocalQueue {job.queue}" if job.queue else "waits"
    text = f"{stage} attempt {draft.status.attempt} {where}: {why}"
    draft.say(conditions.STAGE_CONDITIONS[stage], "Unknown", reason, text)


def _unread(draft: Draft) -> tuple[Reason, str]:
    if draft.obs.settings.kueue.enabled:
        return Reason.QUEUED, "Kueue's Workloads cannot be read so far; is Kueue installed?"
    return Reason.QUEUED, "Kueue's reasons are not known here, since the chart's kueue.enabled is off"


def _unnoticed(draft: Draft, job: projections.StageJob) -> tuple[Reason, str]:
    due = (job.created or draft.obs.now) + PATIENCE
    if draft.obs.now < due:
        draft.again_at(due)
        return Reason.QUEUED, "Kueue has not seen it yet"
    return Reason.QUEUE_REFUSED, "Kueue made no Workload for it: does Kueue run, and look after Jobs of this namespace?"


def _said(workload: kueue.Workload) -> tuple[Reason, str]:
    pending, evicted = workload.pending, workload.evicted
    why = pending.message or "it is not its turn"
    if workload.reserved:
        why = "it has its quota and starts"
        if workload.checks:
            why = f"it has its quota; admission check {', '.join(workload.checks)}"
        if evicted.reason:
            why = "its pods are being stopped"
    if not workload.active:
        why = f"Workload {workload.name} is deactivated: set its spec.active to true"
    lost = f"evicted ({evicted.reason}: {evicted.message}); " if evicted.reason else ""
    if not workload.active or pending.reason in REFUSED:
        return Reason.QUEUE_REFUSED, lost + why
    if lost:
        return Reason.EVICTED, f"{lost}{why}; it goes on from the newest checkpoint, if there is one"
    return Reason.QUEUED, why


def settle(draft: Draft) -> None:
    """Since when the Job under way waits, and how long others before it did."""
    record, now = draft.status.queue, draft.obs.now.replace(microsecond=0)
    job = draft.obs.jobs.get(draft.active_job) if draft.active_job else None
    waits = job is not None and job.suspended and not (job.over or job.deleting)
    since = record.since if record else None
    before = record.waited_seconds if record else 0
    if job is not None and waits and since is None:
        draft.edit(queue=status.Queue(name=job.queue or None, since=now, waited_seconds=before))
    elif record is not None and since is not None and not waits:
        seconds = max(0, round((now - since).total_seconds()))
        draft.edit(queue=record.model_copy(update={"since": None, "waited_seconds": before + seconds}))
        if draft.status.stage:
            draft.waited.append((Stage(draft.status.stage), float(seconds)))
