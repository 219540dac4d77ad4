"""How often a model passes that should not, by simulation: "better than the best of k baselines", and bounds of means.

A true null: the tuned model is exactly as good as the best baseline, on questions of different difficulty, so that contenders are
right on the same ones. docs/reference/evaluation.md has the table.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from scipy import stats

from finetune_api import evaluation, job
from finetune_trainer.evaluation import doubt, evidence, gates, means

LEVEL = 0.05
TRIALS = 2_000
TOLERATED = LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / TRIALS)
"""What a rate of LEVEL may look like in so many trials."""

Draw = np.random.Generator
Pairs = Callable[[Draw, tuple[int, int]], tuple[Any, Any]]


def scores(draw: Draw, shape: tuple[int, ...], hard: Any = None) -> Any:
    """Where each answer of a contender lies among all, 0 to 1: half of it is the question's difficulty."""
    hard = draw.normal(size=shape) if hard is None else hard
    return stats.norm.cdf((hard + draw.normal(size=shape)) / math.sqrt(2))


# --- The best of k ---


def false_passes(count: int, examples: int, rates: list[float]) -> tuple[float, float]:
    """The share of trials in which a tuned model, as good as the best baseline, passes over each of them; and in which it passes
    over any of them: what a gate would do that takes the wrong one for the best."""
    draw = np.random.default_rng([count, examples])
    hard = draw.normal(size=(TRIALS, examples))
    tuned = scores(draw, hard.shape, hard) < max(rates)
    p_values = []
    for rate in rates:
        other = scores(draw, hard.shape, hard) < rate
        p_values.append(evidence.paired((tuned & ~other).sum(1), (other & ~tuned).sum(1), examples))
    return float((np.max(p_values, 0) <= LEVEL).mean()), float((np.min(p_values, 0) <= LEVEL).mean())


@pytest.mark.parametrize("examples", [30, 100, 300])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_better_than_the_best_of_k_in_shares(count: int, examples: int) -> None:
    """All as good as the best, and all but one a little worse."""
    equal, _ = false_passes(count, examples, [0.6] * count)
    different, over_one = false_passes(count, examples, [0.6, *np.linspace(0.4, 0.58, count - 1)])
    assert max(equal, different) <= TOLERATED
    assert count == 1 or over_one > 0.2, "a gate that takes any of them for the best would be seen"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(evidence, "RESAMPLES", 1_000)
    evidence._draws.cache_clear()
    yield
    evidence._draws.cache_clear()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("metric", [job.Metric.EXACT_MATCH, job.Metric.ROUGE_L])
@pytest.mark.parametrize("count, examples", [(3, 100), (7, 30)])
def test_the_gate_itself_over_the_best_of_k(metric: job.Metric, count: int, examples: int) -> None:
    """Fewer trials, through `gates.check`: it takes the hardest of its tests, whichever baseline the data make the best."""
    draw, gate = np.random.default_rng([count, examples]), job.Gate(metric=metric, over="BestBaseline")
    trials, passed = 100, 0
    for _ in range(trials):
        hard = draw.normal(size=examples)
        values: gates.Values = {}
        for who in [*list(evaluation.BASELINES)[:count], job.Contender.TUNED]:
            place = scores(draw, hard.shape, hard)
            share = metric is job.Metric.EXACT_MATCH
            each = (place < 0.6).astype(float) if share else place**0.5
            values[who] = {metric: column(each, share=share)}
        passed += gates.check([gate], values)[0].passed
    assert passed / trials <= LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / trials)


# --- One baseline, metrics that are no shares ---


def alike(draw: Draw, shape: tuple[int, int]) -> tuple[Any, Any]:
    hard = draw.normal(size=shape)
    one, other = (scores(draw, shape, hard) ** 0.5 for _ in range(2))
    return one, other


def fails_sometimes(draw: Draw, shape: tuple[int, int]) -> tuple[Any, Any]:
    """Perfect in 19 of 20 answers and useless in the other, against one that is nearly perfect in each."""
    return (draw.random(shape) < 0.95).astype(float), draw.beta(9.5, 0.5, shape)


def fails_often(draw: Draw, shape: tuple[int, int]) -> tuple[Any, Any]:
    return (draw.random(shape) < 0.8).astype(float), draw.beta(8, 2, shape)


def p_values(pairs: Pairs, examples: int) -> tuple[Any, Any]:
    """Of each trial: the permutation test alone, and with what few examples hide, as `evidence.compare` takes them."""
    draw = np.random.default_rng(examples)
    one, other = pairs(draw, (examples, TRIALS))
    gains = one - other
    signs = 2.0 * draw.integers(0, 2, size=(2_000, examples)) - 1
    swapped = (1 + (signs @ gains >= gains.sum(0) - 1e-12).sum(0)) / 2_001
    hidden = [max(means.skewed(each), means.unseen(each.mean(), 1.0, examples)) for each in gains.T]
    return swapped, np.maximum(swapped, hidden)


@pytest.mark.parametrize("examples", [5, 30, 100, 300])
@pytest.mark.parametrize("pairs", [alike, fails_sometimes, fails_often])
def test_better_by_a_metric_that_is_no_share(pairs: Pairs, examples: int) -> None:
    _, found = p_values(pairs, examples)
    assert (found <= LEVEL).mean() <= TOLERATED


