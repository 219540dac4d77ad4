"""How many examples are there, if near copies count once?

Two examples are near copies when their prompts are the same except for numbers, and their answers add the same to them. Words
of a prompt are weighted by rarity, so that text shared by all prompts (a system prompt, an instruction) does not make two
alike, and numbers count as one word. Words that an answer repeats from its prompt do not make it a different answer; a new
number does.

The number is the diversity of order 0 of Leinster and Cobbold (Ecology 93, 2012): the sum over all examples of 1 divided by the
number of its near copies, itself included.
"""

from typing import Any

import numpy as np

from finetune_trainer.checks import sample

Array = np.ndarray[Any, np.dtype[Any]]

ALIKE = 0.6
"""Weighted overlap (Jaccard) of two prompts, and of two answers, from which they are near copies."""

BINS = 4096
"""Columns that words are hashed into: collisions within a prompt are rare."""

COMMON, RARE = 0.05, 1.0
"""Weight of a word that every prompt has, and of one that a third or fewer have; in between, the logarithm of its rarity. The
upper limit is for names in form letters: one word, however rare."""


def distinct(found: list[sample.Traits], total: int) -> float | None:
    """The number of `total` examples without near copies, estimated from a sample; None without a sample.

    The estimate is too high where groups of copies are so small that the sample seldom has two members of one.
    """
    count = len(found)
    if not count:
        return None
    copies = _alike([one.prompt_words for one in found], weighted=True) & _alike(
        [one.added for one in found], weighted=False
    )
    np.fill_diagonal(copies, True)
    # Each near copy in the sample stands for `times` in all examples.
    times = (total - 1) / (count - 1) if count > 1 else 0.0
    near = 1 + (copies.sum(axis=1) - 1) * times
    return float(total * np.mean(1 / near))


def _alike(parts: list[Array], *, weighted: bool) -> Array:
    """bool [n, n]: whether two sets of hashes have ALIKE in common (Jaccard, each hash with its weight)."""
    table = np.zeros((len(parts), BINS), dtype=np.float32)
    for row, part in enumerate(parts):
        table[row, part % BINS] = 1
    used = table.sum(axis=0)
    weights = np.ones(BINS, dtype=np.float32)
    if weighted:
        weights = (COMMON + np.minimum(RARE, np.log(len(parts) / np.maximum(used, 1)))).astype(np.float32)
    table = table[:, used > 0]
    both = (table * weights[used > 0]) @ table.T
    own = np.diag(both)
    of_one_kind: Array = both >= ALIKE * (own[:, None] + own[None, :] - both) - 1e-4
    return of_one_kind
