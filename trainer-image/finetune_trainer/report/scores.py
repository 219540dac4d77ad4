"""The scores on the page: every metric of every contender with its interval, and what the tuned model gains."""

import math

from finetune_api import evaluation, job, results
from finetune_trainer.report import drawings, markup, reading, words

Metric = job.Metric
Contender = job.Contender


def contenders(found: results.Results) -> markup.Html:
    """Metrics as rows, contenders as columns, each row on a scale of its own."""
    columns = reading.contenders(found)
    metrics = [metric for metric in Metric if any(one.metric is metric for one in found.values)]
    if not metrics:
        return ""
    described = [words.described(who, found.intent.prompt) for who in columns if who is not Contender.TUNED]
    note = (
        f"{found.evaluation.examples} held-out test examples, where no other number n stands. Lines are 95 % intervals; the "
        "dashed line is the tuned model's value, on the same scale along a row."
    )
    legend = "; ".join(
        f"{words.name(who)}: {text}"
        for who, text in zip([one for one in columns if one is not Contender.TUNED], described, strict=True)
    )
    head = ("Metric", *(words.name(who) for who in columns))
    return markup.section(
        "contenders",
        "Who scores what",
        markup.paragraph(markup.text(f"{note} {legend}{'.' if legend else ''}"), "soft"),
        markup.table("Metrics by contender", head, [_row(found, metric, columns) for metric in metrics], "contenders"),
    )


def _row(found: results.Results, metric: Metric, columns: list[Contender]) -> list[markup.Html]:
    values = {one.contender: one for one in found.values if one.metric is metric}
    ends = [end for one in values.values() for end in (one.value, one.low, one.high) if end is not None]
    scale = drawings.Scale(0.0, 1.0) if metric in job.SHARES else drawings.spanning(ends)
    leader = reading.best(metric)(values.values()) if len(values) > 1 and metric is not Metric.LENGTH_RATIO else None
    tuned = values.get(Contender.TUNED)
    direction = "lower is better" if metric in job.LOWER_IS_BETTER else "higher is better"
    direction = "best is 1" if metric is Metric.LENGTH_RATIO else direction
    cells = [
        f'{metric} <span class="soft">{direction}</span>'
        f'<span class="soft meaning">{markup.text(evaluation.MEANINGS[metric])}</span>'
    ]
    for who in columns:
        one = values.get(who)
        if one is None:
            cells.append('<span class="soft">not measured</span>')
            continue
        first = leader is not None and one.value == leader.value and any(v.value != one.value for v in values.values())
        counted = "" if one.examples == found.evaluation.examples else f"n = {words.count(one.examples)}"
        cells.append(_cell(one, scale, tuned.value if tuned else None, counted, first=first))
    return cells


def _cell(one: results.Value, scale: drawings.Scale, line: float | None, counted: str, *, first: bool) -> markup.Html:
    shown, inside = words.number(one.metric, one.value), words.interval(one.metric, one.low, one.high)
    spoken = f"{shown}, 95 % interval {inside}" if inside else f"{shown}, without an interval"
    drawn = drawings.whisker(one.value, one.low, one.high, scale, spoken, line=line)
    star = ' <span class="best"><span aria-hidden="true">★</span> best</span>' if first else ""
    below = "".join(f'<span class="soft inside">{part}</span>' for part in (inside or "no interval", counted) if part)
    return f'<span class="value">{shown}</span>{star}{drawn}{below}'


def comparisons(found: results.Results) -> markup.Html:
    """Gains of the tuned model, each around zero on its metric's scale; duels have a part of their own."""
    order = list(Metric)
    rows = []
    listed = [one for one in found.comparisons if one.metric not in job.PAIRWISE]
    for one in sorted(listed, key=lambda one: (order.index(one.metric), list(Contender).index(one.over))):
        same = [other for other in found.comparisons if other.metric is one.metric]
        reach = max(
            [abs(end) for other in same for end in (other.low, other.high, other.gain) if math.isfinite(end)] or [1.0]
        )
        inside = words.interval(one.metric, one.low, one.high, sign=True)
        gain = words.number(one.metric, one.gain, sign=True)
        drawn = drawings.whisker(
            one.gain,
            one.low,
            one.high,
            drawings.spanning([-reach, reach]),
            f"gain {gain}, 95 % interval {inside}",
            line=0.0,
        )
        rows.append(
            (
                f'{one.metric} <span class="soft">over {markup.text(words.name(one.over))}</span>',
                f'<span class="value">{gain}</span><span class="soft inside">{inside}</span>',
                drawn,
                markup.text(words.capital(words.gained(one.gain, one.p_value))),
                f"={words.count(one.examples)}",
            )
        )
    if not rows:
        return ""
    note = (
        "By how much the tuned model is better on the same examples, in the metric's unit; negative is worse, also where lower "
        "values are better. The dashed line is no difference."
    )
    head = ("Comparison", "Gain, 95 % interval", "Drawn around 0", "Chance", "=Examples")
    return markup.section(
        "comparisons",
        "Is the difference real?",
        markup.paragraph(note, "soft"),
        markup.table("Gains of the tuned model", head, rows),
    )