def test_the_permutation_test_alone_is_fooled_by_failures_that_few_examples_hide() -> None:
    swapped, _ = p_values(fails_sometimes, 30)
    assert (swapped <= LEVEL).mean() > 0.15


def test_a_model_that_is_better_still_passes() -> None:
    def better(draw: Draw, shape: tuple[int, int]) -> tuple[Any, Any]:
        other = draw.beta(4, 4, shape)
        return np.clip(other + draw.normal(0.2, 0.3, shape), 0, 1), other

    swapped, found = p_values(better, 30)
    assert (found <= LEVEL).mean() > 0.8
    assert (swapped <= LEVEL).mean() - (found <= LEVEL).mean() < 0.08, "what the rest costs"


# --- Bounds of means ---


def column(values: Any, *, share: bool = False, bounded: bool = True) -> evidence.Column:
    made = evidence.mean(values, share=share)
    return evidence.Column(made.parts, made.of, made.defined, share, None, bounded)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("examples", [2, 5, 10, 30, 100])
@pytest.mark.parametrize(
    "drawn, truth, bounded",
    [
        (lambda draw, n: draw.normal(0.8, 0.05, n), 0.8, False),
        (lambda draw, n: draw.beta(9.5, 0.5, n), 0.95, True),
        (lambda draw, n: draw.beta(0.6, 0.4, n), 0.6, True),
        (lambda draw, n: np.where(draw.random(n) < 0.1, 0.0, draw.beta(80, 10, n)), 0.8, True),
    ],
    ids=["loss", "nearly perfect", "all or nothing", "fails in one of ten"],
)
def test_a_model_at_its_bound_seldom_passes(drawn: Any, truth: float, bounded: bool, examples: int) -> None:
    draw, trials = np.random.default_rng(examples), 200
    lucky = [evidence.p_value_at_least(column(drawn(draw, examples), bounded=bounded), truth) for _ in range(trials)]
    assert np.mean(np.array(lucky) <= LEVEL) <= LEVEL + 4 * math.sqrt(LEVEL * (1 - LEVEL) / trials)


@pytest.mark.parametrize("examples", [2, 3, 4, 5, 14])
def test_answers_that_are_all_the_same_prove_no_more_than_the_same_number_of_right_ones(examples: int) -> None:
    right = evidence.p_value_at_least(column([1.0] * examples, share=True), 0.8)
    assert evidence.p_value_at_least(column([1.0] * examples), 0.8) == pytest.approx(right)
    assert evidence.p_value_at_most(column([0.0] * examples), 0.2) == pytest.approx(right)
    assert evidence.p_value_at_least(column([0.81] * examples, bounded=False), 0.8) == 0.5**examples
    equal = column([0.8] * examples), column([0.1] * examples)
    assert evidence.compare(*equal).p_value >= 1.7**-examples - 1e-9


def test_a_mean_of_few_examples_fails_its_gate_and_says_why() -> None:
    gate = job.Gate(metric=job.Metric.LOSS, maximum=1.5)
    few, enough = ({job.Contender.TUNED: {gate.metric: column(np.linspace(1, 1.1, n), bounded=False)}} for n in (3, 6))
    (found,) = gates.check([gate], few)
    assert not found.passed
    assert "too few examples to be sure" in found.observed
    assert "test more examples" in found.observed
    assert gates.check([gate], enough)[0].passed


@pytest.mark.parametrize("gate", [{"metric": "RougeL", "minimum": 1}, {"metric": "Repetition", "maximum": 0}])
def test_a_bound_at_the_end_of_the_scale_needs_no_evidence(gate: dict[str, Any]) -> None:
    made = job.Gate.model_validate(gate)
    (found,) = gates.check([made], {job.Contender.TUNED: {made.metric: column([made.minimum or 0.0] * 3)}})
    assert found.passed


# --- A prompt that is enough, before training ---


@pytest.mark.parametrize("examples", [24, 60, 300])
@pytest.mark.parametrize("bound", [0.5, 0.8, 0.95])
def test_a_prompt_at_the_bound_is_seldom_enough_however_many_are_tried(examples: int, bound: float) -> None:
    """Every contender is just at the bound in each way in which it may be asked, independently; the way that does best on the
    first look is kept."""
    draw, gate = np.random.default_rng(examples), job.Gate(metric=job.Metric.EXACT_MATCH, minimum=bound)
    shared = doubt.among([*evaluation.BASELINES, job.Contender("large")], 9)
    looks = [size for size in doubt.ROUNDS if size < examples] + [examples]
    passed = np.zeros(TRIALS, dtype=bool)
    for which, ways in shared.ways.items():
        right = (draw.random((TRIALS, ways, examples)) < bound).cumsum(2)
        best = right[np.arange(TRIALS), right[:, :, looks[0] - 1].argmax(1)]
        allowed = 1 - shared.gate(gate, which, examples).confidence
        for look in looks:
            passed |= stats.binom.sf(best[:, look - 1] - 1, look, bound) <= allowed
    assert passed.mean() <= TOLERATED
