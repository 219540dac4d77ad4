from typing import Any

import numpy as np
import pytest

from finetune_api import job, status
from finetune_trainer.evaluation import evidence, gates

EXACT = job.Metric.EXACT_MATCH
TUNED, BASE, SERVING = job.Contender.TUNED, job.Contender.BASE, job.Contender.SERVING


def share(hits: int, examples: int = 100) -> evidence.Column:
    return evidence.mean([1.0] * hits + [0.0] * (examples - hits), share=True)


def spread(mean: float, examples: int = 100) -> evidence.Column:
    return evidence.mean(mean + np.linspace(-0.1, 0.1, examples))


def check(
    gate: dict[str, Any], tuned: evidence.Column | None, other: evidence.Column | None = None
) -> status.GateResult:
    made = job.Gate.model_validate(gate)
    values: gates.Values = {TUNED: {made.metric: tuned} if tuned else {}}
    if other is not None and made.over is not None:
        values[made.over] = {made.metric: other}
    return gates.check([made], values)[0]


@pytest.mark.parametrize(
    "gate, tuned, other, passed",
    [
        ({"metric": "ExactMatch", "minimum": 0.8}, share(92), None, True),
        ({"metric": "ExactMatch", "minimum": 0.8}, share(82), None, False),
        ({"metric": "ExactMatch", "minimum": 0.8, "confidence": 0.5}, share(82), None, True),
        ({"metric": "ExactMatch", "minimum": 0.8, "confidence": 0.5}, share(79), None, False),
        ({"metric": "ExactMatch", "minimum": 0.8}, share(4, 4), None, False),
        ({"metric": "ExactMatch", "minimum": 1.0}, share(40, 40), None, True),
        ({"metric": "ExactMatch", "minimum": 1.0}, share(39, 40), None, False),
        ({"metric": "ExactMatch", "minimum": 0.0}, share(0), None, True),
        ({"metric": "ExactMatch", "minimum": 0.0}, None, None, False),
        ({"metric": "InvalidLabels", "maximum": 0.0}, share(0), None, True),
        ({"metric": "InvalidLabels", "maximum": 0.1}, share(2), None, True),
        ({"metric": "InvalidLabels", "maximum": 0.1}, share(9), None, False),
        ({"metric": "Loss", "maximum": 1.5}, spread(1.6), None, False),
        ({"metric": "Loss", "maximum": 1.5}, spread(1.4), None, True),
        ({"metric": "ExactMatch", "over": "Base"}, share(80), share(80), False),
        ({"metric": "ExactMatch", "over": "Base"}, share(82), share(80), False),
        ({"metric": "ExactMatch", "over": "Base"}, share(90), share(80), True),
        ({"metric": "ExactMatch", "over": "Base", "improvement": 0.05}, share(92), share(80), True),
        ({"metric": "ExactMatch", "over": "Base", "improvement": 0.05}, share(86), share(80), False),
        ({"metric": "ExactMatch", "over": "Base", "improvement": 0.05, "confidence": 0.5}, share(85), share(80), True),
        ({"metric": "Loss", "over": "Base", "improvement": 0.4}, spread(1.0), spread(1.5), True),
        ({"metric": "Loss", "over": "Base"}, spread(1.0), spread(0.9), False),
        ({"metric": "ExactMatch", "minimum": 0.5, "over": "Base"}, share(40), share(0), False),
        ({"metric": "ExactMatch", "over": "FewShot"}, share(90), None, False),
    ],
)
def test_gates_ask_for_evidence_in_the_metrics_own_direction(
    gate: dict[str, Any], tuned: evidence.Column | None, other: evidence.Column | None, passed: bool
) -> None:
    assert check(gate, tuned, other).passed is passed


@pytest.mark.parametrize(
    "tuned, serving, passed",
    [
        (share(90), None, True),
        (share(80), share(80), True),
        (share(79), share(80), True),
        (share(60), share(80), False),
    ],
)
def test_not_worse_than_the_serving_adapter_fails_only_on_evidence(
    tuned: evidence.Column, serving: evidence.Column | None, passed: bool
) -> None:
    for gate in (
        {"metric": "ExactMatch", "over": "Serving"},
        {"metric": "ExactMatch", "over": "Serving", "improvement": 0},
    ):
        assert check(gate, tuned, serving).passed is passed


