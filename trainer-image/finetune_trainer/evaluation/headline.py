"""The headline of an evaluation: its metric, and the baseline that is best by it. Pure; decided here alone.

scoreboard writes both into results.json; consistency, samples, tokens saved, break-even and the report use them.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from finetune_api import evaluation, job
from finetune_trainer.evaluation import gates
from finetune_trainer.report import reading

ELSEWHERE = evaluation.OF_TRAINING - evaluation.PAIRWISE
"""Metrics that are not about the answers to the test examples, or that compare two models only: never a headline."""


@dataclasses.dataclass(frozen=True)
class Headline:
    metric: job.Metric | None
    """None: nothing of the tuned model was measured."""
    baseline: job.Contender | None
    """None: no baseline was measured."""


def decide(required: Sequence[job.Gate], measured: gates.Values, rates: Mapping[job.Contender, float]) -> Headline:
    """rates: the tuned model's win rate before a judge against each baseline that has one.

    The metric is that of the first gate that has one, else the most telling one of the task. Of equal baselines the cheapest
    is best.
    """
    tuned = measured.get(job.Contender.TUNED, {})
    asked = [gate.metric for gate in required if gate.metric not in ELSEWHERE]
    asked = [metric for metric in asked if metric in tuned or (metric in job.PAIRWISE and rates)]
    scored = {metric for columns in measured.values() for metric, column in columns.items() if column.value}
    metric = asked[0] if asked else reading.most_telling(reading.TASK, (), tuned, scored)
    if metric in job.PAIRWISE:
        return Headline(metric, min((one for one in reading.BASELINES if one in rates), key=lambda one: rates[one]))
    for by in (metric, job.Metric.LOSS):
        there = {one: measured[one][by].value for one in reading.BASELINES if by and by in measured.get(one, {})}
        if there:
            return Headline(metric, (min if by in job.LOWER_IS_BETTER else max)(there, key=lambda one: there[one]))
    return Headline(metric, None)
