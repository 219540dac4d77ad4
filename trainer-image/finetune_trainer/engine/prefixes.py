"""Common prefixes of rows of token ids: the prefix tree shares them, and a corpus estimates how much it will. No torch."""

from collections.abc import Sequence
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


def of_all(rows: Sequence[Any]) -> int:
    """Tokens that all of several rows begin with; 0 for a single one."""
    ordered = sorted((np.asarray(row) for row in rows), key=key)
    return common(ordered[0], ordered[-1]) if len(ordered) > 1 else 0


def shared(one: Array, other: Array) -> int:
    """The same where it is long enough to be shared, else 0."""
    found = common(one, other)
    return found if found >= SHORTEST else 0
