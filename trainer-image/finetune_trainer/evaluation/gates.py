"""Gates, pure: whether what was measured lets the tuned model serve, each said in words.

A gate asks for evidence, not for a lucky value: a bound holds when a model that just misses it would seldom have got this far on
so many examples (`gate.confidence`). Three bounds need no evidence: shares of 0 and of 1, which no number of examples proves, and
"not worse than the revision that serves", which fails on evidence of the opposite.
"""

from collections.abc import Mapping

from finetune_api import job, status
from finetune_trainer.evaluation import evidence, metrics

Values = dict[job.Contender, metrics.Columns]

Duels = Mapping[job.Contender, evidence.Duel]
"""Of the tuned model with each contender, before the judge."""

TOLERANCE = 1e-9
"""Of comparisons, since 0.85 - 0.80 is a little less than 0.05."""

POINT = 0.5
"""The confidence at which the measured value alone decides."""


def check(
    gates: list[job.Gate], values: Values, subject: job.Contender = job.Contender.TUNED, duels: Duels | None = None
) -> list[status.GateResult]:
    """Each gate, with `subject` in the place of the tuned model; gates of duels are of the tuned model alone."""
    return [
        _fought(gate, duels or {}) if gate.metric in job.PAIRWISE else _check(gate, values, subject) for gate in gates
    ]


def _fought(gate: job.Gate, duels: Duels) -> status.GateResult:
    """A gate of duels with gate.over: more wins than losses, or at least a rate of gate.minimum."""
    serving = gate.over is job.Contender.SERVING
    found = duels.get(gate.over) if gate.over is not None else None
    if found is None:
        passed, seen = serving, f"{gate.over} {'is nothing yet' if serving else 'was not measured'}"
    elif not found.examples:
        # Without a verdict nobody is shown to be worse, and nobody to be better.
        passed = serving and gate.minimum is None
        seen = f"{gate.metric} over {gate.over} was not measured: too few verdicts of the judge could be read"
    elif gate.minimum is not None:
        (passed, doubt), seen = _reached(gate, gate.minimum, found), told(found)
        seen += doubt
    elif serving:
        sure = found.losses > found.wins and found.chance_worse <= 1 - max(gate.confidence, POINT)
        passed = not sure
        seen = told(found) + (f"; worse, with a chance of {found.chance_worse:.2g} to look so by luck" if sure else "")
    else:
        passed, seen = found.wins > found.losses, told(found)
        if passed and gate.confidence > POINT:
            passed, doubt = _sure(gate, found.chance_better, "so many wins come by luck")
            seen += doubt
    return status.GateResult(metric=gate.metric, requirement=requirement(gate), observed=seen, passed=passed)


def _reached(gate: job.Gate, minimum: float, found: evidence.Duel) -> tuple[bool, str]:
    if found.rate < minimum - TOLERANCE:
        return False, ""
    if gate.confidence <= POINT or minimum <= 0 or minimum >= 1:
        return True, ""
    return _sure(gate, found.chance_at_least(minimum), f"a model at {minimum:g} gets this far")


def told(found: evidence.Duel) -> str:
    """For example: 0.7250 (95 %: 0.6200 to 0.8100, 50 won, 45 tied, 5 lost)."""
    interval = found.interval()
    around = f"95 %: {interval[0]:.4f} to {interval[1]:.4f}, " if interval else ""
    return f"{found.rate:.4f} ({around}{found.wins} won, {found.ties} tied, {found.losses} lost)"


def _check(gate: job.Gate, values: Values, subject: job.Contender) -> status.GateResult:
    column = values.get(subject, {}).get(gate.metric)
    if column is None:
        seen, passed = (
            f"{gate.metric} was not measured: there are no test examples, or they have no answers to compare",
            False,
        )
    else:
        seen, passed = said(column), True
        for good, words in (_above(gate, column), _below(gate, column), _better(gate, column, values)):
            passed &= good
            seen += words
    return status.GateResult(metric=gate.metric, requirement=requirement(gate), observed=seen, passed=passed)


