"""The parts of the page that are tables, drawings and sentences: each a function of the results, empty where they are silent."""

import math
from collections.abc import Iterable, Mapping

from finetune_api import checks, evaluation, job, results
from finetune_trainer.report import drawings, judgement, markup, reading, words

Metric, Contender, Mark = job.Metric, job.Contender, judgement.Mark

RISEN = 1.01
"""A validation loss that ends above its least one by more than this factor has risen."""

_BADGES = {
    Mark.FOR: ("good", "✓"),
    Mark.AGAINST: ("bad", "✗"),
    Mark.CLEAR: ("good", "✓"),
    Mark.UNDECIDED: ("open", "≈"),
    Mark.UNMEASURED: ("open", "–"),
}


def verdict(found: results.Results) -> markup.Html:
    said = judgement.verdict(found)
    kind, sign, word = ("good", "✓", "Passed.") if said.passed else ("bad", "✗", "Not passed.")
    cautions = "".join(f"<li>{markup.text(one)}</li>" for one in said.cautions)
    return (
        f'<section class="verdict {kind}" aria-label="Verdict"><p class="decided"><strong class="{kind}">'
        f'<span aria-hidden="true">{sign}</span> {word}</strong> {markup.text(said.reason)}</p>'
        + (markup.paragraph(markup.text(said.evidence)) if said.evidence else "")
        + (f'<ul class="cautions" aria-label="What to keep in mind">{cautions}</ul>' if cautions else "")
        + "</section>"
    )


def reasons(found: results.Results) -> markup.Html:
    """The five reasons for fine-tuning, and the two against it that are measured."""
    head = ("Reason", "What was measured", "It")
    return markup.section(
        "reasons",
        "Was fine-tuning the right tool?",
        markup.table("Five reasons for fine-tuning", head, map(_reason, judgement.for_tuning(found)), "reasons"),
        "<h3>What speaks against fine-tuning</h3>",
        markup.table("Reasons against fine-tuning", head, map(_reason, judgement.against_tuning(found)), "reasons"),
    )


def _reason(reason: judgement.Reason) -> list[markup.Html]:
    asked = '<span class="goal">a goal of this job</span>' if reason.asked else ""
    how = "<em>How to measure it:</em> " if reason.mark is Mark.UNMEASURED else ""
    return [
        f"{markup.text(reason.title)} {asked}",
        how + markup.text(reason.seen),
        markup.badge(*_BADGES[reason.mark], reason.mark.value),
    ]


def gates(found: results.Results) -> markup.Html:
    if not found.evaluation.gates:
        return markup.section("gates", "Gates", markup.paragraph("The job has no gates: every model passes.", "soft"))
    rows = [
        (
            markup.text(gate.requirement),
            markup.text(gate.observed),
            markup.badge("good", "✓", "passed") if gate.passed else markup.badge("bad", "✗", "failed"),
        )
        for gate in found.evaluation.gates
    ]
    return markup.section("gates", "Gates", markup.table("Gates", ("Required", "Measured", "Result"), rows))


