"""Which answers the report shows, and how: where tuned model and best baseline differ first, then where both fail."""

import enum
from collections.abc import Sequence

from finetune_api import job, results
from finetune_trainer.report import differences, markup, reading, words

Contender = job.Contender

SHOWN = 20
"""Samples on the page; samples.jsonl has all."""

NEARER = 0.05
"""Share of the words by which one answer must be nearer to the expected one to count as nearer."""


class Kind(enum.Enum):
    HELPED = "Tuned right, best baseline wrong"
    HURT = "Tuned wrong, best baseline right"
    BOTH_WRONG = "Both wrong"
    BOTH_RIGHT = "Both right"
    NEARER = "Tuned nearer to the expected answer than the best baseline"
    FARTHER = "Best baseline nearer to the expected answer than tuned"
    ALIKE = "About as near to the expected answer"
    WRONG = "Tuned wrong"
    RIGHT = "Tuned right"
    TEXT = "Plain texts, which have no answers"
    UNANSWERED = "Without an answer to compare"


_QUOTAS = {Kind.HELPED: 6, Kind.HURT: 6, Kind.BOTH_WRONG: 4, Kind.NEARER: 6, Kind.FARTHER: 6, Kind.WRONG: 12}


def choose(
    samples: Sequence[results.Sample], rival: Contender | None, count: int = SHOWN
) -> list[tuple[Kind, results.Sample]]:
    """The samples that tell most, at most `count`, grouped by kind; within a kind in their order."""
    graded = not any(right(sample, who) for sample in samples for who in sample.answers)
    kinds = [(_kind(sample, rival, graded=graded), sample) for sample in samples]
    first: list[int] = []
    for kind in Kind:
        places = [place for place, (one, _) in enumerate(kinds) if one is kind]
        first += places[: _QUOTAS.get(kind, 2)]
    taken = set(first[:count])
    for place in sorted(range(len(kinds)), key=lambda place: list(Kind).index(kinds[place][0])):
        if len(taken) < count:
            taken.add(place)
    return [kinds[place] for kind in Kind for place in sorted(taken) if kinds[place][0] is kind]


def right(sample: results.Sample, who: Contender) -> bool | None:
    """Whether a contender's answer is right; None: there is nothing to compare."""
    answer = sample.answers.get(who)
    if sample.expected is None or answer is None:
        return None
    return sample.right.get(who, answer.strip() == sample.expected.strip())


def _kind(sample: results.Sample, rival: Contender | None, *, graded: bool) -> Kind:
    if sample.expected is None:
        return Kind.TEXT if sample.text is not None else Kind.UNANSWERED
    tuned = right(sample, Contender.TUNED)
    if tuned is None:
        return Kind.UNANSWERED
    other = right(sample, rival) if rival else None
    if rival is None or other is None:
        return Kind.RIGHT if tuned else Kind.WRONG
    if graded:
        ours, theirs = (
            differences.nearness(sample.expected, sample.answers[who] or "") for who in (Contender.TUNED, rival)
        )
        return Kind.NEARER if ours > theirs + NEARER else Kind.FARTHER if theirs > ours + NEARER else Kind.ALIKE
    return {
        (True, False): Kind.HELPED,
        (False, True): Kind.HURT,
        (False, False): Kind.BOTH_WRONG,
        (True, True): Kind.BOTH_RIGHT,
    }[tuned, other]


def section(found: results.Results) -> markup.Html:
    """The answers side by side."""
    rival = found.best_baseline
    shown = choose(found.samples, rival)
    if not shown:
        return ""
    graded = any(kind in (Kind.NEARER, Kind.FARTHER, Kind.ALIKE) for kind, _ in shown)
    blocks, last = [], None
    for kind, sample in shown:
        if kind is not last:
            blocks.append(f"<h3>{markup.text(kind.value)}</h3>")
        blocks.append(_sample(sample, rival, found, opened=last is None, graded=graded))
        last = kind
    note = markup.paragraph(
        f"{len(shown)} of {max(found.evaluation.examples, len(shown))} test examples, the most telling first; samples.jsonl "
        "has all. In an answer, <del>struck out</del> is what was expected and is missing, <ins>underlined</ins> is what was "
        "not expected.",
        "soft",
    )
    return markup.section("samples", "Answers side by side", note, *blocks)


def _sample(
    sample: results.Sample, rival: Contender | None, found: results.Results, *, opened: bool, graded: bool
) -> markup.Html:
    turns = sample.messages or []
    asked = next((turn.get("content", "") for turn in reversed(turns) if turn.get("role") == "user"), sample.text or "")
    brief = " ".join(asked[:400].split())
    brief = brief if len(brief) <= 140 else f"{brief[:139]}…"
    said = "" if graded else "".join(_right(sample, who) for who in (Contender.TUNED, rival) if who is not None)
    prompt = "".join(
        f"<h4>{markup.quoted(turn.get('role', ''))}</h4>"
        + markup.block(turn.get("content", ""), f"Turn of {turn.get('role', '')}", "prompt")
        for turn in turns
    )
    plain = markup.block(sample.text, "Text", "prompt") if sample.text is not None else ""
    return (
        f'<details class="sample"{" open" if opened else ""}><summary><span class="asked" dir="auto">'
        f"{markup.text(brief) or 'an empty question'}</span> {said}</summary>"
        f'<p class="soft source">{markup.quoted(sample.source)}</p>{plain}{prompt}'
        f"{_answers(sample, found, graded=graded)}</details>"
    )


def _right(sample: results.Sample, who: Contender) -> markup.Html:
    verdict = right(sample, who)
    if verdict is None:
        return ""
    kind, sign, word = ("good", "✓", "right") if verdict else ("bad", "✗", "wrong")
    return markup.badge(kind, sign, f"{words.name(who)} {word}") + " "


def _answers(sample: results.Sample, found: results.Results, *, graded: bool) -> markup.Html:
    order = (Contender.TUNED, *reversed(reading.BASELINES), Contender.SERVING)
    cells = []
    if sample.expected is not None:
        cells.append(f"<div><h4>Expected</h4>{markup.block(sample.expected, 'Expected answer')}</div>")
    for who in order:
        answer = sample.answers.get(who)
        if answer is None:
            continue
        label = f"Answer of {words.described(who, found.intent.prompt)}"
        verdict = "" if graded else _right(sample, who)
        cells.append(
            f"<div><h4>{verdict or markup.text(words.name(who))}</h4>{_answer(sample.expected, answer, label)}</div>"
        )
    return f'<div class="answers">{"".join(cells)}</div>' if cells else ""


def _answer(expected: str | None, answer: str, label: str) -> markup.Html:
    if expected is None:
        return markup.block(answer, label)
    if not answer.strip():
        return markup.paragraph("an empty answer", "soft")
    if answer.strip() == expected.strip():
        return markup.block(answer, label) + markup.paragraph("As expected.", "soft")
    inner = differences.marked(expected, answer)
    if inner is None:
        return markup.block(answer, label) + markup.paragraph(
            "Too different, or too long, to compare word by word.", "soft"
        )
    return markup.written(inner, label)
