"""Metrics of answers, pure: what a contender wrote against what was expected."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from typing import Any

from finetune_api import job


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer of a contender. text and expected are None for plain text, which has no answer to compare."""

    text: str | None
    expected: str | None
    nats: float
    """The loss of the expected answer, summed over its tokens."""
    tokens: int


def measure(answers: list[Answer]) -> dict[job.Metric, float]:
    """Each metric that is defined for these answers."""
    found: dict[job.Metric, float] = {}
    tokens = sum(answer.tokens for answer in answers)
    if tokens:
        found[job.Metric.LOSS] = sum(answer.nats for answer in answers) / tokens
        found[job.Metric.PERPLEXITY] = math.exp(min(found[job.Metric.LOSS], 700))
    compared = [
        (answer.text, answer.expected) for answer in answers if answer.text is not None and answer.expected is not None
    ]
    if compared:
        for metric, score in SCORES.items():
            found[metric] = sum(score(text, expected) for text, expected in compared) / len(compared)
    return {metric: found[metric] for metric in job.Metric if metric in found}


def exact_match(text: str, expected: str) -> float:
    return float(text.strip() == expected.strip())


def json_valid(text: str, _: str) -> float:
    """1 when the whole answer parses as JSON; NaN and the like, which JSON does not know, do not."""
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0


def _refuse(name: str) -> Any:
    raise ValueError(name)


def rouge_l(text: str, expected: str) -> float:
    """F-measure of the longest common subsequence of words."""
    return float(_scorer().score(expected, text)["rougeL"].fmeasure)


@functools.cache
def _scorer() -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)


SCORES: dict[job.Metric, Callable[[str, str], float]] = {
    job.Metric.EXACT_MATCH: exact_match,
    job.Metric.ROUGE_L: rouge_l,
    job.Metric.JSON_VALID: json_valid,
}
