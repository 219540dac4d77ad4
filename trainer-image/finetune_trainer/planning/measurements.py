"""What preflight measured about the data and the coming training; input of the advisor, and stored in preflight.json.

Stored completely, findings included, so that a later attempt with other goals, thresholds or advice judges the same frozen
split. Fields added since have defaults: files of earlier releases are read too.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Measurements:
    """The measured data. Tokens are of the training examples."""

    train: int
    validation: int
    test: int
    tokens: int
    trainable: int
    truncated: float
    """Share of the training examples."""
    findings: list[dict[str, Any]]
    """The findings of the data checks: `checks.review.Finding.document` of each rule."""
    memory: str | None
    """Estimated memory of training, for people."""
    tools: int = 0
    """Examples with tools, of all splits."""
    memory_advice: str | None = None
    """What to change where that is more than available."""
    evaluation_gpus: int | None = None
    """The fewest of the training's GPUs that baseline and evaluation need; None: unknown."""
    lengths: dict[str, float] | None = None
    """Of the training examples: workload.Examples."""
    distinct: float | None = None
    """Training examples without their near copies: `checks.variety`; None: plain text, or not measured."""
    top_answer: float | None = None
    """Share of the training examples that have the most frequent answer."""
    novelty: dict[str, Any] | None = None
    """Whether answers contain facts: `checks.novelty.Novelty`; None: too few examples, or not measured."""
    parameters: int | None = None
    """Weights of the base model, where config.json or the catalogue has it."""
    experts: int | None = None
    """Experts of a layer of the base model, which do not learn; None: it is no mixture of experts."""
    layers: list[str] | None = None
    """Names of the layers that learn; None: those of every transformer, or not known before training."""
    closed: bool = False
    """Whether the base model's chat template opens a reasoning block in the prompt, which is left out: `templates.closed`."""
    short_gates: list[str] = dataclasses.field(default_factory=list)
    """Gates for which the test examples are too few: `evaluation.feasible.short`, of the job's present gates."""
    short_baseline: list[str] = dataclasses.field(default_factory=list)
    """Gates for which the validation examples are too few: `evaluation.doubt.short`, of the job's present gates."""
    short_benchmarks: list[str] = dataclasses.field(default_factory=list)
    """Gates on benchmarks for which their questions are too few: `evaluation.task_gates.short`, of the job's present gates."""
    benchmarks: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """By task of evaluation.harness: `evaluation.task_gates.Known`."""
    width: dict[str, Any] | None = None
    """Of the base model: `learning_rate.Width`; None: config.json uses other names, or not measured."""
    work: float | None = None
    """Floating-point operations of the training: `effort.work`."""
