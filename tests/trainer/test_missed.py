"""How a gate was missed: by evidence, which takes a job of several base models to the next one, or undecided."""

from typing import Any

import numpy as np
import pytest

from finetune_api import job, results
from finetune_trainer.evaluation import evidence, gates, missed, scoreboard, task_gates
from finetune_trainer.planning import learning_curve

TUNED, BASE, FEW = job.Contender.TUNED, job.Contender.BASE, job.Contender.FEW_SHOT
ACC = ("acc", "none")


def share(hits: int, examples: int = 100) -> evidence.Column:
    return evidence.mean([1.0] * hits + [0.0] * (examples - hits), share=True)


def of(gate: dict[str, Any], tuned: evidence.Column | None, **others: evidence.Column) -> str:
    made = job.Gate.model_validate(gate)
    values: gates.Values = {TUNED: {made.metric: tuned} if tuned else {}}
    values |= {job.Contender(name): {made.metric: column} for name, column in others.items()}
    assert not gates.check([made], values)[0].passed, "only a gate that was missed is missed somehow"
    return missed.of_gate(made, values, {})


AT_LEAST: dict[str, Any] = {"metric": "ExactMatch", "minimum": 0.8}
BEST: dict[str, Any] = {"metric": "ExactMatch", "over": "BestBaseline"}


@pytest.mark.parametrize(
    "gate, tuned, others, how",
    [
        (AT_LEAST, share(60), {}, "ByEvidence"),
        (AT_LEAST, share(78), {}, "Undecided"),
        (AT_LEAST, share(82), {}, "Undecided"),
        (AT_LEAST, share(6, 10), {}, "Undecided"),
        (AT_LEAST, None, {}, "Undecided"),
        (AT_LEAST | {"confidence": 0.5}, share(79), {}, "ByEvidence"),
        (AT_LEAST | {"minimum": 1.0}, share(99), {}, "ByEvidence"),
        ({"metric": "InvalidLabels", "maximum": 0.1}, share(30), {}, "ByEvidence"),
        ({"metric": "InvalidLabels", "maximum": 0.1}, share(12), {}, "Undecided"),
        ({"metric": "Loss", "maximum": 1.5}, evidence.mean(1.6 + np.linspace(-0.1, 0.1, 100)), {}, "ByEvidence"),
        (BEST, share(60), {"Base": share(10), "FewShot": share(90)}, "ByEvidence"),
        (BEST, share(80), {"Base": share(10), "FewShot": share(80)}, "Undecided"),
        (BEST | {"improvement": 0.2}, share(82), {"FewShot": share(80)}, "ByEvidence"),
        (BEST | {"improvement": 0.05}, share(83), {"FewShot": share(80)}, "Undecided"),
        (BEST, share(60), {}, "Undecided"),
        ({"metric": "ExactMatch", "over": "Serving"}, share(60), {"Serving": share(90)}, "ByEvidence"),
    ],
)
def test_a_miss_is_by_evidence_where_a_model_at_the_bound_would_seldom_look_like_this(
    gate: dict[str, Any], tuned: evidence.Column | None, others: dict[str, evidence.Column], how: str
) -> None:
    assert of(gate, tuned, **others) == how


def test_a_model_at_the_bound_is_seldom_found_to_miss_it_by_evidence() -> None:
    draw = np.random.default_rng(1)
    gate = job.Gate.model_validate(AT_LEAST)
    columns = [share(int(draw.binomial(50, 0.8)), 50) for _ in range(400)]
    found = [missed.of_gate(gate, {TUNED: {gate.metric: column}}, {}) for column in columns]
    assert found.count("ByEvidence") <= 400 * 0.05 + 2 * (400 * 0.05 * 0.95) ** 0.5


def test_pairwise_comparisons_are_lost_by_evidence_or_too_few() -> None:
    gate = job.Gate.model_validate({"metric": "JudgeWinRate", "over": "Base"})
    clear, few = evidence.WinLoss(10, 10, 60), evidence.WinLoss(2, 1, 3)
    assert missed.of_gate(gate, {}, {BASE: clear}) == "ByEvidence"
    assert missed.of_gate(gate, {}, {BASE: few}) == "Undecided"
    bound = job.Gate.model_validate({"metric": "JudgeWinRate", "over": "Base", "minimum": 0.6})
    assert missed.of_gate(bound, {}, {BASE: clear}) == "ByEvidence"
    assert missed.of_gate(bound, {}, {BASE: evidence.WinLoss(30, 10, 30)}) == "Undecided"


@pytest.mark.parametrize(
    "gate, tuned, how",
    [
        ({"minimum": 0.5}, 20, "ByEvidence"),
        ({"minimum": 0.5}, 48, "Undecided"),
        ({"margin": 0.05}, 20, "ByEvidence"),
        ({"margin": 0.05}, 56, "Undecided"),
    ],
)
def test_a_benchmark_is_missed_by_evidence_or_undecided(gate: dict[str, Any], tuned: int, how: str) -> None:
    made = job.TaskGate.model_validate({"task": "arc_easy", **gate})
    one = task_gates.Measured(0.6, tuned / 100, (share(60), share(tuned)))
    (found,) = missed.of_task_gates([made], {"arc_easy": {ACC: one}})
    assert (found.passed, found.missed) == (False, how)


