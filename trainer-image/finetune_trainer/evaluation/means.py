"""What few examples hide of a mean, pure: its skew, and failures that none of them shows.

The bootstrap and tests that swap answers are sure of a mean of few examples where these happen to be alike: two that are both
above a bound give a p-value of 0, and so do thirty of a model that fails badly once in twenty answers where none of the thirty
fails. Both p-values here are lower ends for what such tests say.
"""

import math
from typing import Any

import numpy as np


def skewed(values: Any) -> float:
    """The one-sided p-value of the mean of values [n] being above 0: Student's test of Hall's transformation, which removes
    the skew that the values show (Journal of the Royal Statistical Society B 54 (1992), 221-228). 1.0 for fewer than two."""
    from scipy import stats

    values = np.asarray(values, dtype=np.float64)
    number = len(values)
    if number < 2 or not np.isfinite(values).all() or values.mean() <= 0:
        return 1.0
    spread = values.std()
    if spread <= 1e-9 * values.mean():
        return 0.0
    scaled = values.mean() / spread
    skew = np.mean((values - values.mean()) ** 3) / spread**3
    plain = scaled + skew * scaled**2 / 3 + skew**2 * scaled**3 / 27 + skew / (6 * number)
    return float(stats.t.sf(np.sqrt(number - 1) * plain, number - 1))


def unseen(gain: float, room: float | None, number: float) -> float:
    """The probability that `number` independent examples show none of the failures that would undo a gain.

    room: how far below the bound, or below the other contender, one answer can fall; then a share of gain / (gain + room) of
    such answers undoes it. None: nobody knows how far, and half of the examples may be below. For a share of right answers
    of which all are right it is the exact binomial test.
    """
    if gain <= 0:
        return 1.0
    return math.pow(0.5 if room is None else room / (room + gain), number)


def least_gain(room: float | None, number: float, level: float) -> float:
    """The smallest gain of which `unseen` is at most `level`; infinite where no gain is enough."""
    if room is None:
        return 0.0 if math.pow(0.5, number) <= level else float("inf")
    return room * (math.pow(level, -1 / number) - 1)
