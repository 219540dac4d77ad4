"""The headline of an evaluation: its metric, and the baseline that is best by it. Pure; decided here alone.

scoreboard writes both into results.json; consistency, samples, tokens saved, break-even and the report use them.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence

from finetune_api import evaluation, job
from finetune_trainer.evaluation import gates, metrics
from finetune_trainer.report import reading

ELSEWHERE = evaluation.OF_TRAINING - evaluation.PAIRWISE
"""Metrics that are not about the answers to the test examples, or that compare two models only: never a headline."""


@dataclasses.dataclass(frozen=True)
class Headline:
    metric: job.Metric | None
    """None: nothing of the tuned model was measured."""
    baseline: job.Contender | None
    """None: no baseline was measured."""
    alternative: job.Contender | None = None
    """The best of baselines and candidates; None: none was measured."""


def telling(
    required: Sequence[job.Gate],
    available: Collection[job.Metric],
    everybody: Iterable[metrics.Columns],
    *,
    judged: bool = False,
) -> job.Metric | None:
    """The metric of the first gate that is among the available ones, else the most telling one of the task on which anybody
    scored."""
    wanted = [gate.metric for gate in required if gate.metric not in ELSEWHERE]
    wanted = [metric for metric in wanted if metric in available or (metric in job.PAIRWISE and judged)]
    scored = {
        metric for columns in everybody for metric, column in columns.items() if reading.tells(metric, column.value)
    }
    return wanted[0] if wanted else reading.most_telling(reading.TASK, (), available, scored)


def decide(required: Sequence[job.Gate], measured: gates.Values, rates: Mapping[job.Contender, float]) -> Headline:
    """rates: the tuned model's win rate before a judge against each baseline that has one.

    The metric is that of the first gate that has one, else the most telling one of the task. Of equal baselines the cheapest
    is best.
    """
    metric = telling(required, measured.get(job.Contender.TUNED, {}), measured.values(), judged=bool(rates))
    if metric in job.PAIRWISE:
        return _best(metric, {one: -rates[one] for one in evaluation.alternatives(rates)})
    for by in (metric, job.Metric.LOSS):
        sign = -1 if by in job.LOWER_IS_BETTER else 1
        there = [one for one in evaluation.alternatives(measured) if by and by in measured[one]]
        if by and there:
            return _best(metric, {one: sign * measured[one][by].value for one in there})
    return Headline(metric, None)


def _best(metric: job.Metric | None, scores: Mapping[job.Contender, float]) -> Headline:
    """By scores of which the highest is best, the first of equals."""
    baselines = {one: score for one, score in scores.items() if not one.is_candidate}
    return Headline(
        metric,
        max(baselines, key=lambda one: scores[one], default=None),
        max(scores, key=lambda one: scores[one], default=None),
    )
