"""Public benchmarks on the page: base and tuned model side by side, and whether the difference may be chance."""

import math

from finetune_api import results
from finetune_trainer.report import drawings, markup, words

SURE = 0.05


def section(found: results.Results) -> markup.Html:
    """Empty where the job has no harness."""
    said = found.harness
    if said is None:
        return ""
    how = (
        "through the model's chat template"
        if said.chat_template
        else "as plain text, without the model's chat template"
    )
    note = (
        f"Tasks of lm-evaluation-harness {markup.quoted(said.release)}, the same questions to both models, {how}. They show what "
        "the model could do before, and whether it still can; the dashed line is no difference."
    )
    head = (
        "Task",
        "Base model, 95 % interval",
        "Tuned model, 95 % interval",
        "Gain, 95 % interval",
        "Drawn around 0",
        "Chance",
    )
    rows = [_row(one) for one in said.benchmarks]
    missing = "".join(f"<li>{markup.quoted(one)}</li>" for one in said.problems)
    return markup.section(
        "benchmarks",
        "Public benchmarks",
        f"<p><strong>Not complete:</strong></p><ul>{missing}</ul>" if missing else "",
        markup.paragraph(note, "soft"),
        markup.table("Base and tuned model in each task", head, rows) if rows else "",
    )


def _row(one: results.Benchmark) -> list[markup.Html]:
    way = f", {one.filter}" if one.filter else ""
    shots = f", {one.few_shot} examples before each" if one.few_shot else ""
    about = f"{words.count(one.examples)} questions{shots}; {'higher' if one.higher_is_better else 'lower'} is better"
    gain, inside = number(one.gain, sign=True), interval(one.low, one.high, sign=True)
    reach = max([abs(end) for end in (one.gain, one.low, one.high) if end is not None], default=0.0) or 1.0
    drawn = drawings.whisker(
        math.nan if one.gain is None else one.gain,
        one.low,
        one.high,
        drawings.spanning([-reach, reach]),
        f"gain {gain}, 95 % interval {inside}" if inside else f"gain {gain}, without an interval",
        line=0.0,
    )
    return [
        f'{markup.quoted(one.task)} <span class="soft">{markup.text(one.metric + way)}</span>'
        f'<span class="soft meaning">{markup.text(about)}</span>',
        _score(one.base),
        _score(one.tuned),
        f'<span class="value">{gain}</span><span class="soft inside">{inside}</span>',
        drawn,
        markup.text(judged(one)),
    ]


def _score(one: results.Score) -> markup.Html:
    inside = interval(one.low, one.high) or "no interval"
    return f'<span class="value">{number(one.value)}</span><span class="soft inside">{inside}</span>'


def number(value: float | None, *, sign: bool = False) -> str:
    """0.512, 13.4, 1,204; with a sign where it is a difference."""
    if value is None:
        return "not defined"
    places = 3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0
    return f"{value:{'+' if sign else ''},.{places}f}".replace("-", "−")


def interval(low: float | None, high: float | None, *, sign: bool = False) -> str:
    return "" if low is None or high is None else f"{number(low, sign=sign)} to {number(high, sign=sign)}"


def judged(one: results.Benchmark) -> str:
    """Whether the models differ, in words."""
    if one.gain is None or one.p_value is None:
        return "No test: the metric is not of single questions"
    if one.gain == 0:
        return "No difference"
    verb = "Better" if one.gain > 0 else "Worse"
    comes = f"a difference this large comes by chance in {words.chance(one.p_value)}"
    return f"{verb}: {comes}" if one.p_value < SURE else f"Not told apart: {comes}"
