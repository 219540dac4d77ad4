"""Would more data help? From the losses of a training's first epoch, pure.

In the first epoch each batch is new to the model, so its loss before the step is a loss on held-out rows (as in prequential
evaluation, Dawid 1984), and the curve over the rows seen is a learning curve that costs nothing. Later epochs repeat rows and say
nothing about new ones. A power law with a floor and a head start from pre-training (Hestness et al. 2017; Hernandez et al. 2021),

    loss(n) = floor + scale * (n + start) ** -exponent,   floor, scale, start >= 0,

is fitted by least squares; its residuals are drawn again (bootstrap) for an interval of the rows that a loss lower by GAIN takes.

What it cannot separate: more rows in one epoch are more steps, too. Where repeated epochs gain as much, fewer new rows do.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune_api import results

Array = np.ndarray[Any, np.dtype[np.float64]]

GAIN = 0.05
"""The next point: a loss that is lower by this share."""

BINS = 24
"""Steps are averaged in so many groups at most."""

FEWEST = 8
"""Points that a curve of four parameters takes."""

REACH = 10.0
"""How many times the rows a curve is trusted."""

STEADY = 0.5
"""Steps below this share of the highest learning rate are left out: a falling rate lowers the loss without any data."""

DRAWS, SEED = 200, 2026

EXPONENTS = np.geomspace(0.05, 2.0, 24)
STARTS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 1.0, 3.0)
"""In multiples of the rows."""


@dataclasses.dataclass(frozen=True)
class Remedy:
    """What may let a model pass that missed a gate."""

    text: str
    lower: float
    """The share by which the loss would be lower."""


def of_training(history: Sequence[dict[str, float]], batch: int, rows: int, *, mixed: bool = False) -> results.MoreData:
    """history: step, loss and learningRate of each step; batch: rows of a step; rows: of the training; mixed: whether batches
    contain other rows, too (training.replay)."""
    if mixed:
        return _unknown("training.replay mixes other rows into the training, so its losses are not the task's alone")
    first = [one for one in history if {"step", "loss"} <= one.keys() and one["step"] * batch <= rows]
    highest = max((one.get("learningRate", 1.0) for one in first), default=1.0)
    steady = [one for one in first if one.get("learningRate", 1.0) >= STEADY * highest]
    if len(steady) < FEWEST:
        return _unknown(f"the first epoch has {len(steady)} steps at a steady learning rate, and it takes {FEWEST}")
    groups = np.array_split(np.arange(len(steady)), min(BINS, max(FEWEST, len(steady) // 2)))
    seen = np.array([(one["step"] - 1) * batch for one in steady], dtype=np.float64)
    losses = np.array([one["loss"] for one in steady], dtype=np.float64)
    return estimate(
        [float(seen[part].mean()) for part in groups], [float(losses[part].mean()) for part in groups], rows
    )


def estimate(seen: Sequence[float], losses: Sequence[float], rows: int) -> results.MoreData:
    """seen: rows before each loss; losses: on rows that are new; rows: there are now."""
    x, y = np.asarray(seen, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if len(x) < FEWEST or not (np.isfinite(y).all() and (y > 0).all()):
        return _unknown(f"{len(x)} points of the first epoch, and it takes {FEWEST}, each a finite loss above zero")
    curve = _fit(x, y[None], y, rows)[0][0]
    # Four parameters leave residuals that are smaller than the errors, which are in proportion to the loss.
    residuals = (y / curve - 1) * np.sqrt(len(x) / (len(x) - 4))
    drawn = np.random.default_rng(SEED).choice(residuals - residuals.mean(), size=(DRAWS, len(x)))
    _, more, twice = _fit(x, curve * (1 + drawn), curve, rows)
    low, middle, high = (float(one) for one in np.quantile(more, [0.025, 0.5, 0.975], method="nearest"))
    limit = (REACH - 1) * rows
    share = f"{100 * GAIN:.0f} %"
    if low > rows:
        text = f"No more: not even twice the {rows:,} rows would lower the loss by {share}, by the curve of the first epoch."
        return results.MoreData(answer="NoMore", text=text)
    if high > limit:
        return _unknown(
            f"by the curve of the first epoch a loss {share} lower takes between {_round(low):,} more rows and more than nine "
            f"times the {rows:,} there are"
        )
    about, least, most = _round(middle), _round(low), _round(high)
    text = (
        f"Probably: about {about:,} more rows (95 %: {least:,} to {most:,}) beside the {rows:,} there are would lower the loss "
        f"by {share}, by the curve of the first epoch."
    )
    lower = float(np.median(twice))
    return results.MoreData(answer="MoreRows", text=text, rows=about, low=least, high=most, twice=lower)


def remedy(
    more: results.MoreData | None, validations: Sequence[dict[str, float]], preflight: dict[str, Any] | None
) -> Remedy | None:
    """What may let a model pass that missed a gate; None where its losses show nothing.

    Rows: not more than there are again lower the loss by GAIN; with twice the rows it falls as the curve does.
    Steps: the loss was falling by as much between the last two of at least three validations, so that the training ended early,
    and falls by as much again. validations: step and loss of each.
    """
    rows = (preflight or {}).get("examples", 0)
    if more is not None and more.rows is not None and more.twice is not None and more.rows <= rows:
        text = f"More data may be enough: with twice the rows the loss is about {100 * more.twice:.0f} % lower. {more.text}"
        return Remedy(text, more.twice)
    losses = [one["loss"] for one in validations if "loss" in one]
    if len(losses) >= 3 and losses[-1] == min(losses) and losses[-1] <= (1 - GAIN) * losses[-2]:
        lower = 1 - losses[-1] / losses[-2]
        text = (
            f"More steps may be enough: the validation loss fell by {100 * lower:.0f} % between the last two validations. Raise "
            "training.epochs."
        )
        return Remedy(text, lower)
    return None


def _unknown(why: str) -> results.MoreData:
    return results.MoreData(answer="CannotTell", text=f"Cannot tell: {why}.")


def _round(rows: float) -> int:
    """To two digits."""
    return int(float(f"{max(1.0, rows):.2g}"))


def _fit(x: Array, y: Array, scales: Array, rows: int) -> tuple[Array, Array, Array]:
    """The curves nearest to losses y [m, k] at x [k], with errors in proportion to scales [k]: their values [m, k]; the rows
    [m] beyond `rows` that lower the loss there by GAIN, infinite where none do; the share [m] by which twice the rows do."""
    best = np.full(len(y), np.inf)
    values, more, twice = np.zeros_like(y), np.full(len(y), np.inf), np.zeros(len(y))
    for exponent, start in itertools.product(EXPONENTS, STARTS):
        begin = max(start * rows, 1.0)
        power = ((x + begin) / (rows + begin)) ** -exponent
        floor, scale = _line(power, y, scales**-2.0)
        curve = floor[:, None] + scale[:, None] * power
        error = (((y - curve) / scales) ** 2).sum(1)
        nearer = error < best
        target = (1 - GAIN) * (floor + scale)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = np.where((scale > 0) & (target > floor), (target - floor) / scale, 0.0)
            needed = np.where(ratio > 0, (rows + begin) * (ratio ** (-1 / exponent) - 1), np.inf)
        fallen = 1 - ((2 * rows + begin) / (rows + begin)) ** -exponent
        with np.errstate(divide="ignore", invalid="ignore"):
            lower = np.where(scale > 0, scale * fallen / (floor + scale), 0.0)
        best = np.where(nearer, error, best)
        values = np.where(nearer[:, None], curve, values)
        more = np.where(nearer, needed, more)
        twice = np.where(nearer, lower, twice)
    return values, more, twice


def _line(power: Array, y: Array, weights: Array) -> tuple[Array, Array]:
    """floor [m] and scale [m] of weighted least squares, neither below zero."""
    weights = weights / weights.sum()
    mean, middle = y @ weights, power - power @ weights
    scale = y @ (weights * middle) / (middle @ (weights * middle))
    floor = mean - scale * (power @ weights)
    through_zero = y @ (weights * power) / (power @ (weights * power))
    scale = np.where(floor < 0, through_zero, scale)
    floor = np.maximum(floor, 0.0)
    flat = scale < 0
    return np.where(flat, mean, floor), np.where(flat, 0.0, scale)
