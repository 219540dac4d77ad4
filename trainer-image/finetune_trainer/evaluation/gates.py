"""Gates, pure: whether the measured values let the tuned model serve, each with a sentence that says why.

A gate asks for evidence, not for a lucky value: a bound holds when a model that just misses it would seldom get this far on
as many examples (`gate.confidence`). Three bounds need no evidence: shares of 0 and of 1, which no number of examples proves, and
"not worse than the revision that serves", which fails on evidence of the opposite.

"Better than the best baseline" means better than each of them, with evidence against each: so it does not matter that the data
also decide which one is best, and the rate of false passes stays that of a single test (an intersection-union test, Berger 1982).
"""

from collections.abc import Mapping

from finetune_api import evaluation, job, status
from finetune_trainer.evaluation import evidence, metrics

Values = dict[job.Contender, metrics.Columns]

WinLosses = Mapping[job.Contender, evidence.WinLoss]
"""By contender: the tuned model's pairwise comparisons with it, as judged."""

Bounds = job.Gate | job.TaskGate

TOLERANCE = 1e-9
"""Of comparisons, since 0.85 - 0.80 is a little less than 0.05."""

FEWEST = 5
"""Examples with which a paired test can reach a p-value of 0.05: 0.5 to the power of 5 is below, to the power of 4 above."""

POINT = 0.5
"""The confidence at which the measured value alone decides."""


def check(
    gates: list[job.Gate],
    values: Values,
    subject: job.Contender = job.Contender.TUNED,
    win_losses: WinLosses | None = None,
) -> list[status.GateResult]:
    """Each gate, with `subject` in the place of the tuned model; gates on pairwise comparisons are about the tuned model
    alone."""
    return [
        _best(gate, values, subject, win_losses or {})
        if gate.over in (evaluation.BEST, evaluation.BEST_ALTERNATIVE)
        else _one(gate, values, subject, win_losses or {})
        for gate in gates
    ]


def default(metric: job.Metric | None, values: Values, subject: job.Contender = job.Contender.TUNED) -> list[job.Gate]:
    """The gates of a job that states none, as far as they can be measured: better than the best baseline by the headline
    metric, and no more forgetting than FORGOTTEN, by its value. Fewer than FEWEST examples prove nothing: the values decide."""
    made = []
    if metric is not None and any(metric in values.get(one, {}) for one in evaluation.BASELINES):
        examples = values[subject][metric].units if metric in values.get(subject, {}) else 0
        made.append(job.Gate(metric=metric, over="BestBaseline", confidence=0.95 if examples >= FEWEST else POINT))
    if job.Metric.FORGETTING in values.get(subject, {}):
        made.append(job.Gate(metric=job.Metric.FORGETTING, maximum=evaluation.FORGOTTEN, confidence=POINT))
    return made


def _one(gate: job.Gate, values: Values, subject: job.Contender, win_losses: WinLosses) -> status.GateResult:
    return _pairwise(gate, win_losses) if gate.metric in job.PAIRWISE else _check(gate, values, subject)


def _best(gate: job.Gate, values: Values, subject: job.Contender, win_losses: WinLosses) -> status.GateResult:
    """A gate over the best baseline or alternative: over each that was measured. Observed is the hardest one of those that were
    not passed, else of all."""
    if gate.metric in job.PAIRWISE:
        measured = evaluation.compared_with(gate.over, win_losses)
    else:
        measured = [one for one in evaluation.compared_with(gate.over, values) if gate.metric in values[one]]
    if not measured:
        text = "no baseline was measured; see evaluation.baselines"
        return status.GateResult(metric=gate.metric, requirement=requirement(gate), observed=text, passed=False)

    def hard(one: job.Contender) -> float:
        if gate.metric in job.PAIRWISE:
            return -win_losses[one].rate
        value = values[one][gate.metric].value
        return -value if gate.metric in job.LOWER_IS_BETTER else value

    hardest = sorted(measured, key=hard, reverse=True)
    found = {one: _one(gate.model_copy(update={"over": one}), values, subject, win_losses) for one in hardest}
    missed = [one for one in hardest if not found[one].passed]
    observed = found[missed[0] if missed else hardest[0]].observed
    if len(missed) > 1:
        observed += f"; nor is it shown to be better than {', '.join(missed[1:])}"
    return status.GateResult(metric=gate.metric, requirement=requirement(gate), observed=observed, passed=not missed)


