"""Rows of the tables with intervals: every metric of every contender, what the tuned model gains, what a judge prefers."""

import dataclasses
import math

from finetune_api import job, results
from finetune_trainer.report import drawings, reading, words

Metric = job.Metric
Contender = job.Contender

HALF = 0.5
"""The win rate of equals."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A value in words and drawn; `counted` where its examples are not those of the other values."""

    shown: str
    inside: str
    drawn: drawings.Whisker
    counted: str = ""
    best: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    metric: Metric
    direction: str
    cells: list[Cell | None]
    """In the order of reading.contenders; None: not measured."""


def contenders(found: results.Results) -> list[Row]:
    """Metrics as rows, contenders as columns, each row on a scale of its own."""
    return [_row(found, metric) for metric in Metric if any(one.metric is metric for one in found.values)]


def _row(found: results.Results, metric: Metric) -> Row:
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
        shown, inside = words.number(metric, one.value), words.interval(metric, one.low, one.high)
        spoken = f"{shown}, 95 % interval {inside}" if inside else f"{shown}, without an interval"
        drawn = drawings.whisker(one.value, one.low, one.high, scale, spoken, tuned.value if tuned else None)
        counted = "" if one.examples == found.evaluation.examples else f"n = {words.count(one.examples)}"
        cells.append(Cell(shown, inside, drawn, counted, one.value == leader))
    return Row(metric, "best is 1" if metric is Metric.LENGTH_RATIO else direction, cells)


def comparisons(found: results.Results) -> list[tuple[results.Comparison, Cell]]:
    """Gains of the tuned model, each around zero on its metric's scale; the judge's verdicts have a part of their own."""
    order, whose = list(Metric), list(Contender)
    listed = [one for one in found.comparisons if one.metric not in job.PAIRWISE]
    made = []
    for one in sorted(listed, key=lambda one: (order.index(one.metric), whose.index(one.over))):
        same = [other for other in found.comparisons if other.metric is one.metric]
        ends = [abs(end) for other in same for end in (other.low, other.high, other.gain) if math.isfinite(end)]
        reach = max(ends or [1.0])
        inside = words.interval(one.metric, one.low, one.high, sign=True)
        gain = words.number(one.metric, one.gain, sign=True)
        label = f"gain {gain}, 95 % interval {inside}"
        drawn = drawings.whisker(one.gain, one.low, one.high, drawings.spanning([-reach, reach]), label, 0.0)
        made.append((one, Cell(gain, inside, drawn)))
    return made


def verdicts(found: results.Results) -> list[tuple[results.PairwiseResult, Cell | None]]:
    """The judge's win rates; None: too few verdicts."""
    made: list[tuple[results.PairwiseResult, Cell | None]] = []
    for one in found.judgement.comparisons if found.judgement else []:
        if one.win_rate is None:
            made.append((one, None))
            continue
        shown = words.number(Metric.JUDGE_WIN_RATE, one.win_rate)
        inside = words.interval(Metric.JUDGE_WIN_RATE, one.low, one.high)
        label = f"{shown}, 95 % interval {inside}"
        drawn = drawings.whisker(one.win_rate, one.low, one.high, drawings.Scale(0.0, 1.0), label, HALF)
        made.append((one, Cell(shown, inside, drawn)))
    return made


def left_out(one: results.PairwiseResult) -> str:
    """What became of questions that neither won nor lost."""
    counted = (
        (one.same, "with the same text"),
        (one.swayed, "decided by the order"),
        (one.unread, "left out without a verdict"),
    )
    return "; ".join(f"{words.count(number)} {what}" for number, what in counted if number)
