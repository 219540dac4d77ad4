"""The metrics of an evaluation, and the gates on them that the tuned model must pass."""

import enum
from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema

from finetune_api import model
from finetune_api.contenders import BEST, BEST_ALTERNATIVE, CANDIDATE, Contender


class Metric(enum.StrEnum):
    EXACT_MATCH = "ExactMatch"
    NORMALIZED_MATCH = "NormalizedMatch"
    ACCURACY = "Accuracy"
    MACRO_F1 = "MacroF1"
    INVALID_LABELS = "InvalidLabels"
    JSON_VALID = "JsonValid"
    JSON_SCHEMA = "JsonSchema"
    FIELD_F1 = "FieldF1"
    TOOL_CALL_MATCH = "ToolCallMatch"
    TOOL_CALL_VALID = "ToolCallValid"
    ROUGE_L = "RougeL"
    CHRF = "Chrf"
    BLEU = "Bleu"
    STOPPED = "Stopped"
    REPETITION = "Repetition"
    LENGTH_RATIO = "LengthRatio"
    LOSS = "Loss"
    PERPLEXITY = "Perplexity"
    FORGETTING = "Forgetting"
    GENERAL_ACCURACY = "GeneralAccuracy"
    INSTRUCTION_FOLLOWING = "InstructionFollowing"
    DIVERGENCE = "Divergence"
    GENERAL_DIVERGENCE = "GeneralDivergence"
    CONSISTENCY = "Consistency"
    JUDGE_WIN_RATE = "JudgeWinRate"


OVER_BASE = frozenset({Metric.FORGETTING, Metric.DIVERGENCE, Metric.GENERAL_DIVERGENCE})
"""Metrics that compare the tuned model with the base model: only the tuned model has a value."""

LOWER_IS_BETTER = OVER_BASE | {Metric.INVALID_LABELS, Metric.REPETITION, Metric.LOSS, Metric.PERPLEXITY}

SHARES = frozenset(Metric) - OVER_BASE - {Metric.LENGTH_RATIO, Metric.LOSS, Metric.PERPLEXITY}
"""Metrics from 0 to 1."""

PAIRWISE = frozenset({Metric.JUDGE_WIN_RATE})
"""Metrics of a pair of contenders, so that a gate must name the other one."""

OF_TRAINING = (
    PAIRWISE
    | OVER_BASE
    | {
        Metric.GENERAL_ACCURACY,
        Metric.INSTRUCTION_FOLLOWING,
        Metric.CONSISTENCY,
    }
)
"""Metrics that are not meaningful for a prompt, or that the baseline before training cannot measure."""

MEANINGS = {
    Metric.EXACT_MATCH: "share of answers equal to the expected one, ignoring surrounding white space",
    Metric.NORMALIZED_MATCH: "the same, ignoring case, punctuation and repeated white space",
    Metric.ACCURACY: "share of answers that are the expected label of evaluation.labels",
    Metric.MACRO_F1: "F1 of each label of evaluation.labels that was expected, averaged",
    Metric.INVALID_LABELS: "share of answers that are none of evaluation.labels",
    Metric.JSON_VALID: "share of answers that parse as JSON",
    Metric.JSON_SCHEMA: "share of answers that parse as JSON and conform to evaluation.outputSchema",
    Metric.FIELD_F1: "F1 of the fields of a JSON answer: a field is right if it has the expected value at the "
    "expected path; texts must be equal, numbers of equal value (1 and 1.0)",
    Metric.TOOL_CALL_MATCH: "share of examples with tools whose calls are the expected ones: same names and "
    "arguments, in any order; no call where none is expected",
    Metric.TOOL_CALL_VALID: "share of the answers that should call tools and do, with only known tools and "
    "arguments that match their parameters",
    Metric.ROUGE_L: "F-measure of the longest common subsequence of words",
    Metric.CHRF: "chrF, F-score of character n-grams",
    Metric.BLEU: "sentence BLEU with smoothing, averaged",
    Metric.STOPPED: "share of answers that ended before generation.maxNewTokens",
    Metric.REPETITION: "share of word 4-grams of an answer that occur earlier in it",
    Metric.LENGTH_RATIO: "characters of the answer divided by those of the expected one, averaged",
    Metric.LOSS: "nats per token of the expected answers",
    Metric.PERPLEXITY: "e to the power of Loss",
    Metric.FORGETTING: "relative increase of the loss on general questions over the base model",
    Metric.GENERAL_ACCURACY: "share of general questions whose right answer is the most probable of four",
    Metric.INSTRUCTION_FOLLOWING: "share of general instructions on the form of an answer that the answer follows, as a program "
    "checks",
    Metric.DIVERGENCE: "KL divergence of the tuned model from the base model on the task's prompts, in nats per token",
    Metric.GENERAL_DIVERGENCE: "the same on general prompts",
    Metric.CONSISTENCY: "share of pairs of sampled answers to one question that agree: as NormalizedMatch compares, or as labels "
    "where evaluation.labels is set",
    Metric.JUDGE_WIN_RATE: "share of questions for which evaluation.judge prefers the tuned model's answer to the "
    "other contender's; ties count half",
}
"""Each metric in a phrase, for the reference documentation."""


