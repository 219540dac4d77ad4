"""What preflight measured of the data and of the training to come; the advisor judges it, preflight.json keeps it.

Kept whole, findings included, so that a later attempt under other goals, another threshold or advice judges the same frozen
split. Fields added since have defaults: files of earlier releases are read too.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Facts:
    """The measured data. Tokens are of the training examples."""

    train: int
    validation: int
    test: int
    tokens: int
    trainable: int
    truncated: float
    """Share of the training examples."""
    findings: list[dict[str, Any]]
    """What the data checks found: `checks.review.Finding.document` of each rule."""
    memory: str | None
    """Estimated memory of training, for people."""
    memory_advice: str | None = None
    """What to change where that is more than there is."""
    lengths: dict[str, float] | None = None
    """Of the training examples: case.Examples."""
    distinct: float | None = None
    """Training examples without their near copies: `checks.variety`; None: plain text, or not measured."""
    top_answer: float | None = None
    """Share of the training examples that have the most frequent answer."""
    novelty: dict[str, Any] | None = None
    """Whether answers carry facts: `checks.novelty.Novelty`; None: too few examples, or not measured."""
    parameters: int | None = None
    """Weights of the base model, as far as config.json or the catalogue tells."""
    work: float | None = None
    """Floating-point operations of the training: `effort.work`."""
