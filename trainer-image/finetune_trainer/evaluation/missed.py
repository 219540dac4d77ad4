"""How gates were missed, pure: by evidence, or undecided.

Missed by evidence: a model that just meets the bound would seldom be measured like this, with the level of `gate.confidence`. It
is the test of the gate in the other direction, so between the two lies what too few examples cannot decide. Where the value alone
decides (a confidence of 0.5), a miss is evidence.
"""

import math
from collections.abc import Sequence

from finetune_api import evaluation, job, status
from finetune_trainer.evaluation import evidence, gates, task_gates


def of_gate(gate: job.Gate, values: gates.Values, win_losses: gates.WinLosses) -> status.Missed:
    """For a gate on a metric that the tuned model did not pass."""
    measured: gates.WinLosses | gates.Values = win_losses if gate.metric in job.PAIRWISE else values
    if gate.over in (evaluation.BEST, evaluation.BEST_ALTERNATIVE):
        # It must be better than each of them, so one of them is enough to miss it.
        others = list[job.Contender | None](evaluation.compared_with(gate.over, measured)) or [None]
    else:
        others = [None if gate.over is None else job.Contender(gate.over)]
    shown = _pairwise if gate.metric in job.PAIRWISE else _metric
    found = any(shown(gate, other, values, win_losses) for other in others)
    return "ByEvidence" if found else "Undecided"


def in_reach(gate: job.Gate, lower: float, values: gates.Values) -> bool:
    """Whether a gate that was missed would not be missed by evidence with a loss lower by this share, if the wrong answers become
    fewer by as much. A training's loss promises nothing about pairwise comparisons and what is not the task's."""
    column = values.get(job.Contender.TUNED, {}).get(gate.metric)
    if column is None or gate.metric in evaluation.OF_TRAINING or gate.metric is job.Metric.LENGTH_RATIO:
        return False
    value = column.value
    if gate.metric is job.Metric.PERPLEXITY:
        gain = value - value ** (1 - lower)
    else:
        gain = lower * (value if gate.metric in job.LOWER_IS_BETTER else 1 - value)
    easier = gate.model_copy(
        update={
            "minimum": None if gate.minimum is None else gate.minimum - gain,
            "maximum": None if gate.maximum is None else gate.maximum + gain,
            "improvement": None if gate.over is None else (gate.improvement or 0.0) - gain,
        }
    )
    return gates.check([easier], values)[0].passed or of_gate(easier, values, {}) == "Undecided"


def of_task_gates(required: Sequence[job.TaskGate], found: task_gates.Found) -> list[status.GateResult]:
    """The gates on public benchmarks as checked, with how each was missed."""
    return [
        one.model_copy(update={"missed": None if one.passed else of_task_gate(gate, found)})
        for gate, one in zip(required, task_gates.check(required, found), strict=True)
    ]


def of_task_gate(gate: job.TaskGate, found: task_gates.Found) -> status.Missed:
    """For a gate on a public benchmark that the tuned model did not pass."""
    there = found.get(gate.task, {})
    key = task_gates.chosen(gate, list(there))
    if isinstance(key, str) or not math.isfinite(there[key].tuned):
        return "Undecided"
    one = there[key]
    if one.columns is None or gate.confidence <= gates.POINT:
        return "ByEvidence" if gate.confidence <= gates.POINT else "Undecided"
    base, tuned = one.columns
    shown = _bounds(gate, tuned)
    if gate.improvement is not None or gate.margin is not None:
        least = gate.improvement if gate.margin is None else -gate.margin
        shown |= _beyond(gate, base, tuned, least or 0.0, lower_is_better=not one.higher_is_better)
    return "ByEvidence" if shown else "Undecided"


def _metric(gate: job.Gate, other: job.Contender | None, values: gates.Values, win_losses: gates.WinLosses) -> bool:
    column = values.get(job.Contender.TUNED, {}).get(gate.metric)
    if column is None:
        return False
    if gate.confidence <= gates.POINT:
        return other is None or gate.metric in values.get(other, {})
    if _bounds(gate, column):
        return True
    compared = values.get(other, {}).get(gate.metric) if other is not None else None
    if compared is None:
        return False
    lower = gate.metric in job.LOWER_IS_BETTER
    return _beyond(gate, compared, column, gate.improvement or 0.0, lower_is_better=lower)


def _bounds(gate: gates.Bounds, column: evidence.Column) -> bool:
    """Whether the minimum or the maximum is shown to be missed."""
    low = gate.minimum is not None and column.value < gate.minimum - gates.TOLERANCE
    high = gate.maximum is not None and column.value > gate.maximum + gates.TOLERANCE
    return (low and _sure(gate, evidence.p_value_at_most(column, gate.minimum or 0.0))) or (
        high and _sure(gate, evidence.p_value_at_least(column, gate.maximum or 0.0))
    )


def _beyond(
    gate: gates.Bounds, other: evidence.Column, column: evidence.Column, margin: float, *, lower_is_better: bool
) -> bool:
    """Whether the gain over another contender is shown to be less than the margin: the other one is not worse by as much."""
    found = evidence.compare(other, column, lower_is_better=lower_is_better, margin=-margin)
    return found.gain > -margin + gates.TOLERANCE and _sure(gate, found.p_value)


def _pairwise(gate: job.Gate, other: job.Contender | None, values: gates.Values, win_losses: gates.WinLosses) -> bool:
    found = win_losses.get(other) if other is not None else None
    if found is None or not found.examples:
        return False
    if gate.confidence <= gates.POINT:
        return True
    if gate.minimum is None:
        return _sure(gate, found.p_value_worse)
    turned = evidence.WinLoss(found.losses, found.ties, found.wins, found.independent)
    return found.rate < gate.minimum and _sure(gate, turned.p_value_at_least(1 - gate.minimum))


def _sure(gate: gates.Bounds, p_value: float) -> bool:
    return p_value <= 1 - gate.confidence + gates.TOLERANCE
