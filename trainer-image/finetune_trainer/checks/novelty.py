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

LEAST = 50
"""Examples below which nothing can be said to recur."""

RARE, TWICE = 0.01, 2
"""What at most this share of the different answers has, or TWICE of them, does not recur."""

DENSE = 0.12
"""Share of an answer's words that must be rare ones, where it has no number or name of its own."""

SHARED = 0.3
"""Share of what answers say in words that prompts have too, from which both are of one language; a translator's are not."""


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
    counts = _counts([one.said for one in first.values()])
    rare = counts.below(max(TWICE, RARE * len(first)))
    asked = np.unique(np.concatenate([one.asked for one in found]))
    small = np.unique(np.concatenate([one.small for one in found]))
    said = np.concatenate([one.said for one in found])
    spoken = [one.language for one in found if one.language != languages.UNKNOWN]
    german = sum(languages.NAMES[one] == "German" for one in spoken) * 2 > len(spoken)
    same = bool(np.isin(said, asked).mean() >= SHARED)
    repeated = _counts([np.array([one.answer], dtype=np.uint32) for one in found])
    labels = set(repeated.values[repeated.counts > 1].tolist())

    kinds = np.zeros((len(found), 3), dtype=bool)
    for row, one in enumerate(found):
        if one.short and one.answer in labels:
            continue
        kinds[row, 0] = np.isin(one.numbers, rare).any()
        # German writes every noun like a name.
        kinds[row, 1] = not german and (np.isin(one.names, rare) & ~np.isin(one.names, small)).any()
        own = np.isin(one.words, rare) & ~np.isin(one.words, asked)
        kinds[row, 2] = same and own.sum() >= max(1.0, DENSE * len(one.said))
    factual = kinds.any(axis=1)
    places = [one.source for one, is_one in zip(found, factual, strict=True) if is_one]
    shares = [float(share) for share in kinds.mean(axis=0)]
    return Novelty(len(found), float(factual.mean()), *shares, places=tuple(places[:3]))


@dataclasses.dataclass(frozen=True)
class _Counts:
    values: Array
    counts: Array

    def below(self, most: float) -> Array:
        rare: Array = self.values[self.counts <= most]
        return rare


def _counts(parts: list[Array]) -> _Counts:
    return _Counts(*np.unique(np.concatenate(parts), return_counts=True))
