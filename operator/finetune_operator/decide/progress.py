"""The trainer's own progress: at most every few seconds, and only of the attempt that runs."""

import dataclasses
import datetime

from finetune_api.reasons import Condition, Reason, Stage
from finetune_operator import conditions
from finetune_operator.decide.verdict import Verdict
from finetune_operator.decide.world import World
from finetune_operator.manifests import meta


def noted(world: World, verdict: Verdict) -> Verdict:
    """The verdict on training, with the progress that was reported."""
    found = _reported(world.after(verdict))
    due = [time for time in (verdict.again, found.again) if time is not None]
    return dataclasses.replace(verdict, edits={**found.edits, **verdict.edits}, again=min(due, default=None))


def _reported(world: World) -> Verdict:
    config = world.obs.configs.get(meta.progress_config(world.obs.parent, world.wanted.revision))
    report = config.progress if config else None
    if report is None or report.revision != world.wanted.revision or report.attempt != world.state.attempt:
        return Verdict()
    if report.stage not in {None, Stage.TRAIN}:
        return Verdict()
    old, told = world.state.progress, report.progress
    said = conditions.get(world.state, Condition.TRAINED)
    if said is None or said.reason != Reason.RUNNING:
        told = told.model_copy(update={"eta": None})  # it would promise an end while nothing runs
    if told == old:
        return Verdict()
    if report.checkpoint is not None and report.checkpoint != world.state.checkpoint:
        return Verdict(edits={"progress": told, "checkpoint": report.checkpoint})
    if old is not None and old.updated_at is not None and report.progress.percent < 100:
        # By the trainer's clock or by ours, since they may differ.
        pause = datetime.timedelta(seconds=world.obs.settings.progress_seconds)
        due = min(old.updated_at, world.obs.now) + pause
        if world.obs.now < due and (told.updated_at is None or told.updated_at < old.updated_at + pause):
            return Verdict(again=due)
    return Verdict(edits={"progress": told})
