"""Instructions on the form of an answer, derived from the training answers: what Optimized says beside the user's prompt. Pure.

Labels are listed where answers are few distinct ones, keys and their values where answers are JSON objects; else the length is
stated. Nothing here knows the task; the texts are in English.
"""

import collections
import dataclasses
import json
import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from finetune_api import job, results
from finetune_trainer.data import dataset

LABELS = 100
"""Distinct answers that are listed at most, where the job names no labels."""

RECUR = 4
"""How often each of them occurs at least, on average."""

LABEL = 60
"""Characters of a label at most."""

KEYS = 32
"""Keys of JSON objects that are listed at most, the most frequent ones."""

SEEN = 64
"""Training examples that an optimizer may see."""

LONG_WORD = 15
"""Characters of a word, on average, from which a text is taken for one without spaces between words."""


@dataclasses.dataclass(frozen=True)
class Form:
    """What answers look like, and that there must be nothing else."""

    form: str
    only: str


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to ask: an instruction, where it stands, and whose examples come before the question."""

    instruction: str
    placement: results.Placement
    examples: job.Contender = job.Contender.PROMPT
    """Prompt: none."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The model that improves the best variant's instruction (`reflection`), and the training examples that it may see."""

    rules: job.Optimizer
    training: tuple[dataset.Example, ...]
    fits: Callable[[str], bool]
    """Whether there is room for an instruction."""
    seed: int


def optimizer(
    rules: job.Optimizer | None, training: Sequence[dataset.Example], fits: Callable[[str], bool], seed: int
) -> Optimizer | None:
    """The job's optimizer with training examples drawn by the seed; None where it names none."""
    if rules is None:
        return None
    usable = [one for one in training if one.messages and one.answer is not None]
    drawn = random.Random(f"{seed}:optimizer").sample(usable, min(SEEN, len(usable)))  # noqa: S311
    return Optimizer(rules, tuple(drawn), fits, seed)


def variants(form: Form, shown: Sequence[job.Contender], fits: Callable[[str], bool]) -> tuple[Variant, ...]:
    """The variants to try, those with short prompts first.

    shown: the contenders whose examples may come before the question. fits: whether there is room for an instruction.
    """
    whole = f"{form.form}\n{form.only}"
    texts: list[tuple[str, results.Placement]] = [(whole, "System"), (whole, "Question"), (form.only, "System")]
    return tuple(Variant(*one, which) for which in (job.Contender.PROMPT, *shown) for one in texts if fits(one[0]))


def of(training: Sequence[dataset.Example], labels: Sequence[str] | None) -> Form | None:
    """The form of the training answers; None where there are none, or where they may call tools. labels: those of the job."""
    if any(one.tools is not None for one in training):
        return None
    found = [one.answer.strip() for one in training if one.messages and one.answer and one.answer.strip()]
    if not found:
        return None
    if labels is None and (objects := _objects(found)):
        return Form(_json(objects), "Answer with the JSON object only, without an explanation or a code block.")
    if known := labels or _labels(found):
        listed = "\n".join(f"- {label}" for label in known)
        return Form(
            f"The answer is exactly one of these labels:\n{listed}",
            "Answer with the label only, without an explanation or a full sentence.",
        )
    return Form(_length(found), "Write only the answer, without an introduction or an explanation.")


def _labels(found: Sequence[str]) -> list[str]:
    """The distinct answers where they recur like labels, the most frequent first; else none."""
    counts = collections.Counter(found)
    recurring = 2 <= len(counts) <= LABELS and len(found) >= RECUR * len(counts)
    short = all(len(one) <= LABEL and "\n" not in one for one in counts)
    return [one for one, _ in counts.most_common()] if recurring and short else []


def _objects(found: Sequence[str]) -> list[dict[str, Any]]:
    """The answers as JSON objects; empty unless nearly all are."""
    read = [one for text in found if isinstance(one := _parsed(text), dict)]
    return read if len(read) >= 0.95 * len(found) else []


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _json(objects: Sequence[dict[str, Any]]) -> str:
    values: dict[str, list[Any]] = {}
    for one in objects:
        for key, value in one.items():
            values.setdefault(key, []).append(value)
    frequent = sorted(values, key=lambda key: -len(values[key]))[:KEYS]
    keys = [_key(key, values[key], len(objects)) for key in values if key in frequent]
    listed = ", ".join(keys)
    more = ", and sometimes others" if len(values) > len(keys) else ""
    return f"The answer is one JSON object with the keys {listed}{more}." if keys else "The answer is one JSON object."


def _key(key: str, values: Sequence[Any], of_all: int) -> str:
    texts = [one for one in values if isinstance(one, str)]
    options = _labels(texts) if len(texts) == len(values) else []
    kinds = list(dict.fromkeys(_kind(one) for one in values))
    what = f"one of {', '.join(map(_quoted, options))}" if options else " or ".join(kinds)
    return f"{_quoted(key)} ({what}{'' if len(values) == of_all else '; not always there'})"


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list"}
    return kinds.get(type(value), "an object")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _length(found: Sequence[str]) -> str:
    words, characters = sum(len(one.split()) for one in found), sum(map(len, found))
    spaced = characters <= LONG_WORD * words
    typical = round(statistics.median(len(one.split()) if spaced else len(one) for one in found))
    unit = ("word" if spaced else "character") + ("" if typical == 1 else "s")
    one_line = sum("\n" not in one for one in found) >= 0.95 * len(found)
    return f"The answer is {'one line' if one_line else 'a text'} of about {typical} {unit}."
