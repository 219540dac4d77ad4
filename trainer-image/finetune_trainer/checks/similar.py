"""Nearly equal rows, among a million, in bounded memory: MinHash sketches of 64 bytes a row, compared band by band.

A text is the set of its windows of 8 bytes. One hash puts each window into one of 64 bins, and the minimum of each bin
counts (one-permutation hashing, Li, Owen and Zhang 2012; empty bins are filled from their right neighbour, Shrivastava and
Li 2014): the share of equal bins estimates the Jaccard similarity of two texts. Rows that agree in one of 16 bands of four
bins are compared as a whole.

Windows that a tenth of the first rows share (a system prompt, the text of a form letter) are left out; a text with too few
other windows has no sketch, and is similar only to an equal text.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

BINS, BAND = 64, 4
WINDOW = 8
SIMILAR = 0.7
"""Share of equal bins from which two texts are nearly the same: a word or two of twenty differ."""

COMMON, COPIES, SAMPLE, MINIMUM_TEXTS = 0.1, 8, 2000, 20
"""Windows of more than this share of the first SAMPLE texts, and of more than COPIES, are common. Fewer texts than
MINIMUM_TEXTS do not show what is common, and are not compared at all."""

BITS = 22
"""Bits of a window's hash for the table of common windows: a few thousand of them hide one other window in a thousand."""

MINIMUM_WINDOWS = 32
"""Windows that are not common, at least, for a sketch."""

BATCH = 2**21
"""Bytes that are sketched at once."""

NEIGHBOURS = 4
"""Rows of a band's bucket that each row is compared with."""

_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclasses.dataclass(frozen=True)
class Sketches:
    """uint8 [rows, BINS] and bool [rows]: whether a row has a sketch."""

    bins: Array
    valid: Array


class Sketcher:
    """Takes texts one by one; stores 65 bytes of each, and the texts themselves only until there are enough to sketch."""

    def __init__(self) -> None:
        self._waiting: list[bytes] = []
        self._size = 0
        self._common: Array | None = None
        self._bins, self._valid = bytearray(), bytearray()

    def add(self, text: str) -> None:
        data = " ".join(text.lower().split()).encode("utf-8", "replace")
        self._waiting.append(data)
        self._size += len(data)
        if self._size >= BATCH and (
            self._common is not None or len(self._waiting) >= SAMPLE or self._size > 16 * BATCH
        ):
            self._flush()

    def finish(self) -> Sketches:
        self._flush()
        bins = np.frombuffer(self._bins, dtype=np.uint8).reshape(-1, BINS)
        return Sketches(bins, np.frombuffer(self._valid, dtype=bool))

    def _flush(self) -> None:
        waiting, self._waiting, self._size = self._waiting, [], 0
        if self._common is None:
            self._common = common(waiting[:SAMPLE])
        part: list[bytes] = []
        size = 0
        for data in waiting:
            part.append(data)
            size += len(data)
            if size >= BATCH:
                self._sketch(part)
                part, size = [], 0
        self._sketch(part)

    def _sketch(self, part: list[bytes]) -> None:
        if part and self._common is not None:
            bins, valid = sketch(part, self._common)
            self._bins += bins.tobytes()
            self._valid += valid.tobytes()


def windows(texts: Sequence[bytes]) -> tuple[Array, Array]:
    """The hashes (uint32) of all windows of all texts, and the text that each belongs to (int64)."""
    padded = [text.ljust(WINDOW, b"\0") for text in texts]
    lengths = np.array([len(text) for text in padded])
    data = b"".join(padded)
    whole = np.ndarray((len(data) - WINDOW + 1,), dtype="<u8", buffer=data, strides=(1,))
    owner = np.repeat(np.arange(len(padded)), lengths)[: len(whole)]
    ends = np.cumsum(lengths)
    inside = np.arange(len(whole)) + WINDOW <= ends[owner]  # not across two texts
    hashes = whole[inside] * _ODD
    hashes ^= hashes >> np.uint64(29)
    return ((hashes * _ODD) >> np.uint64(32)).astype(np.uint32), owner[inside]


def common(texts: Sequence[bytes]) -> Array:
    """bool [2^BITS]: whether windows whose hash begins with these bits are in more than COMMON of the texts."""
    counts = np.zeros(2**BITS, dtype=np.uint16)
    for text in texts:
        hashes, _ = windows([text[:65_536]])
        counts[np.unique(hashes >> np.uint32(32 - BITS))] += 1
    limit = max(COMMON * len(texts), COPIES)
    frequent: Array = np.greater(counts, limit)
    return frequent


def sketch(texts: Sequence[bytes], shared: Array) -> tuple[Array, Array]:
    """The bins [texts, BINS] and whether a text has enough windows that are not common."""
    hashes, owner = windows(texts)
    rare = ~shared[hashes >> np.uint32(32 - BITS)]
    hashes, owner = hashes[rare], owner[rare]
    empty = np.uint32(2**32 - 1)
    flat = np.full(len(texts) * BINS, empty, dtype=np.uint32)
    np.minimum.at(flat, owner * BINS + (hashes & np.uint32(BINS - 1)), hashes >> np.uint32(6))
    smallest: Array = flat.reshape(len(texts), BINS)
    valid = np.bincount(owner, minlength=len(texts)) >= MINIMUM_WINDOWS
    smallest[~valid] = 0
    while (gaps := smallest == empty).any():
        neighbour = np.roll(smallest, -1, axis=1)
        smallest = np.where(gaps & (neighbour != empty), neighbour ^ np.uint32(0x5BD1E995), smallest)
    mixed = smallest * np.uint32(0x9E3779B1)
    return (mixed >> np.uint32(24)).astype(np.uint8), valid


def pairs(sketches: Sketches, chosen: Array) -> Array:
    """int64 [n, 2]: pairs of the chosen rows that are nearly the same, the smaller row first, each once."""
    rows = chosen[sketches.valid[chosen]]
    if len(sketches.valid) < MINIMUM_TEXTS or not len(rows):
        return np.zeros((0, 2), dtype=np.int64)
    bins = sketches.bins[rows] if len(rows) < len(sketches.bins) else sketches.bins
    bands = bins.view(np.uint32)
    found = []
    for band in range(BINS // BAND):
        # Equal keys side by side, and among them those that agree in the next band too.
        order = np.lexsort((bands[:, (band + 1) % (BINS // BAND)], bands[:, band]))
        keys = bands[order, band]
        for step in range(1, NEIGHBOURS + 1):
            here = np.flatnonzero(keys[step:] == keys[:-step])
            one, other = order[here], order[here + step]
            near = _agreement(bins, one, other) >= SIMILAR
            found.append(np.stack([np.minimum(one[near], other[near]), np.maximum(one[near], other[near])], axis=1))
    every: Array = rows[np.unique(np.concatenate(found), axis=0)]
    return every


def _agreement(bins: Array, one: Array, other: Array) -> Array:
    """float [n]: the share of equal bins, a part at a time."""
    shares = np.empty(len(one))
    for begin in range(0, len(one), 65_536):
        part = slice(begin, begin + 65_536)
        shares[part] = np.mean(bins[one[part]] == bins[other[part]], axis=1)
    return shares


def first_of_group(count: int, linked: Array) -> Array:
    """int64 [count]: the smallest row of each row's group, where the pairs link rows into groups."""
    first = np.arange(count)
    while True:
        low = np.minimum(first[linked[:, 0]], first[linked[:, 1]])
        before = first.copy()
        np.minimum.at(first, linked[:, 0], low)
        np.minimum.at(first, linked[:, 1], low)
        first = first[first]
        if np.array_equal(first, before):
            return first
