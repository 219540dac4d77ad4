"""The parts of the page around its scores and samples: each a function of the results, empty where they are silent."""

import math
from collections.abc import Iterable, Mapping

from finetune_api import checks, job, results
from finetune_trainer.report import drawings, judgement, markup, reading, words

Contender = job.Contender
Mark = judgement.Mark

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
    head = ("Reason", "What was measured", "For or against")
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
    meaning = f'<span class="soft meaning">{markup.text(reason.meaning)}</span>' if reason.meaning else ""
    return [
        f"{markup.text(reason.title)} {asked}",
        how + markup.text(reason.seen) + meaning,
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
                markup.text(words.capital(words.described(who, found.intent.prompt))),
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
    return f"No break-even: {judgement.unpaid(found)}."


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
