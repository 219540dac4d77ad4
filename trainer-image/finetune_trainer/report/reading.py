"""Finds values in the results, for judgement and sections. Pure."""

from collections.abc import Callable, Iterable

from finetune_api import job, results

Metric = job.Metric
Contender = job.Contender

BASELINES = (Contender.BASE, Contender.PROMPT, Contender.FEW_SHOT)
"""What fine-tuning has to beat, from cheap to costly; the serving revision was tuned itself."""

DOUBT = 0.05

TASK = (
    Metric.TOOL_CALL_MATCH,
    Metric.ACCURACY,
    Metric.EXACT_MATCH,
    Metric.FIELD_F1,
    Metric.NORMALIZED_MATCH,
    Metric.MACRO_F1,
    Metric.ROUGE_L,
    Metric.CHRF,
    Metric.BLEU,
    Metric.LOSS,
    Metric.PERPLEXITY,
)
"""Metrics of the task itself, the most telling first."""

FORMAT = (
    Metric.TOOL_CALL_VALID,
    Metric.JSON_SCHEMA,
    Metric.INVALID_LABELS,
    Metric.JSON_VALID,
    Metric.CHRF,
    Metric.BLEU,
    Metric.ROUGE_L,
)

RIGHT_OR_WRONG = frozenset({Metric.ACCURACY, Metric.EXACT_MATCH, Metric.NORMALIZED_MATCH, Metric.TOOL_CALL_MATCH})
"""Metrics that are the share of right answers."""


def value(found: results.Results, metric: Metric, contender: Contender) -> results.Value | None:
    return next((one for one in found.values if one.metric is metric and one.contender is contender), None)


def contenders(found: results.Results) -> list[Contender]:
    """All that were measured; the tuned model first, then what it has to beat."""
    seen = {one.contender for one in found.values}
    return [one for one in (Contender.TUNED, *BASELINES, Contender.SERVING) if one in seen]


def best(metric: Metric) -> Callable[[Iterable[results.Value]], results.Value]:
    """max or min of values, as the metric wants it; of equals the first."""
    sign = -1 if metric in job.LOWER_IS_BETTER else 1
    return lambda values: max(values, key=lambda one: sign * one.value)


def rival(found: results.Results, metric: Metric) -> results.Value | None:
    """The best baseline: what the tuned model has to beat; of equals the cheapest. None: none was measured."""
    values = [one for contender in BASELINES if (one := value(found, metric, contender)) is not None]
    return best(metric)(values) if values else None


def comparison(found: results.Results, metric: Metric, over: Contender) -> results.Comparison | None:
    return next((one for one in found.comparisons if one.metric is metric and one.over is over), None)


def hardest(found: results.Results) -> results.Duel | None:
    """The duels with the baseline that the tuned model won the smallest share of; None: none was measured."""
    duels = found.judgement.duels if found.judgement else []
    measured = [one for one in duels if one.over in BASELINES and one.win_rate is not None]
    return min(measured, key=lambda one: one.win_rate or 0.0, default=None)


def lost(found: results.Results) -> list[results.Benchmark]:
    """Benchmarks in which the tuned model is worse, and not by chance: each allowed its share of the doubt (Bonferroni)."""
    listed = [one for one in found.harness.benchmarks if one.p_value is not None] if found.harness else []
    return [one for one in listed if (one.gain or 0) < 0 and (one.p_value or 0) * len(listed) < DOUBT]


def tokens(found: results.Results, contender: Contender) -> results.Tokens | None:
    return next((one for one in found.tokens if one.contender is contender), None)


def gate_metrics(found: results.Results) -> list[Metric]:
    return [gate.metric for gate in found.evaluation.gates]


def chosen(found: results.Results, metrics: tuple[Metric, ...]) -> Metric | None:
    """The metric that tells most: one that a gate names, else the first on which anybody scored at all."""
    there = [metric for metric in metrics if value(found, metric, Contender.TUNED) is not None]
    asked = [metric for metric in gate_metrics(found) if metric in there]
    telling = [metric for metric in there if any(one.value for one in found.values if one.metric is metric)]
    return next(iter([*asked, *telling, *there]), None)


def headline(found: results.Results) -> Metric | None:
    """The first gate's metric, which is the job's score; without gates the most telling one."""
    scored = [metric for metric in gate_metrics(found) if value(found, metric, Contender.TUNED) is not None]
    return scored[0] if scored and scored[0] is not Metric.FORGETTING else chosen(found, TASK)


def strongest(found: results.Results) -> Contender | None:
    """The best baseline by the headline metric, which samples and tokens are compared with."""
    metric = headline(found)
    beaten = rival(found, metric) if metric is not None else None
    if beaten is not None:
        return beaten.contender
    there = [one for one in BASELINES if any(one in sample.answers for sample in found.samples)]
    return there[-1] if there else None
