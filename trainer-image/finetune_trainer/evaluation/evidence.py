"""How certain a figure is on so many test examples, pure: intervals, bounds and paired tests.

Every metric is a function of sums over examples (`Column`), so that resampling examples, or swapping two contenders' answers to
an example, is one matrix product, whatever the metric.

Examples of one group (`Column.clusters`: of one customer, conversation, document) are not independent of each other, so a group
is what is resampled, swapped and counted:
- Bounds and intervals of a share: as if a group were one example that is right in the share of its examples, with Kish's
  effective number of groups (Kish 1965) where their sizes differ. That is exact where a group is right or wrong as a whole, and
  errs on the safe side elsewhere.
- Paired tests: the permutation test swaps the answers of whole groups, for shares, too; with a margin its gains are those above
  the margin, and the bootstrap over groups must agree.

Without groups:

- Interval of a share: Wilson (1927). Of anything else: percentiles of the bootstrap over examples (Efron 1979), widened by
  sqrt(n / (n - 1)) since few examples vary less than their population.
- Bound of a share: the exact binomial test (Clopper and Pearson 1934), which errs on the safe side. Of anything else: the
  bootstrap, and what few examples hide (`means`).
- Pairwise comparisons, won, tied or lost: the sign test of wins and losses (Dixon and Mood 1946); for bounds and intervals
  ties count half, with the spread of shares, which is never smaller than theirs.
- Better than another contender, shares: the exact test of McNemar (1947), and with a margin the score test of Tango (1998) with
  the larger of the two probabilities. Anything else: a permutation test that swaps the contenders' answers, with a margin the
  bootstrap, and what few examples hide.
- Not worse by a margin or more: a margin below zero. Shares: Tango's test alone. Means: the bootstrap, and changes of the signs
  of what each example gains above the margin. Anything else: the bootstrap, and at least 0.5 to the power of the examples.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from finetune_trainer.evaluation import means

Array = np.ndarray[Any, np.dtype[np.float64]]

RESAMPLES = 10_000
UNITS = 500
"""More examples than this are put into this many groups of equal size, which are resampled instead."""
SEED = 2026
ROUNDING = 1e-9
"""Of counts that are products."""


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
    """One metric of one contender.

    parts: float [n, k], what each example adds to the sums; an example for which the metric is not defined adds zeros.
    of: the metric of sums [..., k] -> [...]. defined: bool [n]. share: whether it is a mean of zeros and ones in parts[:, 0].
    bounded: whether its values are from 0 to 1.
    """

    parts: Array
    of: Callable[[Array], Array]
    defined: Any
    share: bool = False
    clusters: Any = None
    """int [n]: the number of each example's group; None: every example counts for itself."""
    bounded: bool = False

    @functools.cached_property
    def value(self) -> float:
        return float(self.of(self.parts.sum(0)))

    @property
    def examples(self) -> int:
        return int(self.defined.sum())

    @functools.cached_property
    def independent(self) -> float:
        """The number of examples; of groups their effective number."""
        return float(self.examples) if self.clusters is None else effective(self.clusters[self.defined])

    @property
    def units(self) -> int:
        """What is resampled and swapped: examples, or groups of them."""
        return self.examples if self.clusters is None else len(np.unique(self.clusters[self.defined]))


def mean(values: Any, *, share: bool = False) -> Column:
    """The mean of values [n]; NaN: not defined for the example."""
    values = np.asarray(values, dtype=np.float64)
    defined = ~np.isnan(values)
    return Column(np.stack([np.where(defined, values, 0.0), defined], 1), ratio, defined, share)


def clusters(groups: Sequence[str | None]) -> Any:
    """int [n]: a number for each group; None where no example has one."""
    if not any(one is not None for one in groups):
        return None
    # An example without a group counts for itself.
    names = [f"={one}" if one is not None else f"#{place}" for place, one in enumerate(groups)]
    return np.unique(names, return_inverse=True)[1].reshape(-1)


