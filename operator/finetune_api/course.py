"""The course of a job through its stages, shared by the operator and `finetune run`: which stages it has, the command line of
a stage, and what follows when a stage runs out of memory."""

from finetune_api import intent, status
from finetune_api.evaluation import Evaluation
from finetune_api.exits import Exit
from finetune_api.reasons import Reason, Stage
from finetune_api.training import Training

LOADING = frozenset({Stage.BASELINE, Stage.TRAIN, Stage.EVALUATE})
"""Stages that load the model: they report progress, and can work with smaller batches."""

SMALLEST_SHARE = 0.5
"""After running out of memory a stage is retried once, with half of the micro-batch, or of the batch of generation and
scoring."""

REASONS = {
    Exit.OUT_OF_MEMORY: Reason.TRAINER_OUT_OF_MEMORY,
    Exit.DIVERGED: Reason.LOSS_DIVERGED,
    Exit.STORAGE: Reason.STORAGE_UNAVAILABLE,
}
"""The meaning of an exit code if a stage could not report more."""


def has_baseline(why: intent.Intent, how: Evaluation, trained: Training) -> bool:
    """Whether there is a baseline stage before training: if a baseline is measured, or a teacher writes the answers."""
    return trained.teacher is not None or measures_a_baseline(why, how)


def measures_a_baseline(why: intent.Intent, how: Evaluation) -> bool:
    """Whether a baseline is measured before training: if a gate can decide, and advice is not ignored."""
    return how.decided_before_training and why.advice is not intent.Advice.IGNORE


def prompt_is_enough(why: intent.Intent, found: status.Baseline | None) -> bool:
    """Whether a prompt passes the gates, and the job has no goal beyond that."""
    return found is not None and found.sufficient is not None and why.content_with_a_prompt


def smaller(share: float | None) -> float | None:
    """The factor for the next attempt after running out of memory; None if there is no next attempt."""
    half = (share or 1.0) / 2
    return half if half >= SMALLEST_SHARE else None


def arguments(
    stage: Stage,
    attempt: int,
    share: float | None = None,
    adapter: status.Adapter | None = None,
    serving: status.Adapter | None = None,
) -> list[str]:
    """The arguments after the stage's name and its run file. adapter: the one to evaluate; serving: another one to compare
    with."""
    found = []
    if adapter is not None:
        found += ["--adapter", adapter.uri, "--sha256", adapter.sha256]
    if serving is not None:
        found += ["--serving", serving.uri, "--serving-sha256", serving.sha256]
    if stage not in LOADING:
        return found
    if share is not None and share < 1:
        found += ["--micro-batch-scale", str(share)]
    return [*found, "--attempt", str(attempt)]