def _pairwise(gate: job.Gate, win_losses: WinLosses) -> status.GateResult:
    """A gate on pairwise comparisons with gate.over: more wins than losses, or at least a rate of gate.minimum."""
    serving = gate.over is job.Contender.SERVING
    found = win_losses.get(job.Contender(gate.over)) if gate.over is not None else None
    if found is None:
        passed, observed = serving, f"{gate.over} {'does not exist yet' if serving else 'was not measured'}"
    elif not found.examples:
        # Without a verdict there is no evidence in either direction.
        passed = serving and gate.minimum is None
        observed = f"{gate.metric} over {gate.over} was not measured: too few of the judge's verdicts were readable"
    elif gate.minimum is not None:
        (passed, doubt), observed = _reached(gate, gate.minimum, found), rate_text(found)
        observed += doubt
    elif serving:
        worse = found.losses > found.wins and found.p_value_worse <= 1 - max(gate.confidence, POINT)
        passed = not worse
        observed = rate_text(found) + (f"; worse, with a p-value of {found.p_value_worse:.2g}" if worse else "")
    else:
        passed, observed = found.wins > found.losses, rate_text(found)
        if passed and gate.confidence > POINT:
            passed, doubt = sure(gate, found.p_value_better, "so many wins come by chance")
            observed += doubt
    return status.GateResult(metric=gate.metric, requirement=requirement(gate), observed=observed, passed=passed)


def _reached(gate: job.Gate, minimum: float, found: evidence.WinLoss) -> tuple[bool, str]:
    if found.rate < minimum - TOLERANCE:
        return False, ""
    if gate.confidence <= POINT or minimum <= 0 or minimum >= 1:
        return True, ""
    return sure(gate, found.p_value_at_least(minimum), f"a model at {minimum:g} gets this far")


def rate_text(found: evidence.WinLoss) -> str:
    """For example: 0.7250 (95 %: 0.6200 to 0.8100, 50 won, 45 tied, 5 lost)."""
    interval = found.interval()
    around = f"95 %: {interval[0]:.4f} to {interval[1]:.4f}, " if interval else ""
    return f"{found.rate:.4f} ({around}{found.wins} won, {found.ties} tied, {found.losses} lost)"


def _check(gate: job.Gate, values: Values, subject: job.Contender) -> status.GateResult:
    column = values.get(subject, {}).get(gate.metric)
    if column is None:
        observed, passed = (
            f"{gate.metric} was not measured: there are no test examples, or they have no answers to compare",
            False,
        )
    else:
        observed, passed = value_text(column), True
        for good, words in (above(gate, column), below(gate, column), _better(gate, column, values)):
            passed &= good
            observed += words
    return status.GateResult(metric=gate.metric, requirement=requirement(gate), observed=observed, passed=passed)


def value_text(column: evidence.Column) -> str:
    """For example: 0.9250 (95 %: 0.8500 to 0.9640, n 80)."""
    found = evidence.interval(column)
    around = f"95 %: {found[0]:.4f} to {found[1]:.4f}, " if found else ""
    groups = f" in {column.units} groups" if column.clusters is not None else ""
    return f"{column.value:.4f} ({around}n {column.examples}{groups})"


def above(gate: Bounds, column: evidence.Column) -> tuple[bool, str]:
    """Whether the gate's minimum holds; where evidence is missing, what to say of it."""
    minimum = gate.minimum
    if minimum is None:
        return True, ""
    if column.value < minimum - TOLERANCE:
        return False, ""
    if gate.confidence <= POINT or (_is_share(column) and (minimum <= 0 or minimum >= 1)):
        return True, ""
    return sure(gate, evidence.p_value_at_least(column, minimum), f"a model at {minimum:g} gets this far")


