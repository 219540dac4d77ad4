"""Gates over the best baseline, and the gates of a job that states none: by simulation, and on a tiny model."""

import json
import pathlib
from collections.abc import Callable

import numpy as np
import pytest
from tests.trainer import tiny

from finetune_api import evaluation, job, run
from finetune_trainer.evaluation import evidence, gates, headline
from finetune_trainer.stages import evaluate, preflight, train

World = Callable[..., run.Run]
EXACT, LOSS, FORGETTING = job.Metric.EXACT_MATCH, job.Metric.LOSS, job.Metric.FORGETTING
TUNED, BASE, FEW = job.Contender.TUNED, job.Contender.BASE, job.Contender.FEW_SHOT
OVER_BEST = job.Gate(metric=EXACT, over="BestBaseline")

TRIALS = 400
TOO_OFTEN = 0.085
"""A share of false passes that a level of 0.05 exceeds in one of a thousand such runs (binomial, 400 trials)."""


def share(hits: int, examples: int = 100) -> evidence.Column:
    return evidence.mean([1.0] * hits + [0.0] * (examples - hits), share=True)


def measured(tuned: int, **baselines: int) -> gates.Values:
    found = {job.Contender(name): {EXACT: share(hits)} for name, hits in baselines.items()}
    return {TUNED: {EXACT: share(tuned)}} | found


def test_better_than_the_best_is_better_than_each() -> None:
    (found,) = gates.check([OVER_BEST], measured(90, Base=10, FewShot=40, Retrieved=75))
    assert found.passed
    assert found.requirement == "ExactMatch better than the best baseline"
    assert "Retrieved 0.7500" in found.observed


def test_the_baseline_that_is_not_beaten_is_named() -> None:
    (found,) = gates.check([OVER_BEST], measured(90, Base=10, FewShot=40, Retrieved=88, ManyShot=87))
    assert not found.passed
    assert "Retrieved 0.8800" in found.observed
    assert "nor is it shown to be better than ManyShot" in found.observed


def test_a_margin_holds_against_every_baseline() -> None:
    gate = job.Gate(metric=EXACT, over="BestBaseline", improvement=0.3)
    (found,) = gates.check([gate], measured(90, Base=10, Retrieved=75))
    assert not found.passed
    assert found.requirement == "ExactMatch better than the best baseline by at least 0.3"


def test_without_any_baseline_the_gate_fails_and_says_so() -> None:
    (found,) = gates.check([OVER_BEST], {TUNED: {EXACT: share(90)}})
    assert (found.passed, found.observed) == (False, "no baseline was measured; see evaluation.baselines")


def test_a_judges_preference_is_required_over_every_baseline() -> None:
    gate = job.Gate(metric=job.Metric.JUDGE_WIN_RATE, over="BestBaseline")
    clear, even = evidence.WinLoss(40, 10, 5), evidence.WinLoss(20, 10, 18)
    (found,) = gates.check([gate], {}, win_losses={BASE: clear, FEW: clear, job.Contender.SERVING: even})
    assert found.passed, "what serves is no baseline"
    (found,) = gates.check([gate], {}, win_losses={BASE: clear, FEW: even})
    assert not found.passed
    assert found.requirement == "JudgeWinRate over the best baseline above 0.5"


def simulated(draw: np.random.Generator, rates: dict[job.Contender, float], examples: int = 80) -> gates.Values:
    """Answers to questions of different difficulty, so that contenders are right on the same ones more often than by chance."""
    difficulty = draw.normal(size=examples)
    found: gates.Values = {}
    for who, rate in rates.items():
        noise = draw.normal(size=examples)
        skill = (difficulty + noise) / np.sqrt(2)
        right = skill < quantile(rate)
        found[who] = {EXACT: evidence.mean(right.astype(float), share=True)}
    return found


def quantile(rate: float) -> float:
    from scipy import stats

    return float(stats.norm.ppf(rate))


