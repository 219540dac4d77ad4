"""The drawings: intervals as whiskers, gains around zero, loss curves. Numbers only; the templates draw them as SVG."""

import dataclasses
import math
from collections.abc import Sequence

POINTS = 400
"""Points of a curve, at most: more than the drawing has pixels would only make the page larger."""

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Scale:
    """Maps values onto 0 to 1 of a drawing's width."""

    low: float
    high: float

    def at(self, value: float) -> float:
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


def spanning(values: Sequence[float]) -> Scale:
    """A scale that contains all values with a small margin; never of width 0."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    room = 0.06 * (high - low) or max(abs(high), 1.0) * 0.5
    return Scale(low - room, high + room)


@dataclasses.dataclass(frozen=True)
class Whisker:
    """A dot with its interval on a scale; positions are x in the drawing, None for parts that are not drawn."""

    label: str
    dot: float | None
    ends: tuple[float, float] | None
    line: float | None
    width: int = 150
    edge: int = 4


def whisker(
    value: float | None, low: float | None, high: float | None, scale: Scale, label: str, line: float | None = None
) -> Whisker:
    """`line`: the value that other drawings on the same scale are compared with."""

    def x(place: float | None) -> float | None:
        if place is None or not math.isfinite(place):
            return None
        return round(Whisker.edge + scale.at(place) * (Whisker.width - 2 * Whisker.edge), 1)

    a, b = x(low), x(high)
    return Whisker(label, x(value), None if a is None or b is None else (a, b), x(line))


@dataclasses.dataclass(frozen=True)
class Frame:
    """The plane of the curves."""

    last: float
    top: float
    width: int = 920
    height: int = 320
    left: int = 56
    right: int = 20
    above: int = 30
    below: int = 44

    def x(self, step: float) -> float:
        return round(self.left + (self.width - self.left - self.right) * step / self.last, 1)

    def y(self, loss: float) -> float:
        return round(self.above + (self.height - self.above - self.below) * (1 - min(loss, self.top) / self.top), 1)

    def anchor(self, step: float) -> str:
        """Where a text about a step begins, so that it stays within the plane."""
        share = step / self.last
        return "start" if share < 0.2 else "end" if share > 0.8 else "middle"


@dataclasses.dataclass(frozen=True)
class Curves:
    """Training and validation loss by step, or the score of the answers."""

    frame: Frame
    losses: list[float]
    """Ticks of the axis."""
    steps: list[float]
    training: list[Point]
    validation: list[Point]
    marked: Point | None
    """The lowest validation loss, or the score of the adapter that is used."""
    mark: str
    label: str
    title: str = "loss, nats per learned token"


def curves(steps: Sequence[Point], checks: Sequence[Point]) -> Curves | None:
    """None for fewer than two points."""
    known = [*steps, *checks]
    if len(known) < 2:
        return None
    losses = _ticks(max(loss for _, loss in known))
    frame = Frame(max(max(step for step, _ in known), 1.0), losses[-1])
    whole = [tick for tick in _ticks(frame.last) if tick <= frame.last and tick == int(tick)]
    lowest = min(checks, key=lambda point: point[1], default=None)
    mark = f"lowest {lowest[1]:.3f} at step {lowest[0]:g}" if lowest else ""
    return Curves(frame, losses, whole, thinned(steps), list(checks), lowest, mark, _label(steps, checks))


def scores(metric: str, checks: Sequence[Point], used: Point, last: float) -> Curves:
    """The scores by which an adapter was chosen, over as many steps as the losses have."""
    ticks = _ticks(max(score for _, score in checks))
    frame = Frame(max(last, 1.0), ticks[-1], height=200)
    whole = [tick for tick in _ticks(frame.last) if tick <= frame.last and tick == int(tick)]
    mark = f"used: {used[1]:.3f} at step {used[0]:g}"
    title = f"{metric} of the answers to validation examples"
    return Curves(frame, ticks, whole, [], list(checks), used, mark, f"{title}, {mark}", title)


def _label(steps: Sequence[Point], checks: Sequence[Point]) -> str:
    parts = []
    for name, points in (("Training", steps), ("Validation", checks)):
        if points:
            parts.append(f"{name} loss from {points[0][1]:.3f} to {points[-1][1]:.3f} at step {points[-1][0]:g}")
    return ". ".join(parts)


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most POINTS of them, each the mean of its neighbours."""
    width = math.ceil(len(points) / POINTS) or 1
    parts = [points[begin : begin + width] for begin in range(0, len(points), width)]
    return [(part[len(part) // 2][0], sum(loss for _, loss in part) / len(part)) for part in parts]


def _ticks(highest: float) -> list[float]:
    """From 0 to at least `highest` in four to eight steps of 1, 2 or 5 times a power of ten."""
    if not highest > 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(highest))
    step = next(power * part for part in (0.1, 0.2, 0.5, 1.0, 2.0) if highest / (power * part) <= 8)
    return [round(index * step, 12) for index in range(math.ceil(round(highest / step, 9)) + 1)]