def below(gate: Bounds, column: evidence.Column) -> tuple[bool, str]:
    """The same of its maximum."""
    maximum = gate.maximum
    if maximum is None:
        return True, ""
    if column.value > maximum + TOLERANCE:
        return False, ""
    if gate.confidence <= POINT or (_is_share(column) and (maximum <= 0 or maximum >= 1)):
        return True, ""
    return sure(gate, evidence.p_value_at_most(column, maximum), f"a model at {maximum:g} gets this low")


def _is_share(column: evidence.Column) -> bool:
    return column.share or column.bounded


def _better(gate: job.Gate, column: evidence.Column, values: Values) -> tuple[bool, str]:
    if gate.over is None:
        return True, ""
    other = values.get(job.Contender(gate.over), {}).get(gate.metric)
    serving = gate.over is job.Contender.SERVING
    if other is None:
        return serving, f"; {gate.over} {'does not exist yet' if serving else 'was not measured'}"
    lower, margin = gate.metric in job.LOWER_IS_BETTER, gate.improvement or 0.0
    words = f", {gate.over} {other.value:.4f}"
    if replaces(gate):
        worse = evidence.compare(other, column, lower_is_better=lower)
        shown = worse.gain > TOLERANCE and worse.p_value <= 1 - max(gate.confidence, POINT)
        return not shown, words + (f"; worse, with a p-value of {worse.p_value:.2g}" if shown else "")
    found = evidence.compare(column, other, lower_is_better=lower, margin=margin)
    # Without a margin "better" means better: a model that changed nothing does not pass.
    if found.gain < margin - TOLERANCE or (not margin and found.gain <= TOLERANCE):
        return False, words
    if gate.confidence <= POINT:
        return True, words
    good, doubt = sure(gate, found.p_value, "so large a gain comes by chance")
    return good, words + doubt


def replaces(gate: job.Gate) -> bool:
    """Whether all that the gate asks for is that a new model is not shown to be worse than the one that serves."""
    return gate.over is job.Contender.SERVING and not gate.improvement


def sure(gate: Bounds, p_value: float, event: str) -> tuple[bool, str]:
    """Whether the p-value is small enough; where it is not, why the gate fails."""
    allowed = 1 - gate.confidence
    if p_value <= allowed + TOLERANCE:
        return True, ""
    cases = f"{100 * p_value:.2g}" if p_value < 0.995 else "100"
    doubt = f"too few examples to be sure: {event} in {cases} of 100 cases, allowed: {100 * allowed:.3g}"
    return False, f"; {doubt}; test more examples, or lower the gate's confidence"


def requirement(gate: job.Gate) -> str:
    """For example: ExactMatch at least 0.8 and better than Base by at least 0.05."""
    if gate.metric in job.PAIRWISE:
        serving = gate.over is job.Contender.SERVING
        wanted = "not below 0.5" if serving else "above 0.5"
        return f"{gate.metric} over {_named(gate)} {wanted if gate.minimum is None else f'at least {gate.minimum:g}'}"
    parts = []
    if gate.minimum is not None:
        parts.append(f"at least {gate.minimum:g}")
    if gate.maximum is not None:
        parts.append(f"at most {gate.maximum:g}")
    if gate.over is job.Contender.SERVING and not gate.improvement:
        parts.append("not worse than Serving")
    elif gate.over is not None:
        margin = f" by at least {gate.improvement:g}" if gate.improvement else ""
        parts.append(f"better than {_named(gate)}{margin}")
    return f"{gate.metric} " + " and ".join(parts)


def _named(gate: job.Gate) -> str:
    names = {evaluation.BEST: "the best baseline", evaluation.BEST_ALTERNATIVE: "the best alternative"}
    return names.get(str(gate.over), str(gate.over))
