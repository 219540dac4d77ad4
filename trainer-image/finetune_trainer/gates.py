"""Gates, pure: whether the measured values let the tuned model serve, each said in words."""

from finetune_api import job, status

Values = dict[job.Contender, dict[job.Metric, float]]

TOLERANCE = 1e-9
"""Of comparisons, since 0.85 - 0.80 is a little less than 0.05."""


def check(gates: list[job.Gate], values: Values) -> list[status.GateResult]:
    return [_check(gate, values) for gate in gates]


def _check(gate: job.Gate, values: Values) -> status.GateResult:
    requirement = words(gate)
    tuned = values.get(job.Contender.TUNED, {}).get(gate.metric)
    if tuned is None:
        observed = f"{gate.metric} was not measured: there are no test examples, or they have no answers"
        return status.GateResult(metric=gate.metric, requirement=requirement, observed=observed, passed=False)
    observed, passed = f"{tuned:.4f}", True
    if gate.minimum is not None:
        passed &= tuned >= gate.minimum - TOLERANCE
    if gate.maximum is not None:
        passed &= tuned <= gate.maximum + TOLERANCE
    if gate.over is not None:
        other = values.get(gate.over, {}).get(gate.metric)
        if other is None:
            observed, passed = f"{observed}; {gate.over} was not measured", False
        else:
            gain = other - tuned if gate.metric in job.LOWER_IS_BETTER else tuned - other
            needed = gate.improvement or 0.0
            observed = f"{observed}, {gate.over} {other:.4f}"
            # Without a margin "better" means better: a model that changed nothing does not pass.
            passed &= gain >= needed - TOLERANCE if needed else gain > TOLERANCE
    return status.GateResult(metric=gate.metric, requirement=requirement, observed=observed, passed=passed)


def words(gate: job.Gate) -> str:
    """For example: ExactMatch at least 0.8 and better than Base by at least 0.05."""
    parts = []
    if gate.minimum is not None:
        parts.append(f"at least {gate.minimum:g}")
    if gate.maximum is not None:
        parts.append(f"at most {gate.maximum:g}")
    if gate.over is not None:
        margin = f" by at least {gate.improvement:g}" if gate.improvement else ""
        parts.append(f"better than {gate.over}{margin}")
    return f"{gate.metric} " + " and ".join(parts)
