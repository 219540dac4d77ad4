"""Which answers the report shows, and how: first those where tuned model and best baseline differ, then those where both fail."""

import enum
from collections.abc import Sequence

from finetune_api import job, results
from finetune_trainer.report import differences, reading

Contender = job.Contender

SHOWN = 20
"""Samples on the page; samples.jsonl has all."""

NEARER = 0.05
"""Difference in similarity to the expected answer from which one answer counts as nearer."""


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


GRADED = frozenset({Kind.NEARER, Kind.FARTHER, Kind.ALIKE})
"""Kinds that compare similarity to the expected answer, since no answer is exactly right."""

_QUOTAS = {Kind.HELPED: 6, Kind.HURT: 6, Kind.BOTH_WRONG: 4, Kind.NEARER: 6, Kind.FARTHER: 6, Kind.WRONG: 12}


def choose(
    samples: Sequence[results.Sample], baseline: Contender | None, count: int = SHOWN
) -> list[tuple[Kind, results.Sample]]:
    """The most telling samples, at most `count`, grouped by kind; within a kind in their order."""
    graded = not any(right(sample, who) for sample in samples for who in sample.answers)
    kinds = [(_kind(sample, baseline, graded=graded), sample) for sample in samples]
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
    """Whether a contender's answer is right; None where there is nothing to compare."""
    answer = sample.answers.get(who)
    if sample.expected is None or answer is None:
        return None
    return sample.right.get(who, answer.strip() == sample.expected.strip())


def _kind(sample: results.Sample, baseline: Contender | None, *, graded: bool) -> Kind:
    if sample.expected is None:
        return Kind.TEXT if sample.text is not None else Kind.UNANSWERED
    tuned = right(sample, Contender.TUNED)
    if tuned is None:
        return Kind.UNANSWERED
    other = right(sample, baseline) if baseline else None
    if baseline is None or other is None:
        return Kind.RIGHT if tuned else Kind.WRONG
    if graded:
        ours, theirs = (
            differences.similarity(sample.expected, sample.answers[who] or "") for who in (Contender.TUNED, baseline)
        )
        return Kind.NEARER if ours > theirs + NEARER else Kind.FARTHER if theirs > ours + NEARER else Kind.ALIKE
    return {
        (True, False): Kind.HELPED,
        (False, True): Kind.HURT,
        (False, False): Kind.BOTH_WRONG,
        (True, True): Kind.BOTH_RIGHT,
    }[tuned, other]


def chosen(found: results.Results) -> list[tuple[Kind, results.Sample]]:
    return choose(found.samples, found.best_baseline)


def question(sample: results.Sample) -> str:
    """The last question in one short line."""
    turns = sample.messages or []
    text = next((turn.get("content", "") for turn in reversed(turns) if turn.get("role") == "user"), sample.text or "")
    brief = " ".join(text[:400].split())
    return brief if len(brief) <= 140 else f"{brief[:139]}…"


def answered(sample: results.Sample) -> list[Contender]:
    """Whose answers are shown, in their order."""
    order = (
        Contender.TUNED,
        *(one for one in sample.answers if one.is_candidate),
        *reversed(reading.BASELINES),
        Contender.SERVING,
    )
    return [who for who in order if sample.answers.get(who) is not None]


def compared(expected: str | None, answer: str) -> tuple[differences.Parts, str]:
    """An answer with its differences marked, and a remark about it."""
    plain: differences.Parts = [("same", answer)]
    if expected is None:
        return plain, ""
    if not answer.strip():
        return [], "an empty answer"
    if answer.strip() == expected.strip():
        return plain, "As expected."
    marked = differences.marked(expected, answer)
    return (plain, "Too different, or too long, to compare word by word.") if marked is None else (marked, "")
