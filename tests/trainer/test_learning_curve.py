"""Whether more data would help: on curves that were made, so that the answer is known."""

from collections.abc import Callable

import numpy as np
import pytest

from finetune_api import results
from finetune_trainer.planning import learning_curve

ROWS = 1_000
SEEN = (np.arange(24) + 0.5) / 24 * ROWS


def estimate(curve: Callable[[float], float], noise: float, seed: int) -> results.MoreData:
    drawn = np.random.default_rng(seed).normal(0, noise, len(SEEN))
    return learning_curve.estimate(SEEN, [curve(x) * (1 + one) for x, one in zip(SEEN, drawn, strict=True)], ROWS)


def power(floor: float, exponent: float, start: float = 20) -> tuple[Callable[[float], float], float]:
    """A curve, and the more rows that its loss after ROWS takes to be 5 % lower."""

    def curve(rows: float) -> float:
        return floor + 10 * (rows + start) ** -exponent

    target = 0.95 * curve(ROWS)
    return curve, float((10 / (target - floor)) ** (1 / exponent) - start - ROWS)


@pytest.mark.parametrize("floor, exponent, noise", [(0.0, 0.4, 0.01), (0.3, 0.5, 0.05), (0.0, 0.2, 0.02)])
def test_the_interval_has_the_rows_that_the_true_curve_takes(floor: float, exponent: float, noise: float) -> None:
    curve, truth = power(floor, exponent)
    found = [estimate(curve, noise, seed) for seed in range(12)]
    answered = [one for one in found if one.rows is not None and one.low is not None and one.high is not None]
    assert len(answered) >= 10
    # Twelve intervals of 95 % miss three times or more in 2 of 100 cases; rounding to two digits counts.
    assert sum(0.97 * (one.low or 0) <= truth <= 1.03 * (one.high or 0) for one in answered) >= len(answered) - 2
    assert 0.5 * truth < np.median([one.rows or 0 for one in answered]) < 2 * truth


@pytest.mark.parametrize("curve", [lambda rows: 1.0, lambda rows: 1 + 5 * (rows + 20) ** -0.8], ids=["flat", "ended"])
def test_a_curve_that_has_ended_needs_no_more_rows(curve: Callable[[float], float]) -> None:
    for seed in range(6):
        found = estimate(curve, 0.02, seed)
        assert (found.answer, found.rows) == ("NoMore", None)
        assert "not even twice the 1,000 rows would lower the loss by 5 %" in found.text


def test_a_remedy_promises_the_loss_that_the_curve_has_with_twice_the_rows() -> None:
    """A floor leaves less than the power law through the point of 5 % would."""
    curve, needed = power(0.1, 0.8)
    assert needed < ROWS / 3
    promised = learning_curve.remedy(estimate(curve, 0.0, 1), [], {"examples": ROWS})
    assert promised is not None
    assert promised.lower == pytest.approx(1 - curve(2 * ROWS) / curve(ROWS), abs=0.012)


def test_a_loss_that_rises_is_no_reason_for_more_rows() -> None:
    assert estimate(lambda rows: 1 + rows / 5_000, 0.01, 1).answer != "MoreRows"


def test_scattered_losses_tell_nothing() -> None:
    curve, _ = power(0.3, 0.3)
    found = estimate(curve, 0.4, 1)
    assert found.answer == "CannotTell"
    assert "more than nine times the 1,000 there are" in found.text


def history(steps: int, batch: int, *, falling: bool = False) -> list[dict[str, float]]:
    curve, _ = power(0.0, 0.4)
    rng = np.random.default_rng(3)
    return [
        {
            "step": step,
            "loss": curve((step - 1) * batch) * (1 + rng.normal(0, 0.03)),
            "learningRate": 1 - step / steps if falling else 1.0,
        }
        for step in range(1, steps + 1)
    ]


def test_only_the_first_epoch_counts() -> None:
    once = history(100, 10)
    again = [*once, *({**one, "step": one["step"] + 100, "loss": 0.01} for one in once)]
    assert learning_curve.of_training(once, 10, ROWS) == learning_curve.of_training(again, 10, ROWS)
    assert learning_curve.of_training(once, 10, ROWS).answer == "MoreRows"


def test_steps_at_a_falling_learning_rate_do_not_count() -> None:
    steps = history(100, 10, falling=True)
    broken = [one if one["learningRate"] >= 0.5 else {**one, "loss": 0.01} for one in steps]
    assert learning_curve.of_training(steps, 10, ROWS) == learning_curve.of_training(broken, 10, ROWS)


@pytest.mark.parametrize("steps, mixed, words", [(7, False, "has 7 steps"), (100, True, "training.replay mixes")])
def test_too_few_or_mixed_steps_tell_nothing(steps: int, mixed: bool, words: str) -> None:
    found = learning_curve.of_training(history(steps, 10), 10, ROWS, mixed=mixed)
    assert found.answer == "CannotTell"
    assert found.text.startswith("Cannot tell: ")
    assert words in found.text
