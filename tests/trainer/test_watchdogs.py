import math

import pytest
import torch

from finetune_api import exits, reasons
from finetune_trainer.process import errors
from finetune_trainer.training import watchdogs


@pytest.mark.parametrize("value, norm", [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan), (2.0, math.inf)])
def test_nan_and_infinity_end_training_with_what_to_try(value: float, norm: float) -> None:
    with pytest.raises(errors.Failure, match=r"step 7.*training\.learningRate \(now 0\.01\)") as caught:
        watchdogs.check_step(7, value, norm, 0.01)
    assert caught.value.reason is reasons.Reason.LOSS_DIVERGED
    assert caught.value.exit == exits.Exit.DIVERGED


def test_a_gradient_of_zero_ends_training_unless_all_is_learned() -> None:
    with pytest.raises(errors.Failure, match=r"gradient is zero at step 1"):
        watchdogs.check_step(1, 2.0, 0.0, 1e-4)
    watchdogs.check_step(1, 0.0, 0.0, 1e-4)
    watchdogs.check_step(1, 2.0, 1e-9, 1e-4)


def adapter(b: float) -> dict[str, torch.Tensor]:
    return {"x.lora_A.default.weight": torch.ones(2, 3), "x.lora_B.default.weight": torch.full((3, 2), b)}


def test_an_adapter_that_never_moves_is_reported_after_three_steps() -> None:
    watchdogs.check_moved(2, adapter(0.0))
    with pytest.raises(errors.Failure, match=r"no weight of the adapter has moved after 3 steps"):
        watchdogs.check_moved(3, adapter(0.0))
    watchdogs.check_moved(3, adapter(1e-12))


def seen(losses: list[float]) -> None:
    spike = watchdogs.Spike()
    for number, value in enumerate(losses, 1):
        spike.add(number, value, 1e-3)


def test_a_loss_that_fell_and_rose_above_its_beginning_ends_training() -> None:
    with pytest.raises(errors.Failure, match=r"fallen from 2\.00 to 0\.50 and is 6\.00 now.*to a third"):
        seen([2.0] * 10 + [0.5] * 20 + [6.0] * 10)


@pytest.mark.parametrize(
    "losses",
    [
        [2.0] * 10 + [0.5] * 20 + [2.9] * 40,
        [5.0, 1.0] * 50,
        [2.0] * 10 + [0.5] * 20 + [9.0] + [0.5] * 20,
        [1.0 + 0.1 * step for step in range(60)],
    ],
    ids=["up again, but not above its beginning by much", "noisy", "one bad batch", "rising from the start"],
)
def test_training_continues_when_the_loss_does_not_spike(losses: list[float]) -> None:
    seen(losses)
