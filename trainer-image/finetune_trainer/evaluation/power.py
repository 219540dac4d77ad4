"""How many examples a gate needs, pure: its power, by the very tests that decide it.

A gate on a share has a `Power` for so many test examples: the smallest true value, or true gain, with which a model passes in
POWER of all cases, and the number of examples with which a plausible model does. Known before any model has answered, so
preflight says it; the evaluation says it again for the examples that counted.

- `minimum` and `maximum`: the exact binomial test rejects from a critical count on; its power is a binomial tail (Clopper and
  Pearson 1934; Chernick and Liu, The American Statistician 56 (2002), 149-155, on why it is a saw and not a curve in n).
- `over`: the probability of each pair of wins and losses, summed over those that pass McNemar's exact test and, with a margin,
  Tango's (Miettinen, Biometrics 24 (1968), 339-352: the power depends on how often the two models differ). Before training nobody
  knows that; LOSSES is an assumption.
- What is no share has a spread that only answers show: the normal approximation with the spread of the bootstrap, and
  what few examples hide (`means`), in the evaluation alone.
"""

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from finetune_api import evaluation, job
from finetune_trainer.evaluation import evidence, gates, means

POWER = 0.8
"""The probability of passing that counts as enough: the usual one (Cohen 1988)."""

GAIN = 0.1
"""Over a contender, a plausible model is better by this much more than the gate requires."""

LOSSES = 0.05
"""Share of the examples that the tuned model answers wrongly and the other contender rightly; where the tuned model is worse, the
other way round."""

MOST = 10_000
"""Examples up to which numbers are computed; more are enough for any difference that matters."""


@dataclasses.dataclass(frozen=True)
class Power:
    """What so many examples can show of one bound of a gate."""

    examples: int
    least: float | None
    """The smallest true value, or gain, with which a model passes in POWER of all cases; None: not even the best one does."""
    plausible: float | None = None
    """A true value, or gain, that a good model may have; None: nobody knows the metric's scale."""
    needed: int | None = None
    """Examples with which that model passes in POWER of all cases; None: more than MOST, or not known."""
    unit: str = "examples"
    """What counts: examples, or groups of them."""
    relative: bool = False
    """Whether values are gains over another contender; one below zero is a loss that is allowed."""

    @property
    def enough(self) -> bool:
        return self.plausible is None or (self.needed is not None and self.needed <= self.examples)

    @property
    def text(self) -> str:
        """For example: with 30 examples a model passes in 80 of 100 cases if its true value is 0.9926; at 0.95 it takes 184."""
        value = "it is truly better by" if self.relative else "its true value is"
        if self.relative and self.least is not None and self.least < 0:
            value = "it is truly worse by no more than"
        if self.least is None:
            text = f"with {self.examples} {self.unit} no model passes in {100 * POWER:.0f} of 100 cases"
        else:
            cases = f"{100 * POWER:.0f} of 100 cases"
            shown = abs(self.least) if self.relative else self.least
            text = f"with {self.examples} {self.unit} a model passes in {cases} if {value} {shown:.3g}"
        if self.plausible is None:
            return text
        takes = f"about {self.needed:,}" if self.needed is not None else f"more than {MOST:,}"
        if self.relative and not self.plausible:
            return f"{text}; with no loss at all that takes {takes} {self.unit}"
        return (
            f"{text}; with {'a gain of ' if self.relative else ''}{self.plausible:.3g} that takes {takes} {self.unit}"
        )


def before(gate: job.Gate, examples: int, unit: str = "examples") -> list[Power]:
    """For each bound of a gate on a share: what so many examples, or groups, can show. Empty where the value alone decides."""
    return [dataclasses.replace(one, unit=unit) for one in _before(gate, examples)]


def _before(gate: job.Gate, examples: int) -> list[Power]:
    if gate.confidence <= gates.POINT or examples < 1:
        return []
    n = min(examples, MOST)
    if gate.metric in job.PAIRWISE:
        # Wins against losses: ties leave fewer examples than this.
        return [] if gate.over is job.Contender.SERVING else [_bound(n, gate.minimum or 0.5, gate.confidence)]
    found = _bounds(gate, n)
    if (
        gate.over is not None
        and (gate.over is not job.Contender.SERVING or gate.improvement)
        and (gate.improvement or 0) < 1
    ):
        found.append(_gain(n, gate.improvement or 0.0, gate.confidence))
    return found


def of_task(gate: job.TaskGate, questions: int) -> list[Power]:
    """The same for a gate on a share of the questions of a public benchmark."""
    if gate.confidence <= gates.POINT or questions < 1:
        return []
    n = min(questions, MOST)
    found = _bounds(gate, n)
    if gate.improvement is not None and gate.improvement < 1:
        found.append(_gain(n, gate.improvement, gate.confidence))
    if gate.margin is not None and gate.margin < 1:
        found.append(_gain(n, -gate.margin, gate.confidence))
    return [dataclasses.replace(one, unit="questions") for one in found]


def _bounds(gate: gates.Bounds, n: int) -> list[Power]:
    found = []
    if gate.minimum is not None and 0 < gate.minimum < 1:
        found.append(_bound(n, gate.minimum, gate.confidence))
    if gate.maximum is not None and 0 < gate.maximum < 1:
        mirrored = _bound(n, 1 - gate.maximum, gate.confidence)
        least = None if mirrored.least is None else 1 - mirrored.least
        found.append(dataclasses.replace(mirrored, least=least, plausible=1 - (mirrored.plausible or 0.0)))
    return found