@pytest.mark.parametrize(
    "rates",
    [
        [0.6, 0.6, 0.6, 0.6, 0.6],
        [0.1, 0.3, 0.55, 0.6, 0.58],
        [0.6],
        [0.9, 0.9, 0.9, 0.9, 0.9],
    ],
    ids=["equal baselines", "different baselines", "one baseline", "baselines that are nearly always right"],
)
def test_a_model_as_good_as_the_best_baseline_seldom_passes(rates: list[float]) -> None:
    """Which baseline is best is seen in the same data; the rate of false passes stays at the gate's level all the same."""
    draw = np.random.default_rng(7)
    truth = dict(zip(evaluation.BASELINES, rates, strict=False)) | {TUNED: max(rates)}
    passed = sum(gates.check([OVER_BEST], simulated(draw, truth))[0].passed for _ in range(TRIALS))
    assert passed / TRIALS <= TOO_OFTEN


def test_a_model_that_is_much_better_passes_nearly_always() -> None:
    draw = np.random.default_rng(8)
    truth = dict.fromkeys(evaluation.BASELINES, 0.6) | {TUNED: 0.9}
    passed = sum(gates.check([OVER_BEST], simulated(draw, truth))[0].passed for _ in range(100))
    assert passed >= 95


def test_the_default_is_the_best_baseline_by_the_telling_metric_and_a_bound_on_forgetting() -> None:
    values = measured(90, Base=10)
    values[TUNED][FORGETTING] = evidence.mean([0.02] * 10)
    first, second = gates.default(EXACT, values)
    assert (first.metric, first.over) == (EXACT, evaluation.BEST)
    assert (second.metric, second.maximum) == (FORGETTING, evaluation.FORGOTTEN)
    assert [one.metric for one in gates.default(EXACT, measured(90))] == [], "nothing to compare with"
    assert gates.default(None, values) == [second]


def test_a_share_of_right_answers_tells_only_where_somebody_reaches_a_tenth() -> None:
    rouge = job.Metric.ROUGE_L
    similar = evidence.mean([0.4] * 100)
    values = [{EXACT: share(2), rouge: similar}, {EXACT: share(0), rouge: similar}]
    assert headline.telling([], {EXACT, rouge}, values) is rouge
    assert headline.telling([], {EXACT, rouge}, [{EXACT: share(10), rouge: similar}]) is EXACT


def test_with_fewer_than_five_test_examples_the_values_decide() -> None:
    few: gates.Values = {TUNED: {EXACT: share(4, 4)}, BASE: {EXACT: share(1, 4)}}
    assert [one.passed for one in gates.check(gates.default(EXACT, few), few)] == [True]
    few[TUNED] = {EXACT: share(1, 4)}
    assert [one.passed for one in gates.check(gates.default(EXACT, few), few)] == [False], "as good is not better"
    five: gates.Values = {TUNED: {EXACT: share(5, 5)}, BASE: {EXACT: share(1, 5)}}
    assert [one.passed for one in gates.check(gates.default(EXACT, five), five)] == [False], "four wins of five"
    five[BASE] = {EXACT: share(0, 5)}
    assert [one.passed for one in gates.check(gates.default(EXACT, five), five)] == [True]


@pytest.mark.parametrize("steps, passed", [(60, True), (1, False)])
def test_a_job_without_gates_is_held_against_its_baselines(world: World, steps: int, passed: bool) -> None:
    spec = world(
        tiny.examples(120),
        dataset={"test": {"fraction": 0.2}},
        training={"maxSteps": steps},
        evaluation={"generation": {"maxNewTokens": 24}, "forgetting": {"uris": None}},
    )
    assert spec.evaluation.gates is None
    preflight.preflight(spec)
    train.train(spec, 1, 1.0)
    found = evaluate.evaluate(spec, None, None, 1).evaluation
    assert found is not None
    first = found.gates[0]
    assert first.requirement.endswith("better than the best baseline (by default)")
    assert first.passed is passed
    assert found.gates[1].requirement == "Forgetting at most 0.05 (by default)"
    folder = pathlib.Path(spec.layout.evaluation("e1").removeprefix("file://"))
    assert json.loads((folder / "results.json").read_text())["headline"] == first.metric
