"""The function that training minimises: its value for some rows, and its gradient for the adapter.

An objective is a sum over units (learned tokens, or pairs), so that micro-batches and processes add up to the whole step:
each is divided by the units of the step before it is summed.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from finetune_api import job
from finetune_trainer.engine import loss, passes, prefix_tree


class Objective(Protocol):
    """A sum over units."""

    rows: int
    """Rows of tokens of an example."""

    def units(self, rows: Sequence[prefix_tree.TokenRow]) -> int:
        """How many terms the rows have."""

    def learn(
        self, engine: passes.Engine, rows: Sequence[prefix_tree.TokenRow], units: int, share: float = 1.0
    ) -> float:
        """The rows' part of the mean over `units`, times `share`; its gradient is added to the adapter's."""

    def value(self, engine: passes.Engine, rows: Sequence[prefix_tree.TokenRow]) -> float:
        """The sum over the rows, without a gradient."""


class Supervised:
    """The cross-entropy of each learned token, in nats."""

    rows = 1

    def units(self, rows: Sequence[prefix_tree.TokenRow]) -> int:
        return sum(int(row.learned[1:].sum()) for row in rows)

    def learn(
        self, engine: passes.Engine, rows: Sequence[prefix_tree.TokenRow], units: int, share: float = 1.0
    ) -> float:
        passed = engine.forward(rows, save=True)
        weights = torch.full(passed.targets.shape, share / units, dtype=torch.float32, device=passed.targets.device)
        value, gradient = loss.total(passed.states, passed.targets, engine.head, weights)
        engine.backward(gradient)
        return value

    def value(self, engine: passes.Engine, rows: Sequence[prefix_tree.TokenRow]) -> float:
        passed = engine.forward(rows, save=False)
        return -float(loss.log_probabilities(passed.states, passed.targets, engine.head).sum(dtype=torch.float64))


class Preference:
    """Direct preference optimisation (arXiv 2305.18290): rows 2i and 2i + 1 are the chosen and the rejected answer of pair i.

        - log sigmoid(beta · (log p(chosen) / q(chosen) - log p(rejected) / q(rejected)))

    with log-probabilities summed over the answer; the reference q is the same model with its adapters off.
    """

    rows = 2

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def units(self, rows: Sequence[prefix_tree.TokenRow]) -> int:
        return len(rows) // 2

    def learn(
        self, engine: passes.Engine, rows: Sequence[prefix_tree.TokenRow], units: int, share: float = 1.0
    ) -> float:
        reference = self._scores(engine, engine.forward(rows, save=False, adapted=False), len(rows))
        passed = engine.forward(rows, save=True)
        margins = self._margins(self._scores(engine, passed, len(rows)), reference)
        # The value's gradient with respect to each answer's log-probability; cross-entropies are their negatives.
        gradients = self.beta * torch.sigmoid(-margins) * (share / units)
        row_weights = torch.stack([gradients, -gradients], 1).reshape(-1).float()
        _, gradient = loss.total(passed.states, passed.targets, engine.head, row_weights[passed.rows])
        engine.backward(gradient)
        return float(-torch.nn.functional.logsigmoid(margins).sum() * (share / units))

    def value(self, engine: passes.Engine, rows: Sequence[prefix_tree.TokenRow]) -> float:
        reference = self._scores(engine, engine.forward(rows, save=False, adapted=False), len(rows))
        margins = self._margins(self._scores(engine, engine.forward(rows, save=False), len(rows)), reference)
        return float(-torch.nn.functional.logsigmoid(margins).sum())

    def _scores(self, engine: passes.Engine, passed: passes.Labelled, rows: int) -> torch.Tensor:
        """[rows] summed log-probabilities in float64."""
        each = loss.log_probabilities(passed.states, passed.targets, engine.head).double()
        return torch.zeros(rows, dtype=torch.float64, device=each.device).index_add_(0, passed.rows, each)

    def _margins(self, tuned: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        gains = (tuned - reference).view(-1, 2)
        return self.beta * (gains[:, 0] - gains[:, 1])


def of(training: job.Training) -> Objective:
    """The objective of a job."""
    if training.objective is job.Objective.DPO:
        return Preference((training.dpo or job.DPO()).beta)
    return Supervised()
