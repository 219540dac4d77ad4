"""Do the answers contain facts? Numbers, names and rare words that neither their prompts nor other answers have, and answers that
differ from name to name to one and the same question.

Style, format and skill repeat: labels, keys and phrases recur from answer to answer, and the rest of an answer comes from its
prompt. What does neither is a fact that the model must know: training is a poor way to put it into the weights
(arXiv 2312.05934, 2405.05904), retrieval a good way to look it up. Works without a dictionary, on letters and digits; in
languages without capitals and spaces it sees numbers only.
"""

import collections
import dataclasses
from typing import Any

import numpy as np

from finetune_trainer.checks import languages, sample

Array = np.ndarray[Any, np.dtype[Any]]

LEAST = 100
"""Examples below which nothing can be called recurring."""

RARE, TWICE = 0.01, 2
"""A word is rare if at most this share of the distinct answers has it, or at most TWICE of them."""

DENSE = 0.12
"""Share of an answer's words that must be rare, where it has no new number or name."""

MANY, DIFFERENT, MOSTLY = 10, 4, 0.6
"""A question of which facts are asked: of so many names, with so many different answers, of which none has a larger share."""

SHARED = 0.3
"""Share of the answers' words that prompts also have, from which both are in one language."""
RICH = 12
"""Distinct words of a prompt, on average, from which prompts show their language."""


@dataclasses.dataclass(frozen=True)
class Novelty:
    """The result for the sample."""

    examples: int
    share: float
    """Of the examples whose answers contain a fact."""
    numbers: float
    names: float
    words: float
    """The same by kind."""
    entities: float = 0.0
    """Of those that answer a question which is asked of many names, each differently."""
    places: tuple[str, ...] = ()
    """A few of them: `uri:line`."""


def measure(found: list[sample.Traits]) -> Novelty | None:
    """The share of answers that contain facts; None for too few examples."""
    if len(found) < LEAST:
        return None
    first = {one.answer: one for one in found}
    answer_words, counts = np.unique(np.concatenate([one.answer_words for one in first.values()]), return_counts=True)
    rare = answer_words[counts <= max(TWICE, RARE * len(first))]
    prompt_words, lower_case = (
        np.unique(np.concatenate(parts)) for parts in ([o.prompt_words for o in found], [o.lower_case for o in found])
    )
    numbers = _count([one.numbers for one in found], rare)
    names = _count([one.names for one in found], np.setdiff1d(rare, lower_case))
    words = _count([one.words for one in found], np.setdiff1d(rare, prompt_words))
    lengths = np.array([max(1, len(one.answer_words)) for one in found])
    kinds = np.stack([numbers > 0, (names > 0) & (not _german(found)), words >= np.maximum(1, DENSE * lengths)], axis=1)
    kinds[:, 2] &= _one_language(found, prompt_words)
    kinds[_labels(found)] = False
    entities = _about_entities(found)
    factual = kinds.any(axis=1) | entities
    places = [found[row].source for row in np.flatnonzero(factual)[:3].tolist()]
    shares = kinds.mean(axis=0).tolist()
    return Novelty(
        len(found), float(factual.mean()), shares[0], shares[1], shares[2], float(entities.mean()), tuple(places)
    )


def _count(parts: list[Array], wanted: Array) -> Array:
    """int64 [examples]: how many of an example's hashes are among `wanted`."""
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    counted: Array = np.bincount(owner[np.isin(np.concatenate(parts), wanted)], minlength=len(parts))
    return counted


def _about_entities(found: list[sample.Traits]) -> Array:
    """bool [examples]: whether the same question is asked of MANY names or more, and the answers add something else for each.

    When was Anna Keller born, where does Boris Novak live: the answers are facts, also where names come back and towns repeat.
    A task on texts has other words in each prompt, and a label's question has few different answers.
    """
    groups: dict[int, list[int]] = {}
    for row, one in enumerate(found):
        if one.question:
            groups.setdefault(one.question, []).append(row)
    facts = np.zeros(len(found), dtype=bool)
    for rows in groups.values():
        added = collections.Counter(found[row].added.tobytes() for row in rows if len(found[row].added))
        names = len({found[row].entity for row in rows})
        if names >= MANY and len(added) >= DIFFERENT and max(added.values()) <= MOSTLY * len(rows):
            facts[rows] = [len(found[row].added) > 0 for row in rows]
    return facts


def _labels(found: list[sample.Traits]) -> Array:
    """bool [examples]: whether the answer is a few words, and another example's answer too."""
    _, inverse, counts = np.unique([one.answer for one in found], return_inverse=True, return_counts=True)
    short = np.array([one.short for one in found])
    labels: Array = short & (counts[inverse.reshape(-1)] > 1)
    return labels


def _german(found: list[sample.Traits]) -> bool:
    """German capitalises every noun."""
    known = [one.language for one in found if one.language != languages.UNKNOWN]
    return sum(languages.NAMES[one] == "German" for one in known) * 2 > len(known)


def _one_language(found: list[sample.Traits], prompt_words: Array) -> bool:
    """Whether prompts and answers are in one language, as far as visible: in a translation all words are new."""
    if float(np.mean([len(one.prompt_words) for one in found])) < RICH:
        return True
    return bool(np.isin(np.concatenate([one.answer_words for one in found]), prompt_words).mean() >= SHARED)
