"""The drawings: intervals as whiskers, gains around zero, loss curves. Inline SVG whose colours are those of the style sheet."""

import dataclasses
import math
from collections.abc import Sequence

from finetune_trainer.report import markup

POINTS = 400
"""Points of a curve at most: more than the drawing has pixels for says nothing and makes the page heavy."""

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Scale:
    """Maps values onto 0 to 1 of a drawing's width."""

    low: float
    high: float

    def at(self, value: float) -> float:
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


def spanning(values: Sequence[float]) -> Scale:
    """A scale that holds all values with a little room; never of width 0."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    room = 0.06 * (high - low) or max(abs(high), 1.0) * 0.5
    return Scale(low - room, high + room)


def whisker(
    value: float, low: float | None, high: float | None, scale: Scale, label: str, *, line: float | None = None
) -> markup.Html:
    """A dot with its interval on a scale; `line`: the value that other drawings on the same scale are compared with."""
    width, height, edge = 150, 18, 4

    def x(place: float) -> float:
        return round(edge + scale.at(place) * (width - 2 * edge), 1)

    parts = [f'<line class="axis" x1="{edge}" x2="{width - edge}" y1="9" y2="9"/>']
    if line is not None and math.isfinite(line):
        parts.append(f'<line class="mean" x1="{x(line)}" x2="{x(line)}" y1="0" y2="{height}"/>')
    if low is not None and high is not None and math.isfinite(low) and math.isfinite(high):
        a, b = x(low), x(high)
        parts.append(f'<path class="range" d="M{a} 4V14M{a} 9H{b}M{b} 4V14"/>')
    if math.isfinite(value):
        parts.append(f'<circle class="dot" cx="{x(value)}" cy="9" r="4"/>')
    return (
        f'<svg class="whisker" viewBox="0 0 {width} {height}" role="img" aria-label="{markup.text(label)}">'
        f"{''.join(parts)}</svg>"
    )


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


def curves(steps: Sequence[Point], checks: Sequence[Point]) -> markup.Html:
    """Training and validation loss by step, with axes; the least validation loss has a mark. Empty for fewer than two points."""
    known = [*steps, *checks]
    if len(known) < 2:
        return ""
    ticks = _ticks(max(loss for _, loss in known))
    frame = Frame(max(max(step for step, _ in known), 1.0), ticks[-1])
    grid = "".join(
        f'<line class="grid" x1="{frame.left}" x2="{frame.width - frame.right}" y1="{frame.y(tick)}" y2="{frame.y(tick)}"/>'
        f'<text x="{frame.left - 8}" y="{frame.y(tick) + 4}" text-anchor="end">{tick:g}</text>'
        for tick in ticks
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="Loss curves"><svg class="curves" '
        f'viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{markup.text(_told(steps, checks))}">'
        f"{grid}{_steps(frame)}{_legend(frame, bool(checks))}"
        f"{_line(frame, thinned(steps), 'training')}{_line(frame, checks, 'validation')}{_lowest(frame, checks)}</svg></div>"
    )


def _told(steps: Sequence[Point], checks: Sequence[Point]) -> str:
    said = []
    for name, points in (("Training", steps), ("Validation", checks)):
        if points:
            said.append(f"{name} loss from {points[0][1]:.3f} to {points[-1][1]:.3f} at step {points[-1][0]:g}")
    return ". ".join(said)


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most POINTS of them, each the mean of its neighbours."""
    width = math.ceil(len(points) / POINTS) or 1
    parts = [points[begin : begin + width] for begin in range(0, len(points), width)]
    return [(part[len(part) // 2][0], sum(loss for _, loss in part) / len(part)) for part in parts]


def _line(frame: Frame, points: Sequence[Point], kind: str) -> markup.Html:
    if not points:
        return ""
    path = " ".join(f"{frame.x(step)},{frame.y(loss)}" for step, loss in points)
    dots = kind == "validation" or len(points) == 1
    marks = (
        "".join(f'<circle cx="{frame.x(step)}" cy="{frame.y(loss)}" r="3.5"/>' for step, loss in points) if dots else ""
    )
    return f'<g class="{kind}"><polyline points="{path}"/>{marks}</g>'


def _lowest(frame: Frame, checks: Sequence[Point]) -> markup.Html:
    if not checks:
        return ""
    step, loss = min(checks, key=lambda point: point[1])
    x, y = frame.x(step), frame.y(loss)
    share = (x - frame.left) / (frame.width - frame.left - frame.right)
    anchor = "start" if share < 0.2 else "end" if share > 0.8 else "middle"
    # Above the point, where the curve has come down from; below would run into the training loss.
    return (
        f'<line class="mean" x1="{x}" x2="{x}" y1="{frame.above}" y2="{frame.height - frame.below}"/>'
        f'<circle class="lowest" cx="{x}" cy="{y}" r="7"/>'
        f'<text class="strong" x="{x}" y="{max(frame.above + 12, y - 16)}" text-anchor="{anchor}">lowest {loss:.3f} '
        f"at step {step:g}</text>"
    )


def _steps(frame: Frame) -> markup.Html:
    floor = frame.height - frame.below
    marks = [tick for tick in _ticks(frame.last) if tick <= frame.last and tick == int(tick)]
    parts = [f'<text x="{frame.x(tick)}" y="{floor + 18}" text-anchor="middle">{tick:g}</text>' for tick in marks]
    parts.append(
        f'<text x="{frame.width - frame.right}" y="{frame.height - 6}" text-anchor="end">optimizer step</text>'
    )
    parts.append(f'<text x="{frame.left}" y="16">loss, nats per learned token</text>')
    return "".join(parts)


def _legend(frame: Frame, both: bool) -> markup.Html:
    right = frame.width - frame.right
    made = f'<g class="training"><path d="M{right - 210} 12h28"/></g><text x="{right - 176}" y="16">training</text>'
    if both:
        made += (
            f'<g class="validation"><path d="M{right - 100} 12h28"/><circle cx="{right - 86}" cy="12" r="3.5"/></g>'
            f'<text x="{right - 66}" y="16">validation</text>'
        )
    return made


def _ticks(highest: float) -> list[float]:
    """From 0 to at least `highest` in four to eight steps of 1, 2 or 5 times a power of ten."""
    if not highest > 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(highest))
    step = next(power * part for part in (0.1, 0.2, 0.5, 1.0, 2.0) if highest / (power * part) <= 8)
    return [round(index * step, 12) for index in range(math.ceil(round(highest / step, 9)) + 1)]