def effective(numbers: Any) -> float:
    """Kish's effective number of groups: their number where all have one size, fewer where a few are large."""
    if not len(numbers):
        return 0.0
    sizes = np.unique(numbers, return_counts=True)[1].astype(np.float64)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def ratio(sums: Array) -> Array:
    return sums[..., 0] / np.where(sums[..., 1] == 0, np.nan, sums[..., 1])


# --- One contender ---


def interval(column: Column, confidence: float = 0.95) -> tuple[float, float] | None:
    """The two-sided interval of a metric; None for fewer than two examples, or groups."""
    if column.units < 2:
        return None
    if column.share:
        return wilson(column.value, column.independent, confidence)
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(_resampled(column), [tail, 1 - tail])
    return float(low), float(high)


def p_value_at_least(column: Column, minimum: float) -> float:
    """The p-value of a value this high: its probability if the true one were just below `minimum`."""
    if column.share:
        from scipy import stats

        # Of groups whole hits are counted, and a part of one is none.
        number = math.floor(column.independent + ROUNDING)
        hits = math.floor(column.value * number + ROUNDING)
        return float(stats.binom.sf(hits - 1, number, min(minimum, 1.0)))
    return _p_value_beyond(column, minimum, 1.0)


def p_value_at_most(column: Column, maximum: float) -> float:
    """The p-value of a value this low: its probability if the true one were just above `maximum`."""
    if column.share:
        from scipy import stats

        number = math.floor(column.independent + ROUNDING)
        hits = math.ceil(column.value * number - ROUNDING)
        return float(stats.binom.cdf(hits, number, max(maximum, 0.0)))
    return _p_value_beyond(column, maximum, -1.0)


def room_below(column: Column, bound: float, sign: float) -> float | None:
    """How far one value can be on the wrong side of a bound: below it, or, with a sign of -1, above it. None: nobody knows."""
    return max(0.0, bound if sign > 0 else 1 - bound) if column.bounded else None


def _p_value_beyond(column: Column, bound: float, sign: float) -> float:
    if column.units < 2:
        return 1.0
    by_chance = float(np.mean(sign * (_resampled(column) - bound) < 0))
    hidden = means.unseen(sign * (column.value - bound), room_below(column, bound, sign), column.independent)
    return max(by_chance, hidden, means.skewed(sign * (_single(column) - bound)))


