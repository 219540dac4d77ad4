"""The peak learning rate of a job that sets none. Pure, and without torch: preflight shows what training will use.

run.Run, Width (of config.json), examples -> Rate

The formula is that of Thinking Machines' tinker-cookbook (hyperparam_utils.get_lr, after "LoRA Without Regret", 2025), fitted to
the best rates of 27 models at a batch of 128:

    5e-5 * 10 * (2000 / hidden size) ** p * sqrt(batch / 128),   p = 0.781, for Qwen 0.0775

docs/guides/learning-rates.md says how far that holds.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from finetune_api import job, run
from finetune_trainer.planning import epoch_count

BASE, WIDTH, BATCH = 5e-4, 2000, 128
EXPONENT, QWEN = 0.781, 0.0775
SHORT, FASTER = 100, 1.5
"""Steps below which a run is short, and the factor of its rate: it has less time to get anywhere."""

TRIED, LEAST = 0.15, 5
"""Share of the steps on which training.search compares learning rates, and the fewest steps."""

APART = 2.0
"""The factor between neighbours of these rates."""

FIXED, FIXED_LARGE, LARGE = 2e-4, 1e-4, 30e9
"""Without the formula: the rate, that of large base models, and the parameters of one."""


@dataclasses.dataclass(frozen=True)
class Rate:
    """A peak learning rate, and where it comes from."""

    value: float
    why: str

    @property
    def text(self) -> str:
        """For people."""
        return f"{self.value:g} ({self.why})"


@dataclasses.dataclass(frozen=True)
class Width:
    """What of a config.json the formula needs."""

    family: str
    """model_type"""
    hidden: int


def width(config: Mapping[str, Any]) -> Width | None:
    """The width in a config.json; None where a model uses other names."""
    inner = config.get("text_config", config)
    hidden = inner.get("hidden_size") if isinstance(inner, Mapping) else None
    if not isinstance(hidden, int) or hidden < 1:
        return None
    return Width(str(config.get("model_type")), hidden)


def choose(spec: run.Run, found: Width | None, examples: int) -> Rate:
    """The job's rate, else the catalogue's, else the formula's; the fixed one for revisions of earlier versions, and for models
    without a width."""
    if spec.training.learning_rate is not None:
        return Rate(spec.training.learning_rate, "training.learningRate")
    if spec.base_model.learning_rate is not None:
        return Rate(spec.base_model.learning_rate, f"the default of BaseModel {spec.base_model.name}")
    if spec.base_model.learning_rate_rule is None or found is None:
        large = (spec.base_model.parameters or 0) >= LARGE
        reason = "config.json has no hidden_size" if spec.base_model.learning_rate_rule else "the earlier fixed default"
        return Rate(FIXED_LARGE if large else FIXED, reason)
    batch = spec.training.batch_size
    steps = math.ceil(epoch_count.total_examples(examples, spec.training) / batch)
    return by_formula(found, batch, steps)


def by_formula(found: Width, batch: int, steps: int) -> Rate:
    """To two digits: it is an estimate."""
    exponent = QWEN if found.family.startswith("qwen") else EXPONENT
    value = BASE * (WIDTH / found.hidden) ** exponent * math.sqrt(batch / BATCH) * (FASTER if steps < SHORT else 1)
    return Rate(
        float(f"{value:.2g}"), f"by {found.family} of width {found.hidden}, {batch} examples a step, {steps} steps"
    )


def candidates(center: float, count: int) -> list[float]:
    """The rates of a search: the center first, so that it wins a tie, then those around it, the nearest first."""
    exponents = sorted(range(-((count - 1) // 2), count // 2 + 1), key=lambda power: (abs(power), -power))
    return [float(f"{center * APART**power:.6g}") for power in exponents]


def trial_steps(steps: int) -> int:
    """Steps of each candidate, of a training of so many."""
    return min(steps, max(LEAST, round(TRIED * steps)))


def searched_steps(steps: int, training: job.Training) -> int:
    """Steps of a training with those of the candidates that lose."""
    return steps + (training.search.learning_rates - 1 if training.search else 0) * trial_steps(steps)