def after(gate: job.Gate, values: gates.Values, subject: job.Contender = job.Contender.TUNED) -> list[Power]:
    """The same for the examples that were scored, and for what is no share by the spread of the answers."""
    column = values.get(subject, {}).get(gate.metric)
    if column is None or column.units < 2:
        return []
    counted, unit = independent(column)
    if column.share:
        return before(gate, counted, unit)
    if gate.confidence <= gates.POINT:
        return []
    reach, found = _reach(gate.confidence), []
    spread = reach * evidence.spread(column)
    for bound, sign in ((gate.minimum, 1.0), (gate.maximum, -1.0)):
        if bound is not None:
            room = evidence.room_below(column, bound, sign)
            gain = _least_gain(column, spread, room, 1 - gate.confidence)
            least = None if gain is None else bound + sign * gain
            found.append(Power(counted, None if column.bounded and not _fits(least) else least, unit=unit))
    others = [
        values[one][gate.metric] for one in evaluation.compared_with(gate.over, values) if gate.metric in values[one]
    ]
    if others and (gate.over is not job.Contender.SERVING or gate.improvement):
        widest, margin = reach * max(evidence.spread(column, other) for other in others), gate.improvement or 0.0
        gain = _least_gain(column, widest, 1 + margin if column.bounded else None, 1 - gate.confidence)
        least = None if gain is None else margin + gain
        found.append(Power(counted, None if column.bounded and not _fits(least) else least, unit=unit, relative=True))
    return found


def _least_gain(column: evidence.Column, spread: float, room: float | None, level: float) -> float | None:
    """The smallest true gain with which a model passes in POWER of all cases by the normal approximation, and that no failure
    that the examples do not show could undo; None: none is enough."""
    gain = max(spread, means.least_gain(room, column.independent, level))
    return gain if math.isfinite(gain) else None


def _fits(value: float | None) -> bool:
    return value is not None and 0 <= value <= 1


def independent(column: evidence.Column) -> tuple[int, str]:
    """How many examples a column has, or how many groups of them, and which of the two."""
    return int(column.independent + evidence.ROUNDING), "examples" if column.clusters is None else "groups"


def _reach(confidence: float) -> float:
    """Standard errors between a bound and the true value with which a model passes in POWER of all cases."""
    from scipy import stats

    return float(stats.norm.ppf(confidence) + stats.norm.ppf(POWER))


# --- Bounds of a share ---


@functools.lru_cache(maxsize=64)
def _bound(examples: int, minimum: float, confidence: float) -> Power:
    """A plausible model makes half of the errors that the bound allows."""
    from scipy import stats

    plausible = (1 + minimum) / 2
    counts = np.arange(1, MOST + 1)
    critical = _critical(counts, minimum, confidence)
    short = np.flatnonzero(stats.binom.sf(critical - 1, counts, plausible) < POWER)
    needed = 1 if not len(short) else int(counts[short[-1]]) + 1
    at = int(critical[examples - 1])
    # P(X >= k) = POWER holds at this quantile of a beta distribution (Clopper and Pearson).
    least = float(stats.beta.ppf(POWER, at, examples - at + 1)) if at <= examples else None
    return Power(examples, least, plausible, needed if needed <= MOST else None)


def _critical(examples: Any, minimum: float, confidence: float) -> Any:
    """The fewest hits with which a share of so many examples passes; one more than there are where none does."""
    from scipy import stats

    return stats.binom.isf(1 - confidence, examples, minimum) + 1


# --- One share against another, paired ---


@functools.lru_cache(maxsize=64)
def _gain(examples: int, margin: float, confidence: float) -> Power:
    most = 1 - 2 * _losses(margin)
    least = None
    if probability(examples, most, margin, confidence) >= POWER:
        low, least = margin, most
        while least - low > 1e-3:
            middle = (low + least) / 2
            enough = probability(examples, middle, margin, confidence) >= POWER
            low, least = (low, middle) if enough else (middle, least)
    # Who is allowed a loss plausibly has none.
    plausible = 0.0 if margin < 0 else margin + min(GAIN, (most - margin) / 2)
    return Power(examples, least, plausible, _fewest(plausible, margin, confidence), relative=True)


def _losses(margin: float) -> float:
    """LOSSES, or fewer where the gate requires so large a gain that there is no room for them."""
    return min(LOSSES, (1 - margin) / 4)


def _fewest(gain: float, margin: float, confidence: float) -> int | None:
    low, high = 0, 8
    while probability(high, gain, margin, confidence) < POWER:
        low, high = high, 2 * high
        if high > MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if probability(middle, gain, margin, confidence) >= POWER else (middle, high)
    return high


def probability(examples: int, gain: float, margin: float, confidence: float) -> float:
    """The probability that a gate `over` passes, for a model that is truly better by `gain`; summed over wins and losses within
    five standard deviations."""
    from scipy import stats

    beside_gain = _losses(margin)
    wins, losses = beside_gain + max(gain, 0.0), beside_gain + max(-gain, 0.0)
    lost = _likely(examples, losses)[None, :]
    won = _likely(examples, wins)[:, None]
    beside = min(1.0, wins / (1 - losses))
    weights = stats.binom.pmf(lost, examples, losses) * stats.binom.pmf(won, examples - lost, beside)
    # More wins and losses than examples have no weight, and no test.
    there = won + lost <= examples
    p_values = evidence.paired(np.where(there, won, 0), np.where(there, lost, 0), examples, margin)
    return float(weights[there & (p_values <= 1 - confidence + gates.TOLERANCE)].sum())


def _likely(examples: int, share: float) -> Any:
    """Counts of a share of the examples that are worth summing over."""
    middle, reach = examples * share, 5 * math.sqrt(examples * share * (1 - share)) + 5
    return np.arange(max(0, math.floor(middle - reach)), min(examples, math.ceil(middle + reach)) + 1)
