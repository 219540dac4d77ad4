"""Finds values in the results, for the other modules. Pure."""

from collections.abc import Callable, Collection, Iterable, Sequence

from finetune_api import evaluation, job, results

Metric = job.Metric
Contender = job.Contender

BASELINES = evaluation.BASELINES
"""The alternatives to fine-tuning, from cheap to costly; the revision that serves is itself tuned."""

ALPHA = 0.05

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


LEAST = 0.1
"""A share of right answers that anybody must reach for it to tell more than similarity does."""


def tells(metric: Metric, value: float) -> bool:
    """Whether a value shows that the metric can tell contenders apart on this task."""
    return value >= LEAST if metric in RIGHT_OR_WRONG else bool(value)


def value(found: results.Results, metric: Metric, contender: Contender) -> results.Value | None:
    return next((one for one in found.values if one.metric is metric and one.contender is contender), None)


def contenders(found: results.Results) -> list[Contender]:
    """All measured contenders: the tuned model first, then its baselines."""
    measured = dict.fromkeys(one.contender for one in found.values)
    return [one for one in (Contender.TUNED, *alternatives(found), Contender.SERVING) if one in measured]


def alternatives(found: results.Results) -> list[Contender]:
    """Every alternative to fine-tuning, measured or not: the baselines from cheap to costly, then the job's candidates."""
    return [*BASELINES, *(Contender(one.name) for one in found.candidates)]


def replaced(found: results.Results) -> Contender | None:
    """Whose prompt the tuned model does without: the teacher's, or that of the best baseline."""
    return Contender.PROMPT if found.teacher == job.PROMPTED else found.best_baseline


def best(metric: Metric) -> Callable[[Iterable[results.Value]], results.Value]:
    """max or min of values, by the metric's direction; the first of equals."""
    sign = -1 if metric in job.LOWER_IS_BETTER else 1
    return lambda values: max(values, key=lambda one: sign * one.value)


def best_baseline_value(found: results.Results, metric: Metric) -> results.Value | None:
    """The value of the best baseline by a metric, the cheapest of equals; None where none was measured."""
    if metric is found.headline:
        return value(found, metric, found.best_baseline) if found.best_baseline is not None else None
    values = [one for contender in BASELINES if (one := value(found, metric, contender)) is not None]
    return best(metric)(values) if values else None


def comparison(found: results.Results, metric: Metric, over: Contender) -> results.Comparison | None:
    return next((one for one in found.comparisons if one.metric is metric and one.over is over), None)


def judged_against(found: results.Results, over: Contender | None) -> results.PairwiseResult | None:
    """The judge's verdicts against one baseline; None where there are none."""
    comparisons = found.judgement.comparisons if found.judgement else []
    return next((one for one in comparisons if one.over is over and one.win_rate is not None), None)


def lowest_win_rate(found: results.Results) -> results.PairwiseResult | None:
    """The judge's verdicts against the baseline with the lowest win rate of the tuned model; None where there are none."""
    comparisons = found.judgement.comparisons if found.judgement else []
    measured = [one for one in comparisons if one.over in BASELINES and one.win_rate is not None]
    return min(measured, key=lambda one: one.win_rate or 0.0, default=None)


def worse_benchmarks(found: results.Results) -> list[results.Benchmark]:
    """Benchmarks in which the tuned model is significantly worse, corrected for their number (Bonferroni)."""
    listed = [one for one in found.harness.benchmarks if one.p_value is not None] if found.harness else []
    return [one for one in listed if (one.gain or 0) < 0 and (one.p_value or 0) * len(listed) < ALPHA]


def tokens(found: results.Results, contender: Contender) -> results.Tokens | None:
    return next((one for one in found.tokens if one.contender is contender), None)


def gate_metrics(found: results.Results) -> list[Metric]:
    return [gate.metric for gate in found.evaluation.gates if gate.metric is not None]


def most_telling(
    among: Sequence[Metric], required: Sequence[Metric], tuned: Collection[Metric], scored: Collection[Metric]
) -> Metric | None:
    """The most telling metric of those that the tuned model has: one that a gate requires, else the first that is not 0 for
    everybody."""
    available = [metric for metric in among if metric in tuned]
    first = [metric for metric in required if metric in available]
    return next(iter([*first, *(metric for metric in available if metric in scored), *available]), None)


def chosen(found: results.Results, metrics: tuple[Metric, ...]) -> Metric | None:
    """The most telling one of these metrics."""
    tuned = {one.metric for one in found.values if one.contender is Contender.TUNED}
    return most_telling(
        metrics, gate_metrics(found), tuned, {one.metric for one in found.values if tells(one.metric, one.value)}
    )
