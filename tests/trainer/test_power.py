"""How many examples a gate needs: against simulated evaluations, which use the gates' own tests, and in what preflight says."""

import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.trainer import tiny

from finetune_api import job, run
from finetune_trainer.data import dataset
from finetune_trainer.evaluation import evidence, feasible, gates, power
from finetune_trainer.stages import preflight

World = Callable[..., run.Run]

TRIALS = 2_000
NOISE = 3 * math.sqrt(power.POWER * (1 - power.POWER) / TRIALS)
TUNED, BASE = job.Contender.TUNED, job.Contender.BASE


def gate(metric: str = "ExactMatch", **rules: Any) -> job.Gate:
    return job.Gate.model_validate({"metric": metric, **rules})


def of(examples: int, **rules: Any) -> power.Power:
    (found,) = power.before(gate(**rules), examples)
    return found


def passing(examples: int, minimum: float, truth: float) -> float:
    """How often a model with this true value passes `minimum` in simulated evaluations."""
    hits = np.random.default_rng(examples).binomial(examples, truth, TRIALS)
    known = {
        n: evidence.p_value_at_least(evidence.mean([1.0] * n + [0.0] * (examples - n), share=True), minimum) <= 0.05
        for n in set(hits.tolist())
    }
    return float(np.mean([known[n] for n in hits.tolist()]))


def beating(examples: int, gain: float, margin: float) -> float:
    """How often a model that is truly better by `gain` passes a gate over another by `margin`."""
    wins, losses = gain + power.LOSSES, power.LOSSES
    counts = np.random.default_rng(examples).multinomial(examples, [wins, losses, 1 - wins - losses], size=TRIALS)
    return float(np.mean(evidence.paired(counts[:, 0], counts[:, 1], examples, margin) <= 0.05))


