"""The split into train, validation and test, by groups of examples that share a prompt, so that none leaks.

Pure: works on hashes that preflight collects while it reads the files, in columns, so that a million examples fit into memory.
A group's split depends only on the seed and the prompt, not on the order of rows or files.
"""

import array
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The prompt hashes of all examples, as columns."""

    last: Array
    """uint64 [rows]: of the last answer."""
    flat: Array
    """uint64: of every answer, example after example; an example's last one is its `last`."""
    ends: Array
    """int64 [rows]: where an example's hashes end in `flat`."""

    @property
    def owner(self) -> Array:
        """int64: the row of each hash of `flat`."""
        return np.repeat(np.arange(len(self.ends)), np.diff(self.ends, prepend=0))

    def take(self, rows: Array) -> "Prompts":
        """The hashes of some rows."""
        counts = np.diff(self.ends, prepend=0)[rows]
        ends = np.cumsum(counts)
        # For each hash its place in `flat`: where its row's hashes begin there, and how far it is into them.
        index = np.arange(counts.sum()) + np.repeat(self.ends[rows] - ends, counts)
        return Prompts(self.last[rows], self.flat[index], ends)

    def any_in(self, rows: Array, wanted: Array) -> Array:
        """bool [len(rows)]: whether any of a row's hashes is among these."""
        taken = self.take(rows)
        found: Array = np.bincount(taken.owner[np.isin(taken.flat, wanted)], minlength=len(rows)) > 0
        return found


class Builder:
    """Collects the hashes of one example after another."""

    def __init__(self) -> None:
        self._last, self._flat, self._ends = array.array("Q"), array.array("Q"), array.array("q")

    def add(self, keys: Sequence[int]) -> None:
        """keys: the prompts of every answer, the last one's at the end."""
        self._last.append(keys[-1])
        self._flat.extend(keys)
        self._ends.append(len(self._flat))

    def finish(self) -> Prompts:
        return Prompts(
            np.frombuffer(self._last, dtype=np.uint64),
            np.frombuffer(self._flat, dtype=np.uint64),
            np.frombuffer(self._ends, dtype=np.int64),
        )


def assign(
    prompts: Prompts, validation: float | None, test: float | None, seed: int, together: Array | None = None
) -> Array:
    """int8 [rows]: 0 train, 1 validation, 2 test. together: uint64 [rows], equal for rows that belong together, whatever their
    prompts.

    Fractions are of all examples, and None where a split has its own files. Whole groups move, in the order of their
    seeded hash, until the fraction is reached; a group never moves when fewer than three would be left to train on.
    """
    connected = group(prompts) if together is None else joined(group(prompts), together)
    groups, inverse, sizes = np.unique(connected, return_inverse=True, return_counts=True)
    order = np.lexsort((groups, _shuffled(groups, seed)))
    places = np.zeros(len(groups), dtype=np.int8)
    position, count = 0, len(prompts.last)
    for split, fraction in ((2, test), (1, validation)):
        wanted = max(1, round(fraction * count)) if fraction else 0
        reached = np.cumsum(sizes[order[position:]])
        needed = int(np.searchsorted(reached, wanted)) + 1 if wanted else 0
        taken = max(0, min(needed, len(order) - position - 3))
        places[order[position : position + taken]] = split
        position += taken
    return places[inverse.reshape(-1)]


def group(prompts: Prompts) -> Array:
    """uint64 [rows]: equal where the prompt of one's last answer is among the other's prompts, directly or by a chain."""
    wanted, indices = np.unique(prompts.last, return_inverse=True)
    known = np.isin(prompts.flat, wanted)
    one = indices.reshape(-1)[prompts.owner[known]]
    other = np.searchsorted(wanted, prompts.flat[known])
    linked = one != other
    one, other = one[linked], other[linked]
    # The smallest hash of a group leads, so that the order of the rows does not matter.
    lead = np.arange(len(wanted))
    while True:
        before = lead.copy()
        low = np.minimum(lead[one], lead[other])
        np.minimum.at(lead, one, low)
        np.minimum.at(lead, other, low)
        lead = lead[lead]
        if np.array_equal(lead, before):
            return wanted[lead[indices.reshape(-1)]]


def joined(one: Array, other: Array) -> Array:
    """uint64 [rows]: equal where either of two groupings has rows in common, directly or by a chain."""
    found = one
    indices = [np.unique(keys, return_inverse=True)[1].reshape(-1) for keys in (one, other)]
    while True:
        before = found
        for index in indices:
            # The smallest hash leads, so that the order of the rows does not matter.
            lead = np.full(index.max(initial=-1) + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
            np.minimum.at(lead, index, found)
            found = lead[index]
        if np.array_equal(found, before):
            return found


def _shuffled(numbers: Array, seed: int) -> Array:
    """uint64: the numbers, mixed with the seed."""
    return mixed(numbers + np.uint64((seed * 0x9E3779B97F4A7C15) % 2**64))


def mixed(numbers: Array) -> Array:
    """uint64: a different number for each number, every bit depending on all bits (splitmix64)."""
    found = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        found = (found ^ (found >> np.uint64(shift))) * np.uint64(factor)
    return found ^ (found >> np.uint64(31))