def said(column: evidence.Column) -> str:
    """For example: 0.9250 (95 %: 0.8500 to 0.9640, n 80)."""
    found = evidence.interval(column)
    around = f"95 %: {found[0]:.4f} to {found[1]:.4f}, " if found else ""
    return f"{column.value:.4f} ({around}n {column.examples})"


def _above(gate: job.Gate, column: evidence.Column) -> tuple[bool, str]:
    minimum = gate.minimum
    if minimum is None:
        return True, ""
    if column.value < minimum - TOLERANCE:
        return False, ""
    if gate.confidence <= POINT or (column.share and (minimum <= 0 or minimum >= 1)):
        return True, ""
    return _sure(gate, evidence.chance_at_least(column, minimum), f"a model at {minimum:g} gets this far")


def _below(gate: job.Gate, column: evidence.Column) -> tuple[bool, str]:
    maximum = gate.maximum
    if maximum is None:
        return True, ""
    if column.value > maximum + TOLERANCE:
        return False, ""
    if gate.confidence <= POINT or (column.share and (maximum <= 0 or maximum >= 1)):
        return True, ""
    return _sure(gate, evidence.chance_at_most(column, maximum), f"a model at {maximum:g} gets this low")


def _better(gate: job.Gate, column: evidence.Column, values: Values) -> tuple[bool, str]:
    if gate.over is None:
        return True, ""
    other = values.get(gate.over, {}).get(gate.metric)
    serving = gate.over is job.Contender.SERVING
    if other is None:
        return serving, f"; {gate.over} {'is nothing to compare with' if serving else 'was not measured'}"
    lower, margin = gate.metric in job.LOWER_IS_BETTER, gate.improvement or 0.0
    words = f", {gate.over} {other.value:.4f}"
    if serving and not margin:
        worse = evidence.compare(other, column, lower_is_better=lower)
        sure = worse.gain > TOLERANCE and worse.chance <= 1 - max(gate.confidence, POINT)
        return not sure, words + (f"; worse, with a chance of {worse.chance:.2g} to look so by luck" if sure else "")
    found = evidence.compare(column, other, lower_is_better=lower, margin=margin)
    # Without a margin "better" means better: a model that changed nothing does not pass.
    if found.gain < margin - TOLERANCE or (not margin and found.gain <= TOLERANCE):
        return False, words
    if gate.confidence <= POINT:
        return True, words
    good, doubt = _sure(gate, found.chance, "so large a gain comes by luck")
    return good, words + doubt


def _sure(gate: job.Gate, chance: float, event: str) -> tuple[bool, str]:
    """Whether that chance is small enough; the doubt in words where it is not."""
    allowed = 1 - gate.confidence
    if chance <= allowed + TOLERANCE:
        return True, ""
    doubt = f"too few examples to be sure: {event} in {100 * chance:.2g} of 100 cases, allowed are {100 * allowed:.3g}"
    return False, f"; {doubt}; test more examples, or lower the gate's confidence"


def requirement(gate: job.Gate) -> str:
    """For example: ExactMatch at least 0.8 and better than Base by at least 0.05."""
    if gate.metric in job.PAIRWISE:
        serving = gate.over is job.Contender.SERVING
        wanted = "not below 0.5" if serving else "above 0.5"
        return f"{gate.metric} over {gate.over} {wanted if gate.minimum is None else f'at least {gate.minimum:g}'}"
    parts = []
    if gate.minimum is not None:
        parts.append(f"at least {gate.minimum:g}")
    if gate.maximum is not None:
        parts.append(f"at most {gate.maximum:g}")
    if gate.over is job.Contender.SERVING and not gate.improvement:
        parts.append("not worse than Serving")
    elif gate.over is not None:
        margin = f" by at least {gate.improvement:g}" if gate.improvement else ""
        parts.append(f"better than {gate.over}{margin}")
    return f"{gate.metric} " + " and ".join(parts)