def test_gates_say_what_was_measured() -> None:
    found = check({"metric": "ExactMatch", "minimum": 0.8, "over": "Base", "improvement": 0.05}, share(90), share(50))
    assert found.requirement == "ExactMatch at least 0.8 and better than Base by at least 0.05"
    assert found.observed == "0.9000 (95 %: 0.8256 to 0.9448, n 100), Base 0.5000"
    assert "not measured" in check({"metric": "RougeL", "minimum": 0.8}, None).observed
    few = check({"metric": "ExactMatch", "minimum": 0.8}, share(4, 4))
    assert "too few examples to be sure: a model at 0.8 gets this far in 41 of 100 cases, allowed: 5" in few.observed
    assert (
        check({"metric": "ExactMatch", "over": "Serving"}, share(1)).requirement == "ExactMatch not worse than Serving"
    )


def judged(gate: dict[str, Any], *counts: int, over: str = "FewShot") -> status.GateResult:
    made = job.Gate.model_validate({"metric": "JudgeWinRate", "over": over} | gate)
    win_losses = {made.over: evidence.WinLoss(*counts)} if len(counts) == 3 and made.over else {}
    return gates.check([made], {}, win_losses=win_losses)[0]


@pytest.mark.parametrize(
    "gate, counts, passed",
    [
        ({}, (20, 60, 5), True),
        ({}, (8, 60, 5), False),
        ({}, (4, 96, 0), False),
        ({}, (5, 95, 0), True),
        ({}, (5, 20, 20), False),
        ({}, (0, 50, 0), False),
        ({"confidence": 0.5}, (8, 60, 5), True),
        ({"confidence": 0.5}, (5, 60, 5), False),
        ({"minimum": 0.6}, (80, 10, 10), True),
        ({"minimum": 0.6}, (60, 10, 30), False),
        ({"minimum": 0.6, "confidence": 0.5}, (60, 0, 40), True),
        ({"minimum": 0.4}, (50, 10, 40), True),
        ({"minimum": 0.8}, (4, 0, 0), False),
        ({"minimum": 1.0}, (30, 0, 0), True),
        ({"minimum": 0.4}, (0, 0, 0), False),
        ({}, (0, 0, 0), False),
        ({}, (), False),
    ],
)
def test_a_gate_on_win_rate_asks_for_evidence(gate: dict[str, Any], counts: tuple[int, ...], passed: bool) -> None:
    assert judged(gate, *counts).passed is passed


@pytest.mark.parametrize(
    "gate, counts, passed",
    [
        ({}, (), True),
        ({}, (5, 20, 6), True),
        ({}, (5, 20, 30), False),
        ({}, (0, 0, 0), True),
        ({"minimum": 0.5}, (), True),
        ({"minimum": 0.5}, (0, 0, 0), False),
        ({"minimum": 0.5}, (5, 20, 6), False),
        ({"minimum": 0.5}, (30, 20, 6), True),
    ],
)
def test_a_gate_over_the_serving_model_fails_only_on_evidence(
    gate: dict[str, Any], counts: tuple[int, ...], passed: bool
) -> None:
    assert judged(gate, *counts, over="Serving").passed is passed


def test_a_gate_on_win_rate_says_what_was_observed() -> None:
    found = judged({}, 50, 45, 5)
    assert found.requirement == "JudgeWinRate over FewShot above 0.5"
    assert found.observed == "0.7250 (95 %: 0.6304 to 0.8030, 50 won, 45 tied, 5 lost)"
    assert judged({"minimum": 0.6}).requirement == "JudgeWinRate over FewShot at least 0.6"
    assert judged({}, over="Serving").requirement == "JudgeWinRate over Serving not below 0.5"
    assert "too few examples to be sure: so many wins come by chance in 12 of 100 cases" in judged({}, 3, 9, 0).observed
    assert "worse, with a p-value of" in judged({}, 0, 9, 30, over="Serving").observed
    assert judged({}).observed == "FewShot was not measured"
    assert "verdicts were readable" in judged({}, 0, 0, 0).observed


def test_a_prompt_is_held_against_the_same_gates() -> None:
    gate = job.Gate(metric=EXACT, minimum=0.8)
    assert gates.check([gate], {BASE: {EXACT: share(95)}}, BASE)[0].passed