def losses(*values: float) -> list[dict[str, float]]:
    return [{"step": float(step), "loss": value} for step, value in enumerate(values)]


def more(rows: int) -> results.MoreData:
    return results.MoreData(answer="MoreRows", text=f"Probably: about {rows} more rows.", rows=rows, twice=0.06)


def test_more_rows_or_steps_are_a_remedy_where_the_losses_show_it() -> None:
    flat, known = losses(1.0, 0.8, 0.79), {"examples": 500}
    assert learning_curve.remedy(None, flat, known) is None
    assert learning_curve.remedy(more(5000), flat, known) is None, "ten times the rows are no remedy"
    rows, steps = (
        learning_curve.remedy(more(400), flat, known),
        learning_curve.remedy(None, losses(1, 0.9, 0.81), known),
    )
    assert rows is not None
    assert "about 400 more rows" in rows.text
    assert rows.lower == pytest.approx(0.06)
    assert steps is not None
    assert "fell by 10 %" in steps.text
    assert steps.lower == pytest.approx(0.1)
    assert learning_curve.remedy(None, losses(1.0, 0.7, 0.8), known) is None, "it rose again"


def of_a_power_law(exponent: float, rows: int = 500) -> results.MoreData:
    """The answer computed of a curve that falls to the end."""
    seen = [rows * share / 24 for share in range(24)]
    return learning_curve.estimate(seen, [5 * (one + 50) ** -exponent for one in seen], rows)


def evaluated(
    *gate_and_hits: tuple[dict[str, Any], int], curve: results.MoreData, validations: Any = (), examples: int = 200
) -> str | None:
    """The remedy that results.json and the status get."""
    required, found = [], scoreboard.Findings(values={TUNED: {}})
    for bounds, hits in gate_and_hits:
        required.append(job.Gate.model_validate(bounds))
        found.values[TUNED][required[-1].metric] = share(hits, examples)
    checked = [
        one.model_copy(update={"missed": None if one.passed else missed.of_gate(gate, found.values, {})})
        for gate, one in zip(required, gates.check(required, found.values), strict=True)
    ]
    promised = learning_curve.remedy(curve, validations, {"examples": 500})
    return scoreboard.remedy(promised, required, checked, found)


def test_a_gate_missed_by_far_is_out_of_reach_of_twice_the_rows() -> None:
    curve = of_a_power_law(0.2)
    assert curve.answer == "MoreRows", curve.text
    assert "More data may be enough" in (evaluated((AT_LEAST, 150), curve=curve) or ""), "0.75, and 0.78 is near 0.8"
    assert evaluated((AT_LEAST | {"minimum": 0.9}, 80), curve=curve) is None, "0.4, and 0.48 is far from 0.9"


def test_one_gate_out_of_reach_is_enough_for_a_larger_model() -> None:
    curve, valid = of_a_power_law(0.2), {"metric": "JsonValid", "minimum": 0.95}
    assert evaluated((AT_LEAST, 150), (valid, 40), curve=curve) is None
    assert evaluated((AT_LEAST, 150), (valid, 200), curve=curve)
    forgotten = {"metric": "Forgetting", "maximum": 0.05, "confidence": 0.5}
    assert evaluated((AT_LEAST, 150), (forgotten, 100), curve=curve) is None, "the loss promises nothing about it"


def test_steps_are_promised_as_much_as_the_last_ones_brought() -> None:
    flat = results.MoreData(answer="NoMore", text="No more.")
    assert "More steps" in (evaluated((AT_LEAST, 150), curve=flat, validations=losses(1.0, 0.9, 0.7)) or "")
    assert evaluated((AT_LEAST, 60), curve=flat, validations=losses(1.0, 0.9, 0.7)) is None


@pytest.mark.parametrize(
    "gate, tuned, others, lower, near",
    [
        (BEST, share(75), {"FewShot": share(90)}, 0.5, True),
        (BEST, share(40), {"FewShot": share(90)}, 0.1, False),
        (AT_LEAST | {"confidence": 0.5}, share(78), {}, 0.1, True),
        (AT_LEAST | {"confidence": 0.5}, share(60), {}, 0.1, False),
        ({"metric": "InvalidLabels", "maximum": 0.1}, share(18), {}, 0.3, True),
        ({"metric": "InvalidLabels", "maximum": 0.1}, share(60), {}, 0.3, False),
        ({"metric": "Perplexity", "maximum": 4.0}, evidence.mean(5 + np.linspace(-0.1, 0.1, 100)), {}, 0.2, True),
        ({"metric": "Perplexity", "maximum": 4.0}, evidence.mean(9 + np.linspace(-0.1, 0.1, 100)), {}, 0.2, False),
    ],
)
def test_a_gate_is_in_reach_where_fewer_wrong_answers_would_not_miss_it_by_evidence(
    gate: dict[str, Any], tuned: evidence.Column, others: dict[str, evidence.Column], lower: float, near: bool
) -> None:
    made = job.Gate.model_validate(gate)
    assert of(gate, tuned, **others) == "ByEvidence"
    values: gates.Values = {TUNED: {made.metric: tuned}}
    values |= {job.Contender(name): {made.metric: column} for name, column in others.items()}
    assert missed.in_reach(made, lower, values) is near
