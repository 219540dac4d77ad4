"""Rows of the tables with intervals: every metric of every contender, the gains of the tuned model, the judge's preferences."""

import dataclasses
import math

from finetune_api import job, results
from finetune_trainer.report import drawings, reading, words

Metric = job.Metric
Contender = job.Contender

HALF = 0.5
"""The win rate of equal contenders."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A value as text and as a whisker; `note` where its number of examples differs."""

    shown: str
    interval: str
    whisker: drawings.Whisker
    note: str = ""
    best: bool = False


@dataclasses.dataclass(frozen=True)
class MetricRow:
    metric: Metric
    direction: str
    cells: list[Cell | None]
    """In the order of reading.contenders; None: not measured."""


def contenders(found: results.Results) -> list[MetricRow]:
    """Metrics as rows, contenders as columns, each row on its own scale."""
    return [_row(found, metric) for metric in Metric if any(one.metric is metric for one in found.values)]


def _row(found: results.Results, metric: Metric) -> MetricRow:
    values = {one.contender: one for one in found.values if one.metric is metric}
    ends = [end for one in values.values() for end in (one.value, one.low, one.high) if end is not None]
    scale = drawings.Scale(0.0, 1.0) if metric in job.SHARES else drawings.spanning(ends)
    ranked = metric is not Metric.LENGTH_RATIO and len({one.value for one in values.values()}) > 1
    leader = reading.best(metric)(values.values()).value if ranked else None
    tuned = values.get(Contender.TUNED)
    direction = "lower is better" if metric in job.LOWER_IS_BETTER else "higher is better"
    cells: list[Cell | None] = []
    for who in reading.contenders(found):
        one = values.get(who)
        if one is None:
            cells.append(None)
            continue
        shown, interval = words.number(metric, one.value), words.interval(metric, one.low, one.high)
        label = f"{shown}, 95 % interval {interval}" if interval else f"{shown}, without an interval"
        whisker = drawings.whisker(one.value, one.low, one.high, scale, label, tuned.value if tuned else None)
        note = "" if one.examples == found.evaluation.examples else f"n = {words.count(one.examples)}"
        cells.append(Cell(shown, interval, whisker, note, one.value == leader))
    return MetricRow(metric, "best is 1" if metric is Metric.LENGTH_RATIO else direction, cells)


def comparisons(found: results.Results) -> list[tuple[results.Comparison, Cell]]:
    """Gains of the tuned model, each around zero on its metric's scale; the judge's verdicts have their own table."""
    order, contender_order = list(Metric), [*Contender, *reading.alternatives(found)]
    listed = [one for one in found.comparisons if one.metric not in job.PAIRWISE]
    made = []
    for one in sorted(listed, key=lambda one: (order.index(one.metric), contender_order.index(one.over))):
        same = [other for other in found.comparisons if other.metric is one.metric]
        ends = [abs(end) for other in same for end in (other.low, other.high, other.gain) if math.isfinite(end)]
        reach = max(ends or [1.0])
        interval = words.interval(one.metric, one.low, one.high, sign=True)
        gain = words.number(one.metric, one.gain, sign=True)
        label = f"gain {gain}, 95 % interval {interval}"
        whisker = drawings.whisker(one.gain, one.low, one.high, drawings.spanning([-reach, reach]), label, 0.0)
        made.append((one, Cell(gain, interval, whisker)))
    return made


def verdicts(found: results.Results) -> list[tuple[results.PairwiseResult, Cell | None]]:
    """The judge's win rates; None: too few verdicts."""
    made: list[tuple[results.PairwiseResult, Cell | None]] = []
    for one in found.judgement.comparisons if found.judgement else []:
        if one.win_rate is None:
            made.append((one, None))
            continue
        shown = words.number(Metric.JUDGE_WIN_RATE, one.win_rate)
        interval = words.interval(Metric.JUDGE_WIN_RATE, one.low, one.high)
        label = f"{shown}, 95 % interval {interval}"
        whisker = drawings.whisker(one.win_rate, one.low, one.high, drawings.Scale(0.0, 1.0), label, HALF)
        made.append((one, Cell(shown, interval, whisker)))
    return made


def left_out(one: results.PairwiseResult) -> str:
    """The questions that were neither won nor lost, in words."""
    note = (
        (one.same, "with the same text"),
        (one.swayed, "decided by the order"),
        (one.unread, "left out without a verdict"),
    )
    return "; ".join(f"{words.count(number)} {what}" for number, what in note if number)
