"""Finds values in the results, for judgement and sections. Pure."""

from collections.abc import Callable, Collection, Iterable, Sequence

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
    """The best baseline by a metric: what the tuned model has to beat; of equals the cheapest. None: none was measured."""
    if metric is found.headline:
        return value(found, metric, found.best_baseline) if found.best_baseline is not None else None
    values = [one for contender in BASELINES if (one := value(found, metric, contender)) is not None]
    return best(metric)(values) if values else None


def comparison(found: results.Results, metric: Metric, over: Contender) -> results.Comparison | None:
    return next((one for one in found.comparisons if one.metric is metric and one.over is over), None)


def duel(found: results.Results, over: Contender | None) -> results.PairwiseResult | None:
    """The judge's verdicts against one baseline; None: there are none."""
    duels = found.judgement.comparisons if found.judgement else []
    return next((one for one in duels if one.over is over and one.win_rate is not None), None)


def hardest(found: results.Results) -> results.PairwiseResult | None:
    """The duels with the baseline that the tuned model won the smallest share of; None: none was measured."""
    duels = found.judgement.comparisons if found.judgement else []
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


def telling(
    among: Sequence[Metric], asked: Sequence[Metric], tuned: Collection[Metric], scored: Collection[Metric]
) -> Metric | None:
    """The metric that tells most of those that the tuned model has: one that a gate asked for, else the first on which anybody
    scored at all."""
    there = [metric for metric in among if metric in tuned]
    first = [metric for metric in asked if metric in there]
    return next(iter([*first, *(metric for metric in there if metric in scored), *there]), None)


def chosen(found: results.Results, metrics: tuple[Metric, ...]) -> Metric | None:
    """The most telling one of these metrics."""
    tuned = {one.metric for one in found.values if one.contender is Contender.TUNED}
    return telling(metrics, gate_metrics(found), tuned, {one.metric for one in found.values if one.value})
