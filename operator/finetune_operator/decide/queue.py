"""A stage's Job in a queue: what it waits for, as a message, and for how long, which the deadline excludes.

Kueue decides when such a Job may run, by its `suspend`, and may evict it. The Job stays the same, so neither starts an
attempt (docs/adr/0026-a-queue-holds-the-job.md).
"""

import datetime

from finetune_api import status
from finetune_api.reasons import Reason, Stage
from finetune_operator import conditions, kueue
from finetune_operator.decide import verdict
from finetune_operator.decide.verdict import Verdict
from finetune_operator.decide.world import World
from finetune_operator.observe import projections

PATIENCE = datetime.timedelta(seconds=10)
"""The time that Kueue may need to notice a Job."""
REFUSED = {"Inadmissible", "Misconfigured", "Deactivated", "Suspended", "NoMatchingFlavor", "ExceedsMaxQuota"}
"""Kueue's reasons for which waiting does not help: a queue or the job has to be changed."""


def wait(world: World, stage: Stage, job: projections.StageJob) -> Verdict:
    """Scenario B. Report why the Job is suspended."""
    due = None
    if not job.queue:
        reason, why = (
            Reason.QUEUED,
            f"Job {job.name} was suspended by someone else, and continues when its spec.suspend is set to false",
        )
    elif world.obs.workloads is None:
        reason, why = _unread(world)
    elif (workload := world.obs.workloads.get(job.name)) is not None:
        reason, why = _explained(workload)
    elif world.obs.now < (due := (job.created or world.obs.now) + PATIENCE):
        reason, why = Reason.QUEUED, "Kueue has not created a Workload for it yet"
    else:
        reason, due = Reason.QUEUE_REFUSED, None
        why = "Kueue created no Workload for it: check that Kueue is running and manages Jobs in this namespace"
    where = f"waits in LocalQueue {job.queue}" if job.queue else "waits"
    text = f"{stage} attempt {world.state.attempt} {where}: {why}"
    return verdict.says(conditions.STAGE_CONDITIONS[stage], "Unknown", reason, text, job=job.name, again=due)


def _unread(world: World) -> tuple[Reason, str]:
    if world.obs.settings.kueue.enabled:
        return Reason.QUEUED, "Kueue's Workloads could not be read yet: check that Kueue is installed"
    return Reason.QUEUED, "Kueue's reason is unknown because the chart's kueue.enabled is false"


def _explained(workload: kueue.Workload) -> tuple[Reason, str]:
    pending, evicted = workload.pending, workload.evicted
    why = pending.message or "it waits for its turn"
    if workload.reserved:
        why = "its quota is reserved and it starts"
        if workload.checks:
            why = f"its quota is reserved; admission check {', '.join(workload.checks)}"
        if evicted.reason:
            why = "its pods are being stopped"
    if not workload.active:
        why = f"Workload {workload.name} is deactivated: set its spec.active to true"
    lost = f"evicted ({evicted.reason}: {evicted.message}); " if evicted.reason else ""
    if not workload.active or pending.reason in REFUSED:
        return Reason.QUEUE_REFUSED, lost + why
    if lost:
        return Reason.EVICTED, f"{lost}{why}; it resumes from the newest checkpoint, if there is one"
    return Reason.QUEUED, why


def settle(world: World) -> Verdict:
    """In every world: since when the current Job has been waiting, and how long earlier ones waited."""
    record = world.state.queue
    job = world.obs.jobs.get(world.active_job) if world.active_job else None
    waits = job is not None and job.suspended and not (job.over or job.deleting)
    since = record.since if record else None
    before = record.waited_seconds if record else 0
    if job is not None and waits and since is None:
        return Verdict(edits={"queue": status.Queue(name=job.queue or None, since=world.now, waited_seconds=before)})
    if record is None or since is None or waits:
        return verdict.AS_IT_IS
    seconds = max(0, round((world.now - since).total_seconds()))
    left = record.model_copy(update={"since": None, "waited_seconds": before + seconds})
    stage = world.state.stage
    return Verdict(edits={"queue": left}, waited=((Stage(stage), float(seconds)),) if stage else ())
