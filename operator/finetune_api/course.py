"""What everyone who takes a job through its stages agrees on, the operator and `finetune run`: which stages the job has, what a
stage is given on its command line, and what follows when it runs out of memory."""

from finetune_api import intent, status
from finetune_api.evaluation import Evaluation
from finetune_api.exits import Exit
from finetune_api.reasons import Reason, Stage

LOADING = frozenset({Stage.BASELINE, Stage.TRAIN, Stage.EVALUATE})
"""Stages that load the model: they report how far they are, and can take less at once."""

SMALLEST_SHARE = 0.5
"""An out-of-memory is answered once, with half of the micro-batch, or of what is generated and scored at once."""

REASONS = {
    Exit.OUT_OF_MEMORY: Reason.TRAINER_OUT_OF_MEMORY,
    Exit.DIVERGED: Reason.LOSS_DIVERGED,
    Exit.STORAGE: Reason.STORAGE_UNAVAILABLE,
}
"""What an exit code means by itself, where a stage could not say more."""


def measures_a_baseline(why: intent.Intent, how: Evaluation) -> bool:
    """Whether a prompt is tried before training: where a gate can decide, and advice is wanted."""
    return how.decided_before_training and why.advice is not intent.Advice.IGNORE


def prompt_is_enough(why: intent.Intent, found: status.Baseline | None) -> bool:
    """Whether a prompt passes the gates, and the job wants no more than that."""
    return found is not None and found.sufficient is not None and why.content_with_a_prompt


def smaller(share: float | None) -> float | None:
    """The share that the next attempt takes after an out-of-memory; None where there is no next attempt."""
    half = (share or 1.0) / 2
    return half if half >= SMALLEST_SHARE else None


def arguments(
    stage: Stage,
    attempt: int,
    share: float | None = None,
    adapter: status.Adapter | None = None,
    serving: status.Adapter | None = None,
) -> list[str]:
    """What follows the stage's name and its run file. adapter: what is evaluated; serving: what it is compared with, too."""
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
