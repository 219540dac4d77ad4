"""training.search: which learning rate is tried now, how the earlier ones did, and which continues. Pure.

`loop` trains each candidate on the first steps of the schedule, from the same adapter and generators, on one base model; a
checkpoint has the Search beside the tensors of the candidate and of the leader.
"""

import dataclasses
from typing import Any

from finetune_api import job
from finetune_trainer.planning import learning_rate


@dataclasses.dataclass
class Search:
    """Mutable."""

    rates: list[float]
    trials: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Of each candidate that has ended: learningRate, steps, and loss, absent where it diverged."""
    steps: int = 0
    """Optimizer steps of all candidates but the one whose state the loop has."""
    tokens: int = 0
    seconds: float = 0.0

    @property
    def over(self) -> bool:
        return len(self.trials) == len(self.rates)

    @property
    def winner(self) -> int | None:
        """Of the candidates so far the one with the lowest loss, the first of equals; None where all diverged."""
        losses = [(trial["loss"], at) for at, trial in enumerate(self.trials) if "loss" in trial]
        return min(losses)[1] if losses else None

    @property
    def rate(self) -> float:
        """The peak of the candidate that is being trained; after the last trial that of the winner."""
        return self.rates[(self.winner or 0) if self.over else len(self.trials)]

    @property
    def trial(self) -> str | None:
        """For people, while rates are tried."""
        return None if self.over else f"{self.rate:g}, {len(self.trials) + 1} of {len(self.rates)}"

    def total(self, steps: int) -> int:
        """Steps of a training of so many, with those of the candidates."""
        left = 0 if self.over else len(self.rates) - len(self.trials) - 1
        return steps + self.steps + left * learning_rate.trial_steps(steps)

    def end(self, steps: int, loss: float | None) -> bool:
        """The candidate has ended after so many steps, with this validation loss, or without one where it diverged. Whether it
        leads."""
        self.trials.append({"learningRate": self.rate, "steps": steps} | ({} if loss is None else {"loss": loss}))
        return self.winner == len(self.trials) - 1

    def text(self) -> str:
        """All trials, for people."""
        losses = (f"{one['learningRate']:g}: {_loss(one)}" for one in self.trials)
        return f"validation loss by learning rate after {max(one['steps'] for one in self.trials)} steps: {', '.join(losses)}"


def _loss(trial: dict[str, Any]) -> str:
    return f"{trial['loss']:.4f}" if "loss" in trial else "diverged"


def of(training: job.Training, center: float) -> Search | None:
    """The search of a job; None for one without."""
    if training.search is None:
        return None
    return Search(learning_rate.candidates(center, training.search.learning_rates))