def wilson(share: float, number: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share (1927)."""
    from scipy import stats

    z = float(stats.norm.isf((1 - confidence) / 2))
    middle = (share + z * z / (2 * number)) / (1 + z * z / number)
    reach = z / (1 + z * z / number) * math.sqrt(share * (1 - share) / number + z * z / (4 * number * number))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def spread(column: Column, other: Column | None = None) -> float:
    """The standard error of a metric, or of its difference from another contender's: the spread of the bootstrap."""
    if other is None:
        return float(np.nanstd(_resampled(column)))
    both = column.defined & other.defined
    other = dataclasses.replace(other, clusters=column.clusters)
    return (
        float(np.nanstd(_gains(_only(column, both), _only(other, both), 1.0, 0.0)))
        if _only(column, both).units > 1
        else math.nan
    )


# --- Two contenders on the same examples ---


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much better the first contender is than the second, in the metric's unit."""

    gain: float
    low: float
    high: float
    p_value: float
    """The probability of such a gain, or a larger one, if the first were not better than the second by more than the margin; a
    margin below zero is a loss that is allowed."""


def compare(one: Column, other: Column, *, lower_is_better: bool = False, margin: float = 0.0) -> Difference:
    """`one` against `other`, paired by example."""
    sign = -1.0 if lower_is_better else 1.0
    both = one.defined & other.defined
    one = _only(one, both)
    other = dataclasses.replace(_only(other, both), clusters=one.clusters)
    gain = sign * (one.value - other.value)
    if one.units < 2:
        return Difference(gain, -math.inf, math.inf, 1.0)
    gains = _gains(one, other, sign, gain)
    low, high = np.nanquantile(gains, [0.025, 0.975])
    if one.share and other.share and one.clusters is None:
        wins = int(((one.parts[:, 0] - other.parts[:, 0]) * sign > 0).sum())
        losses = int(((one.parts[:, 0] - other.parts[:, 0]) * sign < 0).sum())
        p_value = float(paired(wins, losses, one.examples, margin))
    else:
        swapped = _swapped(one, other, sign, gain) if margin >= 0 else 0.0
        p_value = max(swapped, float(np.mean(gains <= margin)) if margin else 0.0)
        if (one.share and margin) or (one.of is ratio and margin < 0):
            p_value = max(p_value, _flipped(one, other, sign, margin))
        elif margin < 0:
            # No test of signs is surer of so few units; the bootstrap is, where each of them gains more than the margin.
            p_value = max(p_value, 0.5**one.units)
        if margin >= 0 and not (one.share and other.share):
            hidden = means.unseen(gain - margin, 1 + margin if one.bounded else None, one.independent)
            p_value = max(p_value, hidden, means.skewed(sign * (_single(one) - _single(other)) - margin))
    return Difference(gain, float(low), float(high), p_value)


def paired(wins: Any, losses: Any, examples: int, margin: float = 0.0) -> Any:
    """The p-value of so many wins and losses of a share, or of arrays of them: McNemar's test, with a margin Tango's too, and
    with one below zero that alone."""
    if margin < 0:
        return tango(wins, losses, examples, margin)
    p_value = mcnemar(wins, losses)
    return np.maximum(p_value, tango(wins, losses, examples, margin)) if margin > 0 else p_value


def mcnemar(wins: Any, losses: Any) -> Any:
    """The exact one-sided probability of at least so many wins among the examples on which the contenders differ."""
    from scipy import stats

    return stats.binom.sf(np.asarray(wins) - 1, np.asarray(wins) + losses, 0.5)


def tango(wins: Any, losses: Any, examples: int, margin: float) -> Any:
    """The one-sided probability of Tango's score test that one paired share is larger than the other by at most `margin`.

    Statistics in Medicine 17 (1998), 891-908: the variance is that of the most likely shares under the margin. With the
    correction for continuity of half an example, since the counts are whole.
    """
    from scipy import stats

    a = 2 * examples
    b = -wins - losses + (2 * examples - wins + losses) * margin
    c = -losses * margin * (1 - margin)
    least = (np.sqrt(np.maximum(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = examples * (2 * least + margin * (1 - margin))
    known = variance > 0
    score = (wins - losses - examples * margin - 0.5) / np.sqrt(np.where(known, variance, 1.0))
    return np.where(known, stats.norm.sf(score), 1.0)


def detectable(one: Column, other: Column) -> float:
    """The smallest difference of two paired shares that the exact test of McNemar at 5 % shows in four of five evaluations like
    this one: by its normal approximation with the larger of both variances (Connor 1987), and at least as many examples as the
    test needs when all differences point in one direction. One, where the examples are too few for any."""
    both = one.defined & other.defined
    examples, differing = int(both.sum()), int((one.parts[both, 0] != other.parts[both, 0]).sum())
    if not examples:
        return 1.0
    least = next(count for count in range(1, 99) if mcnemar(count, 0) <= 0.05)
    return min(1.0, max(least / examples, (1.645 + 0.842) * math.sqrt(differing) / examples))


# --- Two contenders, question by question ---


@dataclasses.dataclass(frozen=True)
class WinLoss:
    """How often one contender was preferred to another, rated equal, and not preferred."""

    wins: int
    ties: int
    losses: int
    independent: float = 1.0
    """The share of the comparisons that counts as independent: below 1 where several are of one group."""

    @property
    def examples(self) -> int:
        return self.wins + self.ties + self.losses

    @property
    def rate(self) -> float:
        """Wins and half of the ties, divided by all; one half where there are none."""
        return (self.wins + self.ties / 2) / self.examples if self.examples else 0.5

    @property
    def p_value_better(self) -> float:
        """The p-value of so many wins: their probability if a win were no likelier than a loss."""
        return float(mcnemar(*self._counted(self.wins, self.losses)))

    @property
    def p_value_worse(self) -> float:
        """The p-value of so many losses: their probability if a loss were no likelier than a win."""
        return float(mcnemar(*self._counted(self.losses, self.wins)))

    def _counted(self, fewer: int, more: int) -> tuple[int, int]:
        """Counts of independent comparisons, rounded to the safe side."""
        return math.floor(fewer * self.independent + ROUNDING), math.ceil(more * self.independent - ROUNDING)

    def p_value_at_least(self, minimum: float) -> float:
        """The p-value of a rate this high: its probability if the true one were just below `minimum`. An odd tie counts as
        lost."""
        from scipy import stats

        if not self.examples:
            return 1.0
        number = math.floor(self.examples * self.independent + ROUNDING)
        hits = math.floor((self.wins + self.ties // 2) / self.examples * number + ROUNDING)
        return float(stats.binom.sf(hits - 1, number, min(minimum, 1.0)))

    def interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """Wilson's interval of the rate; None for fewer than two independent comparisons."""
        number = self.examples * self.independent
        return wilson(self.rate, number, confidence) if number >= 2 else None


# --- Resampling ---


def _only(column: Column, rows: Any) -> Column:
    return dataclasses.replace(column, parts=np.where(rows[:, None], column.parts, 0.0), defined=rows)


def _units(column: Column) -> Array:
    """float [units, k]: the defined examples, or groups of them."""
    parts: Array = column.parts[column.defined]
    if column.clusters is not None:
        numbers = np.unique(column.clusters[column.defined], return_inverse=True)[1].reshape(-1)
        summed = np.zeros((column.units, parts.shape[1]))
        np.add.at(summed, numbers, parts)
        parts = summed
    if len(parts) <= UNITS:
        return parts
    order = np.random.default_rng(SEED).permutation(len(parts))
    return np.stack([parts[group].sum(0) for group in np.array_split(order, UNITS)])


def _single(column: Column) -> Array:
    """float [units]: what the metric is of each example, or group of them; of a metric that is no mean, the pseudo-values of
    the jackknife (Tukey 1958)."""
    units = _units(column)
    found: Array = len(units) * column.value - (len(units) - 1) * column.of(units.sum(0) - units)
    return found


@functools.lru_cache(maxsize=2)
def _draws(units: int) -> Array:
    """float [RESAMPLES, units]: how often each is drawn."""
    even = np.full(units, 1 / units)
    found: Array = np.random.default_rng(SEED).multinomial(units, even, size=RESAMPLES).astype(np.float64)
    return found


def _resampled(column: Column) -> Array:
    """float [RESAMPLES]: the metric of each bootstrap sample."""
    units = _units(column)
    found = column.of(_draws(len(units)) @ units)
    wider: Array = column.value + (found - column.value) * math.sqrt(len(units) / (len(units) - 1))
    return wider


def _gains(one: Column, other: Column, sign: float, gain: float) -> Array:
    first, second = _units(one), _units(other)
    draws = _draws(len(first))
    found = sign * (one.of(draws @ first) - other.of(draws @ second))
    wider: Array = gain + (found - gain) * math.sqrt(len(first) / (len(first) - 1))
    return wider


def _flipped(one: Column, other: Column, sign: float, margin: float) -> float:
    """The same for gains above the margin, of a mean: the share of changes of their signs that give at least their sum."""
    first, second = _units(one), _units(other)
    above = sign * (first[:, 0] - second[:, 0]) - margin * first[:, 1]
    signs = 2.0 * np.random.default_rng(SEED).integers(0, 2, size=(RESAMPLES, len(above))) - 1
    return float((1 + np.sum(signs @ above >= above.sum() - 1e-12)) / (RESAMPLES + 1))


def _swapped(one: Column, other: Column, sign: float, gain: float) -> float:
    """The share of swaps of answers between the contenders that give at least the gain."""
    first, second = _units(one), _units(other)
    swaps = np.random.default_rng(SEED).integers(0, 2, size=(RESAMPLES, len(first))).astype(np.float64)
    moved = swaps @ (second - first)
    found = sign * (one.of(first.sum(0) + moved) - other.of(second.sum(0) - moved))
    # A gain counts as reached within the rounding error of the sums.
    return float((1 + np.sum(found >= gain - 1e-12)) / (RESAMPLES + 1))
