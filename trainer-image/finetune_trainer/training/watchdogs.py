"""Watchdogs: signs that training does not work, each with what to try. They end it with LossDiverged: repeating it would not
help."""

import math
from collections.abc import Mapping

import torch

from finetune_api import reasons
from finetune_trainer.process import errors

MOVED_AFTER = 3
"""Steps after which an adapter that has not changed never will."""

WINDOW, RISE = 10, 1.0
"""Steps per average; nats above the first average at which a loss that had fallen counts as diverged."""


def check_step(number: int, value: float, norm: float, rate: float) -> None:
    """After a backward pass, before the optimizer's step: are loss and gradient usable? number counts from 1."""
    if not math.isfinite(value) or not math.isfinite(norm):
        raise diverged(
            f"the loss is {value} and its gradient {norm} at step {number}; lower training.learningRate (now {rate:g}), "
            "or look for broken examples"
        )
    if norm == 0 and value > 1e-6:
        raise diverged(
            f"the gradient is zero at step {number}: nothing can be learned; check that the base model's weights are complete "
            "(all zeros?), or set training.precision to Float32"
        )


def check_moved(number: int, weights: Mapping[str, torch.Tensor]) -> None:
    """After the optimizer's step `number`: B starts as zero, so that an adapter whose B are all zero has not moved."""
    if number == MOVED_AFTER and not any(bool(weight.any()) for name, weight in weights.items() if ".lora_B." in name):
        raise diverged(
            f"no weight of the adapter has moved after {number} steps; raise training.learningRate, it may be too small"
        )


class Spike:
    """Watches for a loss that had fallen and then rises well above its start; compares means of WINDOW steps."""

    def __init__(self) -> None:
        self._window: list[float] = []
        self._first: float | None = None
        self._lowest = math.inf

    def add(self, number: int, value: float, rate: float) -> None:
        """The loss of one more step."""
        self._window.append(value)
        if len(self._window) < WINDOW:
            return
        mean = sum(self._window) / WINDOW
        self._window.clear()
        if self._first is None:
            self._first = mean
        self._lowest = min(self._lowest, mean)
        if self._lowest < self._first and mean > self._first + RISE:
            raise diverged(
                f"the loss had fallen from {self._first:.2f} to {self._lowest:.2f} and is {mean:.2f} now (means of {WINDOW} "
                f"steps, at step {number}); lower training.learningRate (now {rate:g}) to a third, or raise training.batchSize"
            )


def diverged(message: str) -> errors.Failure:
    return errors.Failure(reasons.Reason.LOSS_DIVERGED, message)