@pytest.mark.parametrize("minimum", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("examples", [60, 200])
def test_a_model_at_the_least_value_passes_a_minimum_in_80_of_100_cases(examples: int, minimum: float) -> None:
    least = of(examples, minimum=minimum).least
    assert least is not None
    assert passing(examples, minimum, least) == pytest.approx(power.POWER, abs=NOISE)


@pytest.mark.parametrize("minimum", [0.5, 0.8, 0.95])
def test_a_plausible_model_passes_a_minimum_with_the_needed_examples_and_seldom_enough_with_half(
    minimum: float,
) -> None:
    found = of(10, minimum=minimum)
    assert found.needed is not None
    assert found.plausible is not None
    assert not found.enough
    assert passing(found.needed, minimum, found.plausible) >= power.POWER - NOISE
    assert passing(found.needed // 2, minimum, found.plausible) < power.POWER - NOISE
    assert of(found.needed, minimum=minimum).enough


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("examples", [40, 200])
def test_a_model_with_the_least_gain_beats_another_in_80_of_100_cases(examples: int, margin: float) -> None:
    least = of(examples, over="Base", improvement=margin).least
    assert least is not None
    # A saw in the number of examples: the smallest gain reaches the power, and not much more.
    assert beating(examples, least, margin) == pytest.approx(power.POWER, abs=NOISE + 0.02)


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.2])
def test_a_plausible_gain_is_shown_with_the_needed_examples_and_not_with_half(margin: float) -> None:
    found = of(20, over="BestBaseline", improvement=margin)
    assert found.needed is not None
    assert found.plausible is not None
    assert not found.enough
    assert beating(found.needed, found.plausible, margin) >= power.POWER - NOISE
    assert beating(found.needed // 2, found.plausible, margin) < power.POWER - NOISE


def test_a_maximum_mirrors_a_minimum() -> None:
    low, high = of(80, metric="InvalidLabels", maximum=0.1), of(80, minimum=0.9)
    assert (low.least, low.plausible) == pytest.approx((1 - (high.least or 0), 1 - (high.plausible or 0)))
    assert low.needed == high.needed


@pytest.mark.parametrize(
    "rules",
    [
        {"minimum": 0.8, "confidence": 0.5},
        {"minimum": 1},
        {"minimum": 0},
        {"maximum": 0},
        {"over": "Serving"},
        {"over": "Base", "improvement": 1},
        {"metric": "JudgeWinRate", "over": "Serving"},
    ],
)
def test_gates_that_the_value_alone_decides_have_no_power(rules: dict[str, Any]) -> None:
    assert power.before(gate(**rules), 50) == []


@pytest.mark.parametrize("improvement", [0.9, 0.96])
def test_a_gate_with_hardly_any_room_above_it_is_computed_too(improvement: float) -> None:
    found = of(50, over="Base", improvement=improvement)
    assert found.plausible is not None
    assert improvement < found.plausible < 1
    assert of(5, over="Base", improvement=improvement).least is None, "so few examples show nothing"


def test_what_is_no_share_is_measured_by_the_spread_of_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """By simulation: a model with that true gain passes in about 80 of 100 cases."""
    monkeypatch.setattr(evidence, "RESAMPLES", 400)
    evidence._draws.cache_clear()
    draw, asked = np.random.default_rng(3), gate("RougeL", over="Base", improvement=0.05)
    before, noise = draw.beta(2, 2, 80), draw.normal(0, 0.2, 80)

    def values(gain: float, other: Any, around: Any) -> gates.Values:
        return {
            TUNED: {job.Metric.ROUGE_L: evidence.mean(other + gain + around)},
            BASE: {job.Metric.ROUGE_L: evidence.mean(other)},
        }

    (found,) = power.after(asked, values(0.1, before, noise))
    assert found.least == pytest.approx(0.05 + 2.486 * 0.2 / math.sqrt(80), rel=0.2)
    assert found.enough, "nobody knows a plausible gain of it"
    passed = [
        gates.check([asked], values(found.least or 0, draw.beta(2, 2, 80), draw.normal(0, 0.2, 80)))[0].passed
        for _ in range(200)
    ]
    evidence._draws.cache_clear()
    assert np.mean(passed) == pytest.approx(power.POWER, abs=0.12)


# --- What preflight says ---


def examples(count: int) -> list[dataset.Example]:
    return [
        dataset.example({"prompt": f"What is {n}?", "completion": "a"}, job.Format.PROMPT_COMPLETION, f"a.jsonl:{n}")
        for n in range(count)
    ]


@pytest.mark.parametrize(
    "stated, count, words",
    [
        ({"gates": [{"metric": "ExactMatch", "minimum": 0.8}]}, 30, ["ExactMatch at least 0.8", "0.948", "about 94"]),
        ({"gates": [{"metric": "ExactMatch", "minimum": 0.8}]}, 94, []),
        ({"gates": [{"metric": "ExactMatch", "over": "Base"}]}, 30, ["better than Base", "0.1 ", "about 134"]),
        ({"gates": [{"metric": "Loss", "over": "Base"}]}, 5, []),
        ({"gates": [{"metric": "Loss", "over": "Base"}]}, 4, ["Loss better than Base", "4 examples", "takes 5"]),
        ({"gates": [{"metric": "Loss", "maximum": 2, "over": "Serving"}]}, 4, ["takes 5"]),
        ({"gates": [{"metric": "Loss", "over": "Serving"}]}, 4, []),
        ({"gates": [{"metric": "Loss", "maximum": 2, "confidence": 0.5}]}, 1, []),
        ({"gates": []}, 5, []),
        ({}, 30, ["better than the best baseline", "about 134"]),
        ({}, 134, []),
        ({}, 4, ["4 examples prove nothing"]),
    ],
)
def test_gates_for_which_the_test_examples_are_too_few_are_named(
    stated: dict[str, Any], count: int, words: list[str]
) -> None:
    found = feasible.short(job.Evaluation.model_validate(stated), examples(count))
    assert bool(found) == bool(words)
    assert [word for word in words if word not in found[0]] == []


def test_preflight_says_how_many_test_examples_a_gate_needs_and_an_edited_gate_is_judged_again(
    world: World,
) -> None:
    def advice(gate: dict[str, Any], **rules: Any) -> list[str]:
        spec = world(tiny.examples(300), evaluation={"gates": [gate], **rules})
        assert preflight.preflight(spec).preflight is not None
        document = json.loads(pathlib.Path(spec.layout.preflight.removeprefix("file://")).read_text())
        return [one["text"] for one in document["advice"] if one["rule"] == "test_examples_are_too_few"]

    (text,) = advice({"metric": "ExactMatch", "minimum": 0.8})
    assert "with 30 examples" in text
    assert "about 94 examples" in text
    assert "dataset.test" in text
    assert advice({"metric": "ExactMatch", "minimum": 0.8, "confidence": 0.5}) == []
    (text,) = advice({"metric": "ExactMatch", "minimum": 0.5}, maximumExamples=20)
    assert "evaluation.maximumExamples" in text


@pytest.mark.parametrize(
    "rules, row",
    [
        ({"minimum": 0.5}, "`minimum: 0.5`"),
        ({"minimum": 0.8}, "`minimum: 0.8`"),
        ({"minimum": 0.9}, "`minimum: 0.9`"),
        ({"minimum": 0.95}, "`minimum: 0.95`"),
        ({"over": "Base"}, "`over: Base`"),
        ({"over": "Base", "improvement": 0.05}, "`improvement: 0.05`"),
        ({"over": "Base", "improvement": 0.2}, "`improvement: 0.2`"),
    ],
)
def test_the_documented_numbers_of_examples_are_those_computed(rules: dict[str, Any], row: str) -> None:
    page = pathlib.Path(__file__).parents[2] / "docs" / "reference" / "evaluation.md"
    (line,) = [one for one in page.read_text().splitlines() if one.startswith("|") and row in one]
    found = of(10, **rules)
    assert f"{found.plausible:g}" in line
    assert f"{found.needed} examples" in line


def test_preflight_says_how_many_validation_examples_it_takes_to_find_a_prompt_enough(world: World) -> None:
    def advice(gate: dict[str, Any], **intent: Any) -> list[str]:
        spec = world(tiny.examples(300), evaluation={"gates": [gate]}, intent=intent)
        assert preflight.preflight(spec).preflight is not None
        document = json.loads(pathlib.Path(spec.layout.preflight.removeprefix("file://")).read_text())
        return [one["text"] for one in document["advice"] if one["rule"] == "validation_examples_are_too_few"]

    exact = {"metric": "ExactMatch", "minimum": 0.8}
    (text,) = advice(exact)
    assert (
        "ExactMatch at least 0.8 takes 20 validation examples where every contender is asked, and there are 15." in text
    )
    assert advice(exact | {"confidence": 0.5}) == []
    assert advice({"metric": "ExactMatch", "over": "Base"}) == [], "nothing is decided before training"
    assert advice(exact, advice="Ignore") == []
