"""Public benchmarks on the page: base and tuned model side by side, and whether the difference may be chance."""

from finetune_api import results
from finetune_trainer.report import drawings, words

ALPHA = 0.05


def whisker_of(one: results.Benchmark) -> drawings.Whisker:
    """The gain around 0, on its own scale."""
    gain, inside = number(one.gain, sign=True), interval(one.low, one.high, sign=True)
    reach = max([abs(end) for end in (one.gain, one.low, one.high) if end is not None], default=0.0) or 1.0
    label = f"gain {gain}, 95 % interval {inside}" if inside else f"gain {gain}, without an interval"
    return drawings.whisker(one.gain, one.low, one.high, drawings.spanning([-reach, reach]), label, 0.0)


def number(value: float | None, *, sign: bool = False) -> str:
    """0.512, 13.4, 1,204; with a sign where it is a difference."""
    if value is None:
        return "not defined"
    places = 3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0
    return f"{value:{'+' if sign else ''},.{places}f}".replace("-", "−")


def interval(low: float | None, high: float | None, *, sign: bool = False) -> str:
    return "" if low is None or high is None else f"{number(low, sign=sign)} to {number(high, sign=sign)}"


def difference(one: results.Benchmark) -> str:
    """Whether the models differ, in words."""
    if one.gain is None or one.p_value is None:
        return "No test: the metric has no value for single questions"
    if one.gain == 0:
        return "No difference"
    verb = "Better" if one.gain > 0 else "Worse"
    text = f"a difference this large comes by chance in {words.share_of_cases(one.p_value)}"
    return f"{verb}: {text}" if one.p_value < ALPHA else f"Not significant: {text}"
