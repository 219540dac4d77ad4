"""The progress of training, as reported by its pod: at most every few seconds, and only for the running attempt."""

import dataclasses
import datetime

from finetune_api import outcome
from finetune_api.reasons import Condition, Reason, Stage
from finetune_operator import conditions
from finetune_operator.decide.verdict import Verdict
from finetune_operator.decide.world import World


def noted(world: World, verdict: Verdict) -> Verdict:
    """The verdict on training, with the reported progress."""
    found = _reported(world.after(verdict))
    due = [time for time in (verdict.again, found.again) if time is not None]
    return dataclasses.replace(verdict, edits={**found.edits, **verdict.edits}, again=min(due, default=None))


def _believed(world: World) -> outcome.ProgressReport | None:
    """The report of a pod of this job, revision and attempt; any other is ignored."""
    report = world.obs.reading.report if world.obs.reading else None
    if report is None or report.uid != world.obs.parent.uid or report.stage is not Stage.TRAIN:
        return None
    return report if (report.revision, report.attempt) == (world.wanted.revision, world.state.attempt) else None


def _reported(world: World) -> Verdict:
    report, old = _believed(world), world.state.progress
    latest = report.progress if report else old
    trained = conditions.get(world.state, Condition.TRAINED)
    if latest is not None and (trained is None or trained.reason != Reason.RUNNING):
        latest = latest.model_copy(update={"eta": None})  # it is meaningless while nothing runs
    if latest is None or latest == old:
        return Verdict()
    if report is None:
        return Verdict(edits={"progress": latest})
    if report.checkpoint is not None and report.checkpoint != world.state.checkpoint:
        return Verdict(edits={"progress": latest, "checkpoint": report.checkpoint})
    if old is not None and old.updated_at is not None and report.progress.percent < 100:
        # By the trainer's clock or by the operator's, since they may differ.
        pause = datetime.timedelta(seconds=world.obs.settings.progress_seconds)
        due = min(old.updated_at, world.obs.now) + pause
        if world.obs.now < due and (latest.updated_at is None or latest.updated_at < old.updated_at + pause):
            return Verdict(again=due)
    return Verdict(edits={"progress": latest})
