"""Common prefixes of rows of token ids: the prefix tree shares them, and a corpus estimates how much it will. No torch."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

SHORTEST = 8
"""The shortest shared prefix; sharing must save at least eight times as many tokens."""


def key(ids: Array) -> bytes:
    """A sort key that orders rows by their tokens."""
    return ids.astype(">u4").tobytes()


def common(one: Array, other: Array) -> int:
    """Tokens that two rows begin with."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length


def shared(one: Array, other: Array) -> int:
    """The same where it is long enough to be shared, else 0."""
    found = common(one, other)
    return found if found >= SHORTEST else 0