FORGOTTEN = 0.05
"""A rise of the general loss that counts as too much where no gate has a limit."""

_NAMED = [*(one for one in Contender if one is not Contender.TUNED), BEST, BEST_ALTERNATIVE]
_OVER = {
    "type": "string",
    "pattern": rf"^({'|'.join(_NAMED)}|{CANDIDATE})$",
    "maxLength": 63,
    "x-message": f"must be one of {', '.join(_NAMED)}, or the name of one of evaluation.candidates",
}

_SHARES = ", ".join(f"'{metric}'" for metric in Metric if metric in SHARES)
_OVER_BASE = ", ".join(f"'{metric}'" for metric in Metric if metric in OVER_BASE)


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
                "a gate's minimum must not be greater than its maximum",
            ),
            (
                f"!(self.metric in [{_SHARES}]) || [has(self.minimum) ? self.minimum : 0.0, "
                "has(self.maximum) ? self.maximum : 0.0, has(self.improvement) ? self.improvement : 0.0]"
                ".all(share, share >= 0.0 && share <= 1.0)",
                "this metric is a share from 0 to 1: write 0.8 for 80 %",
            ),
            (
                f"!(self.metric in [{_OVER_BASE}]) || !has(self.over)",
                "this metric already compares with the base model: set maximum, for example 0.05, in place of over",
            ),
            (
                "!(self.metric in ['Loss', 'Perplexity', 'GeneralAccuracy', 'InstructionFollowing', 'Consistency']) || "
                "!has(self.over) || !self.over.matches('^[a-z0-9]')",
                "a model of evaluation.candidates has only metrics of its answers: name a baseline in over",
            ),
            (
                "self.metric != 'JudgeWinRate' || (has(self.over) && !has(self.maximum) && !has(self.improvement))",
                "JudgeWinRate compares two contenders: set over, which requires more wins than losses; to require "
                "more set minimum, for example 0.6, in place of maximum and improvement",
            ),
        )
    }
    metric: Metric = Field(
        description="The metric; docs/reference/evaluation.md says how each is measured. Accuracy, MacroF1 and "
        "InvalidLabels need evaluation.labels, JsonSchema needs evaluation.outputSchema, Consistency needs "
        "evaluation.consistency, JudgeWinRate needs evaluation.judge and over."
    )
    minimum: float | None = Field(default=None, description="The tuned model's value must be at least this.")
    maximum: float | None = Field(default=None, description="The tuned model's value must be at most this.")
    over: Annotated[Literal["BestBaseline", "BestAlternative"] | Contender, WithJsonSchema(_OVER)] | None = Field(
        default=None,
        description="The contender that the tuned model must beat. Base: the model without the adapter. Prompt: the "
        "base model with intent.prompt.system. FewShot: the same with examples before each question. Retrieved: the "
        "same with the training examples that are most similar to the question. Optimized: the best of a few "
        "written prompts, with or without examples. ManyShot: like FewShot, with as many "
        "examples as fit. RAG: like Prompt, with passages of intent.retrieval. Structured: the best of these prompts, its "
        "answers held to evaluation.outputSchema. BestBaseline: each of "
        "evaluation.baselines that was measured, and so the best of them. BestAlternative: the same, and each of "
        "evaluation.candidates. The name of a candidate: that model. Serving: the revision that serves now; the gate passes "
        "if none does.",
    )
    improvement: float | None = Field(
        default=None,
        ge=0,
        description="With over: by how much the tuned model must be better, in the metric's unit. Absent: better by "
        "any amount; over Serving: not worse.",
    )
    confidence: float = Field(
        default=0.95,
        ge=0.5,
        le=0.9999,
        json_schema_extra={"x-message": "must be from 0.5 to 0.9999: write 0.95 for 95 %"},
        description="The statistical confidence required: a gate passes only if a model that just misses its bound "
        "would get such a result with a probability of at most 1 - confidence. 0.5: the measured value alone "
        "decides. Default: 0.95.",
    )
