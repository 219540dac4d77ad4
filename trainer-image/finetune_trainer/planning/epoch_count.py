"""The number of epochs. Pure, and without torch: preflight's estimate and train's plan count the same way."""

from finetune_api import job

REPLAY_TOKENS = 64
"""Tokens of an answer of the base model that is learned again (training.replay), at most."""


def total_examples(examples: int, training: job.Training) -> int:
    """Examples of all steps together, counted once per epoch, general ones of training.replay included."""
    if training.max_steps is not None:
        return training.max_steps * training.batch_size
    return max(1, round((training.epochs or epochs_for(examples)) * (examples + replayed(examples, training))))


def replayed(examples: int, training: job.Training) -> int:
    """General examples of an epoch with so many of the task."""
    if training.replay is None:
        return 0
    return max(1, round(examples * training.replay.share / (1 - training.replay.share)))


def epochs_for(examples: int) -> float:
    """Three epochs; more for few examples (at most 25), fewer for many: the rule of OpenAI's fine-tuning service."""
    if 3 * examples < 100:
        return min(25, max(3, 100 // examples))
    if 3 * examples > 25_000:
        return max(1, 25_000 // examples)
    return 3