def contenders(found: results.Results) -> markup.Html:
    """Metrics as rows, contenders as columns, each row on a scale of its own."""
    columns = reading.contenders(found)
    metrics = [metric for metric in Metric if any(one.metric is metric for one in found.values)]
    if not metrics:
        return ""
    described = [words.described(who, found.intent.prompt) for who in columns if who is not Contender.TUNED]
    note = (
        f"{found.evaluation.examples} held-out test examples. Lines are 95 % intervals; the dashed line is the tuned model's "
        "value, on the same scale along a row."
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
        cells.append(_cell(one, scale, tuned.value if tuned else None, first=first))
    return cells


def _cell(one: results.Value, scale: drawings.Scale, line: float | None, *, first: bool) -> markup.Html:
    shown, inside = words.number(one.metric, one.value), words.interval(one.metric, one.low, one.high)
    spoken = f"{shown}, 95 % interval {inside}" if inside else f"{shown}, without an interval"
    drawn = drawings.whisker(one.value, one.low, one.high, scale, spoken, line=line)
    star = ' <span class="best"><span aria-hidden="true">★</span> best</span>' if first else ""
    return (
        f'<span class="value">{shown}</span>{star}{drawn}<span class="soft inside">{inside or "no interval"}'
        f"</span><span class='soft inside'>n = {words.count(one.examples)}</span>"
    )


def comparisons(found: results.Results) -> markup.Html:
    """Gains of the tuned model, each around zero on its metric's scale."""
    order = list(Metric)
    rows = []
    for one in sorted(found.comparisons, key=lambda one: (order.index(one.metric), list(Contender).index(one.over))):
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
                markup.text(_first_upper(words.gained(one.gain, one.p_value))),
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


def losses(found: results.Results) -> markup.Html:
    steps, validations = _points(found.training.history), _points(found.training.validations)
    drawn = drawings.curves(steps, validations)
    return markup.section("losses", "Loss", drawn and markup.paragraph(markup.text(course(validations))) + drawn)


def course(validations: list[drawings.Point]) -> str:
    """What the validation loss did, in words."""
    if not validations:
        return "There is no validation loss, so overfitting cannot be seen: set dataset.validation."
    step, least = min(validations, key=lambda point: point[1])
    last_step, last = validations[-1]
    if last > RISEN * least:
        return (
            f"The model overfits: the validation loss rose from its least value {least:.3f} at step {step:g} to {last:.3f} at "
            f"step {last_step:g}, while it learned the training examples by heart. The adapter of step {step:g} is the one that "
            "is kept; fewer epochs or more examples would save the rest."
        )
    return (
        f"No overfitting is seen: the validation loss is least, {least:.3f}, at step {step:g}, and ends at {last:.3f}."
    )


def _points(listed: Iterable[Mapping[str, float]]) -> list[drawings.Point]:
    pairs = [(one.get("step", math.nan), one.get("loss", math.nan)) for one in listed]
    return [(step, loss) for step, loss in pairs if math.isfinite(step) and math.isfinite(loss)]


def tokens(found: results.Results) -> markup.Html:
    """What a request takes, and when the training is paid back."""
    ours = reading.tokens(found, Contender.TUNED)
    rows = []
    for who in (Contender.TUNED, *reading.BASELINES, Contender.SERVING):
        one = reading.tokens(found, who)
        if one is None:
            continue
        saved = "" if ours is None or who is Contender.TUNED else f"{one.prompt - ours.prompt:+,.0f}".replace("-", "−")
        rows.append(
            (
                markup.text(_first_upper(words.described(who, found.intent.prompt))),
                f"={words.count(one.prompt)}",
                f"={words.count(one.answer)}",
                f"={words.count(one.prompt + one.answer)}",
                f"={saved}",
            )
        )
    if not rows:
        return ""
    head = ("Contender", "=Prompt tokens", "=Answer tokens", "=Together", "=Prompt over tuned")
    return markup.section(
        "tokens",
        "Tokens of a request, and break-even",
        markup.paragraph(markup.text(_break_even(found))),
        markup.table("Tokens of a request, means of the test examples", head, rows),
    )


def _break_even(found: results.Results) -> str:
    requests, cost = found.break_even_requests, found.training.cost
    price = words.price(cost, found.training.currency) if cost is not None else "the training's price"
    if requests is not None:
        return (
            f"Break-even after {words.count(requests)} requests: by then the prompt tokens saved are worth {price} at the "
            "measured speed of reading prompts."
        )
    return "No break-even: nothing is saved, or the price of a GPU hour is unknown."


def findings(found: results.Results) -> markup.Html:
    """What the data checks and preflight's advice said."""
    seen = found.preflight
    parts = []
    if seen is not None:
        split = f"{seen.examples:,} training, {seen.validation_examples:,} validation and {seen.test_examples:,} test examples"
        learned = f"{seen.tokens:,} training tokens, {seen.trainable_tokens:,} of them learned"
        parts.append(markup.paragraph(markup.text(f"{split}; {learned}. Preflight's verdict: {seen.verdict}.")))
        if seen.advice:
            parts.append(f"<ul>{''.join(f'<li>{markup.quoted(one)}</li>' for one in seen.advice)}</ul>")
    rows = [_finding(one) for one in found.findings]
    if rows:
        parts.append(
            markup.table("Findings in the data", ("Rule", "=Count", "What was found", "Places"), rows, "findings")
        )
    elif seen is not None and seen.findings:
        parts.append(f"<ul>{''.join(f'<li>{markup.quoted(one)}</li>' for one in seen.findings)}</ul>")
    elif seen is not None:
        parts.append(markup.paragraph("The data checks found nothing.", "soft"))
    return markup.section("data", "The data", *parts)


def _finding(one: Mapping[str, object]) -> list[markup.Html]:
    rule, places = str(one.get("rule", "")), one.get("places")
    known = checks.BY_ID.get(rule)
    listed = [str(place) for place in places] if isinstance(places, list | tuple) else []
    more = f"<summary>{len(listed)} place{'s' if len(listed) != 1 else ''}</summary>"
    inner = "".join(f"<li>{markup.quoted(place)}</li>" for place in listed)
    dropped = one.get("dropped")
    message = str(one.get("message", one.get("line", "")))
    said = markup.quoted(message) + (f" {markup.text(dropped)} left out." if dropped else "")
    if known is not None:
        said += f'<span class="soft inside">{markup.text(known.advice)}</span>'
    severity = f' <span class="soft">{markup.text(known.severity)}</span>' if known is not None else ""
    return [
        markup.quoted(rule) + severity,
        f"={markup.text(one.get('count', ''))}",
        said,
        f"<details>{more}<ul class='places'>{inner}</ul></details>" if listed else "",
    ]


def facts(found: results.Results) -> markup.Html:
    """Cost of the training, and what exactly was measured."""
    training = found.training
    rows = {
        "Training": None if training.seconds is None else words.duration(training.seconds),
        "Speed": None if training.tokens_per_second is None else f"{words.count(training.tokens_per_second)} tokens/s",
        "Peak memory": None if training.peak_memory is None else words.size(training.peak_memory),
        "GPU hours": None if training.gpu_hours is None else f"{training.gpu_hours:,.2f}",
        "Price of the training": None if training.cost is None else words.price(training.cost, training.currency),
        "Evaluation": words.duration(found.seconds),
        "Evaluated": None if found.finished_at is None else f"{found.finished_at:%Y-%m-%d %H:%M %Z}".strip(),
        "Base model": found.base_model,
        "Base model's revision": found.base_model_revision,
        "Revision of the job": found.revision,
        "LoRA rank": str(found.rank),
        "Adapter, SHA-256": found.adapter,
        "Served as": found.served_model_name,
        "Canary": found.evaluation.canary,
    }
    listed = "".join(
        f"<div><dt>{name}</dt><dd>{markup.quoted(value)}</dd></div>"
        for name, value in rows.items()
        if value is not None
    )
    return markup.section("facts", "Cost and facts", f'<dl class="facts">{listed}</dl>')


def _first_upper(said: str) -> str:
    return said[:1].upper() + said[1:]
