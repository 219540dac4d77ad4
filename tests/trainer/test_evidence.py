"""Intervals, bounds and paired tests, against their definitions and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from finetune_trainer.evaluation import evidence


def share(hits: int, examples: int) -> evidence.Column:
    return evidence.mean([1.0] * hits + [0.0] * (examples - hits), share=True)


def test_the_interval_of_a_share_is_wilsons() -> None:
    low, high = evidence.interval(share(8, 10)) or (0, 0)
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert evidence.interval(share(1, 1)) is None


def test_the_interval_of_a_mean_is_that_of_the_textbook_for_many_examples() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = evidence.interval(evidence.mean(values)) or (0, 0)
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_examples_without_a_value_count_for_nothing() -> None:
    column = evidence.mean([1.0, float("nan"), 0.0], share=True)
    assert (column.value, column.examples) == (0.5, 2)
    other = evidence.mean([float("nan"), 1.0, 0.0], share=True)
    assert evidence.compare(column, other).gain == 0.0, "only the example that both have"


def test_more_examples_than_are_resampled_one_by_one_are_put_together() -> None:
    values = np.random.default_rng(2).normal(1.0, 1.0, 20_000)
    low, high = evidence.interval(evidence.mean(values)) or (0, 0)
    assert high - low == pytest.approx(2 * 1.96 / math.sqrt(20_000), rel=0.1)


def test_better_in_shares_is_the_exact_test_of_mcnemar() -> None:
    one = evidence.mean([1, 1, 1, 1, 0, 1, 0], share=True)
    other = evidence.mean([0, 0, 0, 0, 1, 1, 0], share=True)
    found = evidence.compare(one, other)
    assert found.gain == pytest.approx(3 / 7)
    assert found.p_value == pytest.approx(stats.binomtest(4, 5, 0.5, alternative="greater").pvalue)


def test_lower_is_better_turns_the_comparison_round() -> None:
    low, high = evidence.mean(np.linspace(0, 1, 60)), evidence.mean(np.linspace(0, 1, 60) + 0.2)
    assert evidence.compare(low, high, lower_is_better=True).gain == pytest.approx(0.2)
    assert evidence.compare(low, high, lower_is_better=True).p_value < 0.001
    assert evidence.compare(low, high).p_value > 0.99


def test_equal_contenders_are_no_gain() -> None:
    column = evidence.mean(np.linspace(0, 1, 30))
    found = evidence.compare(column, column)
    assert (found.gain, found.low, found.high) == (0.0, 0.0, 0.0)
    assert found.p_value == 1.0


def test_one_example_proves_nothing() -> None:
    assert evidence.compare(share(1, 1), share(0, 1)).p_value == 1.0


LEVEL, TRIALS = 0.05, 1_500
TOLERATED = LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / TRIALS)
"""What a rate of LEVEL may look like in TRIALS simulated evaluations."""


@pytest.mark.parametrize("examples", [20, 60, 200])
@pytest.mark.parametrize("differ", [0.3, 0.1, 0.05])
@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_a_model_that_is_not_better_seldom_passes_by_chance(examples: int, differ: float, margin: float) -> None:
    """`differ`: the share of examples that one model alone answers rightly; the true gain is the margin itself."""
    draw = np.random.default_rng(examples)
    wins, losses = (differ + margin) / 2, (differ - margin) / 2
    counts = draw.multinomial(examples, [wins, losses, 1 - wins - losses], size=TRIALS)
    passed = [
        max(evidence.mcnemar(won, lost), evidence.tango(won, lost, examples, margin) if margin else 0.0) <= LEVEL
        for won, lost, _ in counts.tolist()
    ]
    assert np.mean(passed) <= TOLERATED


@pytest.mark.parametrize("examples", [20, 100])
@pytest.mark.parametrize("margin", [0.0, 0.1])
def test_nor_does_one_by_a_metric_that_is_no_share(
    examples: int, margin: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "RESAMPLES", 400)
    evidence._draws.cache_clear()
    draw = np.random.default_rng(examples)
    passed = []
    for _ in range(400):
        other = draw.beta(2, 2, examples)
        one = other + margin + draw.normal(0, 0.3, examples)
        passed.append(evidence.compare(evidence.mean(one), evidence.mean(other), margin=margin).p_value <= LEVEL)
    evidence._draws.cache_clear()
    assert np.mean(passed) <= LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / 400) + 0.01


@pytest.mark.parametrize("examples", [15, 40, 150])
def test_a_model_below_the_minimum_seldom_passes_by_chance(examples: int) -> None:
    hits = np.random.default_rng(examples).binomial(examples, 0.8, TRIALS)
    known = {n: evidence.p_value_at_least(share(n, examples), 0.8) for n in set(hits.tolist())}
    assert np.mean([known[n] <= LEVEL for n in hits.tolist()]) <= TOLERATED


@pytest.mark.parametrize("examples", [15, 60, 200])
@pytest.mark.parametrize("ties", [0.0, 0.3, 0.8])
def test_equal_contenders_seldom_win_pairwise_comparisons_by_chance(examples: int, ties: float) -> None:
    draw = np.random.default_rng(examples)
    lucky = 0
    for wins, tied, losses in draw.multinomial(examples, [(1 - ties) / 2, ties, (1 - ties) / 2], size=TRIALS):
        lucky += evidence.WinLoss(int(wins), int(tied), int(losses)).p_value_better <= LEVEL
    assert lucky / TRIALS <= TOLERATED


@pytest.mark.parametrize("examples", [15, 60, 200])
@pytest.mark.parametrize("ties", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("minimum", [0.5, 0.6, 0.75])
def test_a_win_rate_below_the_minimum_seldom_passes_by_chance(examples: int, ties: float, minimum: float) -> None:
    """The true rate is the minimum itself, ties counted half."""
    probabilities = [minimum - ties / 2, ties, 1 - minimum - ties / 2]
    draw = np.random.default_rng(examples)
    lucky = 0
    for wins, tied, losses in draw.multinomial(examples, probabilities, size=TRIALS):
        lucky += evidence.WinLoss(int(wins), int(tied), int(losses)).p_value_at_least(minimum) <= LEVEL
    assert lucky / TRIALS <= TOLERATED


@pytest.mark.parametrize("examples", [15, 60, 200])
@pytest.mark.parametrize("ties, rate", [(0.0, 0.5), (0.0, 0.9), (0.3, 0.7), (0.8, 0.5)])
def test_the_interval_of_a_win_rate_contains_it(examples: int, ties: float, rate: float) -> None:
    draw = np.random.default_rng(examples)
    inside = 0
    for wins, tied, losses in draw.multinomial(examples, [rate - ties / 2, ties, 1 - rate - ties / 2], size=TRIALS):
        low, high = evidence.WinLoss(int(wins), int(tied), int(losses)).interval() or (0, 0)
        inside += low <= rate <= high
    # Wilson's interval holds a share in about 95 of 100 cases; with few examples a little less often at its worst.
    assert inside / TRIALS >= 0.92


def test_the_interval_of_a_win_rate_without_ties_is_wilsons() -> None:
    assert evidence.WinLoss(8, 0, 2).interval() == pytest.approx(evidence.interval(share(8, 10)))
    assert evidence.WinLoss(1, 0, 0).interval() is None
    assert evidence.WinLoss(0, 0, 0).rate == 0.5


def test_ties_prove_nothing() -> None:
    assert evidence.WinLoss(3, 97, 0).p_value_better == evidence.WinLoss(3, 0, 0).p_value_better == 0.125
    assert evidence.WinLoss(0, 100, 0).p_value_better == 1.0
    assert evidence.WinLoss(0, 0, 0).p_value_at_least(0.5) == 1.0


def test_a_model_that_is_better_passes() -> None:
    """The tests are strict, not blind: 90 % against 70 % on 100 examples."""
    draw = np.random.default_rng(7)
    counts = draw.multinomial(100, [0.25, 0.05, 0.70], size=300)
    assert np.mean([evidence.mcnemar(won, lost) <= LEVEL for won, lost, _ in counts.tolist()]) > 0.9
