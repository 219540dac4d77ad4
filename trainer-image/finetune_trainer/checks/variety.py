"""How many examples are there, if near copies of one another count once?

Two examples are near copies when their prompts say the same but for numbers, and their answers add the same to them. Words of a
prompt weigh by how rare they are, so that what all prompts share (a system prompt, an instruction) makes no two alike, and
numbers count as one word. What an answer repeats of its own prompt does not make it another answer; a number of its own does.

The number is the diversity of order 0 of Leinster and Cobbold (Ecology 93, 2012): the sum over all examples of one through the
number of its near copies, itself included.
"""

from typing import Any

import numpy as np

from finetune_trainer.checks import sample

Array = np.ndarray[Any, np.dtype[Any]]

ALIKE = 0.6
"""Share of what two prompts, and what two answers, say together from which they are near copies."""

BINS = 4096
"""Columns that words are hashed into: two words of one prompt seldom meet."""

COMMON, RARE = 0.05, 1.0
"""Weight of a word that every prompt has, and of one that a third or fewer have; between, the logarithm of its rareness counts. A
name in a form letter is but one word, however rare it is."""


def distinct(found: list[sample.Traits], total: int) -> float | None:
    """How many of `total` examples are no near copies, by a sample of them; None without a sample.

    A sample shows few large groups; of groups whose members seldom meet in it the number comes out too high.
    """
    count = len(found)
    if not count:
        return None
    copies = _alike([one.asked for one in found], weighted=True) & _alike([one.added for one in found], weighted=False)
    np.fill_diagonal(copies, True)
    # Each near copy in the sample stands for so many in the whole.
    times = (total - 1) / (count - 1) if count > 1 else 0.0
    near = 1 + (copies.sum(axis=1) - 1) * times
    return float(total * np.mean(1 / near))


def _alike(parts: list[Array], *, weighted: bool) -> Array:
    """bool [n, n]: whether two sets of hashes have ALIKE in common (Jaccard, each hash with its weight)."""
    table = np.zeros((len(parts), BINS), dtype=np.float32)
    for row, part in enumerate(parts):
        table[row, part % BINS] = 1
    there = table.sum(axis=0)
    weights = np.ones(BINS, dtype=np.float32)
    if weighted:
        weights = (COMMON + np.minimum(RARE, np.log(len(parts) / np.maximum(there, 1)))).astype(np.float32)
    table = table[:, there > 0]
    both = (table * weights[there > 0]) @ table.T
    own = np.diag(both)
    of_one_kind: Array = both >= ALIKE * (own[:, None] + own[None, :] - both) - 1e-4
    return of_one_kind
