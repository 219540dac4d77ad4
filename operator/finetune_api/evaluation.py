"""How base and tuned model are compared, and what the tuned one must reach."""

import enum
from typing import Literal

from pydantic import Field

from finetune_api import model
from finetune_api.resources import Resources


class Metric(enum.StrEnum):
    EXACT_MATCH = "ExactMatch"
    ROUGE_L = "RougeL"
    JSON_VALID = "JsonValid"
    LOSS = "Loss"
    PERPLEXITY = "Perplexity"


LOWER_IS_BETTER = frozenset({Metric.LOSS, Metric.PERPLEXITY})


class Contender(enum.StrEnum):
    BASE = "Base"
    TUNED = "Tuned"


class Gate(model.Model):
    """A condition that the tuned model must meet before it serves."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            (
                "has(self.minimum) || has(self.maximum) || has(self.over)",
                "a gate needs minimum, maximum or over",
            ),
            ("!has(self.improvement) || has(self.over)", "improvement needs over: the contender to compare with"),
            (
                "!(has(self.minimum) && has(self.maximum)) || self.minimum <= self.maximum",
                "a gate's minimum must not be above its maximum",
            ),
            (
                "!(self.metric in ['ExactMatch', 'RougeL', 'JsonValid']) || [has(self.minimum) ? self.minimum : 0.0, "
                "has(self.maximum) ? self.maximum : 0.0, has(self.improvement) ? self.improvement : 0.0]"
                ".all(share, share >= 0.0 && share <= 1.0)",
                "ExactMatch, RougeL and JsonValid are shares from 0 to 1: write 0.8 for 80 %",
            ),
        )
    }
    metric: Metric = Field(
        description="ExactMatch (share of answers equal to the expected one after trimming), RougeL (0 to 1), "
        "JsonValid (share of answers that parse as JSON), Loss (nats per answer token) or Perplexity."
    )
    minimum: float | None = Field(default=None, description="The tuned model's value must be at least this.")
    maximum: float | None = Field(default=None, description="The tuned model's value must be at most this.")
    over: Literal[Contender.BASE] | None = Field(
        default=None, description="The contender to be better than: Base, the same model without the adapter."
    )
    improvement: float | None = Field(
        default=None,
        ge=0,
        description="With over: by how much the tuned model must be better, in the metric's unit (lower is better "
        "for Loss and Perplexity). Absent: better by however little.",
    )


class Generation(model.Model):
    """How answers are generated."""

    max_new_tokens: int = Field(
        default=256,
        ge=1,
        le=32_768,
        description="The most tokens of a generated answer. Answers are greedy. Default: 256.",
    )


class Evaluation(model.Model):
    """How base and tuned model are compared on the held-out test examples."""

    maximum_examples: int = Field(
        default=500,
        ge=1,
        le=1_000_000,
        description="At most this many test examples are scored, chosen by the seed. Default: 500.",
    )
    generation: Generation = Field(default_factory=Generation, description="How answers are generated.")
    gates: list[Gate] = Field(
        default_factory=list,
        max_length=16,
        description="What must hold before the model serves; all must pass. The first gate's metric is the job's "
        "score. Empty: every model passes.",
    )
    resources: Resources | None = Field(
        default=None, description="What the evaluation's pod needs. Absent: as spec.resources."
    )
