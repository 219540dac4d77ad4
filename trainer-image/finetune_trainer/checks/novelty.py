"""Do the answers carry facts? Numbers, names and rare words that neither their prompts nor other answers have.

What a model shall learn by style, format or skill comes back: labels, keys and phrases recur from answer to answer, and what
does not recur comes from the prompt. What is neither has to be known: a fact, which training puts into the weights badly
(arXiv 2312.05934, 2405.05904) and a retriever looks up. Works without a dictionary, on letters and digits alone; says nothing
of languages that have neither capitals nor spaces but for their numbers.
"""

import dataclasses
from typing import Any

import numpy as np

from finetune_trainer.checks import languages, sample

Array = np.ndarray[Any, np.dtype[Any]]

LEAST = 100
"""Examples below which nothing can be said to recur."""

RARE, TWICE = 0.01, 2
"""What at most this share of the different answers has, or TWICE of them, does not recur."""

DENSE = 0.12
"""Share of an answer's words that must be rare ones, where it has no number or name of its own."""

SHARED = 0.3
"""Share of the answers' words that prompts have too, from which both are of one language."""
RICH = 12
"""Different words of a prompt, on average, from which prompts show their language."""


@dataclasses.dataclass(frozen=True)
class Novelty:
    """What was found in the sample."""

    examples: int
    share: float
    """Of the examples whose answers carry a fact."""
    numbers: float
    names: float
    words: float
    """The same by kind."""
    places: tuple[str, ...] = ()
    """A few of them: `uri:line`."""


def measure(found: list[sample.Traits]) -> Novelty | None:
    """The share of answers that carry facts; None for too few examples."""
    if len(found) < LEAST:
        return None
    first = {one.answer: one for one in found}
    said, counts = np.unique(np.concatenate([one.said for one in first.values()]), return_counts=True)
    rare = said[counts <= max(TWICE, RARE * len(first))]
    asked, small = (np.unique(np.concatenate(parts)) for parts in ([o.asked for o in found], [o.small for o in found]))
    numbers = _count([one.numbers for one in found], rare)
    names = _count([one.names for one in found], np.setdiff1d(rare, small))
    words = _count([one.words for one in found], np.setdiff1d(rare, asked))
    lengths = np.array([max(1, len(one.said)) for one in found])
    kinds = np.stack([numbers > 0, (names > 0) & (not _german(found)), words >= np.maximum(1, DENSE * lengths)], axis=1)
    kinds[:, 2] &= _one_language(found, asked)
    kinds[_labels(found)] = False
    factual = kinds.any(axis=1)
    places = [found[row].source for row in np.flatnonzero(factual)[:3].tolist()]
    shares = kinds.mean(axis=0).tolist()
    return Novelty(len(found), float(factual.mean()), shares[0], shares[1], shares[2], tuple(places))


def _count(parts: list[Array], wanted: Array) -> Array:
    """int64 [examples]: how many of an example's hashes are wanted."""
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    counted: Array = np.bincount(owner[np.isin(np.concatenate(parts), wanted)], minlength=len(parts))
    return counted


def _labels(found: list[sample.Traits]) -> Array:
    """bool [examples]: whether the answer is a few words that are an answer elsewhere too."""
    _, inverse, counts = np.unique([one.answer for one in found], return_inverse=True, return_counts=True)
    short = np.array([one.short for one in found])
    labels: Array = short & (counts[inverse.reshape(-1)] > 1)
    return labels


def _german(found: list[sample.Traits]) -> bool:
    """German writes every noun like a name."""
    spoken = [one.language for one in found if one.language != languages.UNKNOWN]
    return sum(languages.NAMES[one] == "German" for one in spoken) * 2 > len(spoken)


def _one_language(found: list[sample.Traits], asked: Array) -> bool:
    """Whether prompts and answers are of one language, so far as they show it: the words of a translation are all new."""
    if float(np.mean([len(one.asked) for one in found])) < RICH:
        return True
    return bool(np.isin(np.concatenate([one.said for one in found]), asked).mean() >= SHARED)
