"""Prices of requests, and when they have paid for the training."""

from finetune_api import job, run
from finetune_trainer.evaluation import answers


def price(spec: run.Run, which: job.Contender, asked: answers.Answers) -> float | None:
    """Of 1,000 requests: to a candidate by the price of its tokens, to all others by that of the GPUs that answered; None where
    it is unknown."""
    if which.is_candidate:
        rules = next((one for one in spec.evaluation.others if one.name == which), None)
        each = rules.price(asked.prompt_tokens, asked.answer_tokens) if rules and asked.usage else None
        return None if each is None else 1000 * each
    hourly = hourly_price(spec)
    if hourly is None or not asked.answering or not asked.prompts:
        return None
    return 1000 * asked.answering / len(asked.prompts) * hourly / 3600


def hourly_price(spec: run.Run) -> float | None:
    """Of the evaluation's GPUs together; None where it is unknown: for another type than the training's, and where the estimate
    decides how many of the training's GPUs they are."""
    own = spec.evaluation.resources
    gpus, kind = (spec.gpus, spec.gpu_type) if own is None else (own.gpus, own.gpu_type)
    if spec.price_per_gpu_hour is None or kind != spec.gpu_type or not gpus or (own is None and gpus > 1):
        return None
    return gpus * spec.price_per_gpu_hour


def paid_back(training: float | None, ours: float | None, other: float | None) -> int | None:
    """Requests until what they save has paid for the training; prices of the training and of 1,000 requests to each."""
    if training is None or ours is None or other is None or other <= ours:
        return None
    return round(1000 * training / (other - ours))


def break_even(saved: int | None, seconds: float | None, prefill: float) -> int | None:
    """Requests until reading the saved tokens would have taken as long as the training did.

    saved: tokens a request; seconds: of the training, summed over its devices; prefill: tokens a second that one device reads.
    """
    if not saved or saved <= 0 or not seconds or prefill <= 0:
        return None
    return round(seconds * prefill / saved)
