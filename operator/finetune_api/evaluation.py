"""How the tuned model is compared with its baselines, and the gates that it must pass."""

import enum
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, WithJsonSchema

from finetune_api import model
from finetune_api.benchmarks import Harness
from finetune_api.dataset import UriList
from finetune_api.resources import Resources


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


CANDIDATE = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
"""The name of a model of evaluation.candidates: in lower case, so that it is none of the other contenders'."""


class Contender(enum.StrEnum):
    """Who answers. A model of evaluation.candidates is a contender by its name: a value, and no member of the list."""

    BASE = "Base"
    PROMPT = "Prompt"
    FEW_SHOT = "FewShot"
    RETRIEVED = "Retrieved"
    OPTIMIZED = "Optimized"
    MANY_SHOT = "ManyShot"
    RAG = "RAG"
    STRUCTURED = "Structured"
    SERVING = "Serving"
    TUNED = "Tuned"

    @classmethod
    def _missing_(cls, value: object) -> "Contender | None":
        """The contender of a candidate's name: one object for each name, as for the members."""
        if not isinstance(value, str) or not re.fullmatch(CANDIDATE, value):
            return None
        made = str.__new__(cls, value)
        made._name_ = made._value_ = value
        found: Contender = cls._value2member_map_.setdefault(value, made)  # type: ignore[assignment]
        return found

    @property
    def is_candidate(self) -> bool:
        """Whether it is a model of evaluation.candidates."""
        return self._name_ not in type(self).__members__

    @classmethod
    def __get_pydantic_json_schema__(cls, *_: Any) -> dict[str, Any]:
        return {
            "type": "string",
            "maxLength": 63,
        }  # of statuses: in their long lists a rule for each would cost too much


BEST = "BestBaseline"
"""What a gate names in `over` to require more than every baseline."""

BEST_ALTERNATIVE = "BestAlternative"
"""The same, of every baseline and every candidate."""

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


class Generation(model.Model):
    """How answers are generated."""

    max_new_tokens: int = Field(
        default=256,
        ge=1,
        le=32_768,
        description="The maximum number of tokens of a generated answer. Decoding is greedy. Default: 256.",
    )


class EvaluationEngine(enum.StrEnum):
    AUTO = "Auto"
    IN_PROCESS = "InProcess"
    SERVER = "Server"


class Consistency(model.Model):
    """Whether several sampled answers to one question agree."""

    samples: int = Field(default=5, ge=2, le=32, description="Answers sampled for each question. Default: 5.")
    temperature: float = Field(
        default=0.7,
        gt=0,
        le=2,
        json_schema_extra={"x-message": "must be above 0 and at most 2"},
        description="The sampling temperature. Default: 0.7.",
    )
    maximum_examples: int = Field(
        default=50, ge=1, le=10_000, description="The maximum number of test examples used. Default: 50."
    )


class Forgetting(model.Model):
    """Whether the tuned model becomes worse at tasks that it was not trained for."""

    uris: UriList | None = Field(
        default=None,
        description="Files of general questions with answers, in the formats of dataset.train. Absent: the "
        "trainer's own 325 questions, in English.",
    )
    maximum_questions: int | None = Field(
        default=None,
        ge=8,
        le=1_000_000,
        description="The maximum number of questions asked; of the trainer's own, of every kind and difficulty in proportion. "
        "Absent: all of the trainer's own where a server answers, 64 of them in process; of uris evaluation.maximumExamples.",
    )


Endpoint = Annotated[
    str,
    model.text(
        r"^https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~%/-]*)?$",
        "must be an http or https URL without user, query and fragment, for example https://judge.example/v1",
        512,
    ),
]
ServedName = Annotated[str, model.text(r"^\S+$", "must be a model's name, without spaces", 256)]
SecretName = model.Name


class Judge(model.Model):
    """A language model that decides which of two answers is better: the tuned model's, or another contender's."""

    endpoint: Endpoint = Field(
        description="The base URL of an OpenAI-compatible API; /chat/completions is appended. The evaluation's pod "
        "sends it the questions and expected answers of test examples, and the contenders' answers. Redirects "
        "are not followed."
    )
    model: ServedName = Field(description="The judge's model name at the endpoint.")
    api_key_secret: SecretName | None = Field(
        default=None,
        description="The name of a Secret in the job's namespace whose key API_KEY is sent as a bearer token. "
        "Absent: no token is sent.",
    )
    criteria: Annotated[str, Field(min_length=1, max_length=2000)] | None = Field(
        default=None,
        description="What makes an answer better, as an instruction for the judge. Absent: the answer that is more "
        "correct and complete.",
    )
    maximum_examples: int = Field(
        default=100,
        ge=1,
        le=10_000,
        description="The maximum number of test examples judged, chosen by the seed; each is judged twice for every "
        "contender. Default: 100.",
    )


CandidateName = Annotated[
    str,
    model.text(
        f"^{CANDIDATE}$", "must be lower-case letters, digits and '-', starting and ending with a letter or digit", 63
    ),
]


class Candidate(model.Model):
    """Another model that answers the same questions, with a prompt and without training."""

    name: CandidateName = Field(description="Its name among the contenders, which gates may name in over.")
    endpoint: Endpoint = Field(
        description="The base URL of an OpenAI-compatible API; /chat/completions is appended. The pods of baseline and "
        "evaluation send it the questions of validation and test examples, with the prompt that did best with the base "
        "model: intent.prompt.system, the form of the answers (their labels or keys), training examples or passages of "
        "documents. Redirects are not followed."
    )
    model: ServedName = Field(description="The model's name at the endpoint.")
    api_key_secret: SecretName | None = Field(
        default=None,
        description="The name of a Secret in the job's namespace whose key API_KEY is sent as a bearer token. "
        "Absent: no token is sent.",
    )
    price_per_million_prompt_tokens: float | None = Field(
        default=None,
        ge=0,
        description="The price of a million tokens of prompts, in the chart's currency. Absent: unknown.",
    )
    price_per_million_answer_tokens: float | None = Field(
        default=None,
        ge=0,
        description="The price of a million tokens of answers, in the chart's currency. Absent: unknown.",
    )

    def price(self, prompt: float, answer: float) -> float | None:
        """Of a request of so many tokens; None where it is unknown."""
        if self.price_per_million_prompt_tokens is None or self.price_per_million_answer_tokens is None:
            return None
        return (
            self.price_per_million_prompt_tokens * prompt + self.price_per_million_answer_tokens * answer
        ) / 1_000_000


Baseline = Literal[
    Contender.BASE,
    Contender.PROMPT,
    Contender.FEW_SHOT,
    Contender.RETRIEVED,
    Contender.OPTIMIZED,
    Contender.MANY_SHOT,
    Contender.RAG,
    Contender.STRUCTURED,
]

BASELINES: tuple[Baseline, ...] = get_args(Baseline)
"""The alternatives to fine-tuning with the same base model, from cheap to costly."""

FORMER_DEFAULTS: tuple[list[str], ...] = tuple(
    [one.value for one in BASELINES if one not in later]
    for later in ({Contender.OPTIMIZED}, {Contender.OPTIMIZED, Contender.STRUCTURED})
)
"""Defaults of evaluation.baselines in earlier releases."""


def alternatives(found: Iterable[Contender]) -> list[Contender]:
    """The baselines among these contenders, from cheap to costly, then the candidates."""
    there = list(found)
    return [*(one for one in BASELINES if one in there), *(one for one in there if one.is_candidate)]


def compared_with(over: str | None, found: Iterable[Contender]) -> list[Contender]:
    """The contenders among these that a gate's `over` means."""
    if over == BEST:
        return [one for one in alternatives(found) if not one.is_candidate]
    return alternatives(found) if over == BEST_ALTERNATIVE else [one for one in found if one == over]


Label = Annotated[str, Field(min_length=1, max_length=256)]

SchemaObject = dict[str, Any]


class Evaluation(model.Model):
    """How the contenders are compared on the held-out test examples."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            (
                "!has(self.gates) || !self.gates.exists(g, g.metric in ['Accuracy', 'MacroF1', 'InvalidLabels']) || "
                "has(self.labels)",
                "a gate on Accuracy, MacroF1 or InvalidLabels needs evaluation.labels, the list of possible answers",
            ),
            (
                "!has(self.gates) || !self.gates.exists(g, g.metric == 'JsonSchema') || has(self.outputSchema)",
                "a gate on JsonSchema needs evaluation.outputSchema",
            ),
            (
                "!has(self.gates) || !self.gates.exists(g, g.metric == 'Consistency') || has(self.consistency)",
                "a gate on Consistency needs evaluation.consistency, for example {samples: 5}",
            ),
            (
                "!has(self.gates) || !self.gates.exists(g, g.metric == 'JudgeWinRate') || has(self.judge)",
                "a gate on JudgeWinRate needs evaluation.judge: endpoint and model of the judge",
            ),
            (
                "!has(self.gates) || self.gates.all(g, !has(g.over) || "
                "g.over in ['Serving', 'BestBaseline', 'BestAlternative'] || g.over in self.baselines || "
                "(has(self.candidates) && self.candidates.exists(c, c.name == g.over)))",
                "a gate's over must be one of evaluation.baselines, the name of one of evaluation.candidates, BestBaseline, "
                "BestAlternative or Serving",
            ),
        )
    }
    baselines: list[Baseline] = Field(
        default=list(BASELINES),
        max_length=8,
        description="What the tuned model is compared with. Prompt is included if intent.prompt.system is set, "
        "FewShot if intent.prompt.fewShot is not 0, RAG if intent.retrieval is set, Structured if outputSchema is set; "
        "Retrieved, Optimized, ManyShot and RAG within baselineBudget. Default: all eight.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    baseline_budget: float = Field(
        default=0.1,
        ge=0,
        le=10,
        json_schema_extra={"x-message": "must be from 0 to 10: write 0.1 for 10 % of the training's time"},
        description="The time that Retrieved, Optimized, ManyShot, RAG and the candidates may take in the baseline and in the "
        "evaluation, as a share of the training's, on one device; at least 30 seconds, and as many for each candidate. What "
        "does not fit is left out and named. Default: 0.1.",
    )
    candidates: list[Candidate] | None = Field(
        default=None,
        max_length=4,
        description="Other models, at endpoints of your choice, that answer the same questions with the best prompt found: "
        "to see whether one of them does as well without training, and at what price. Absent: none.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    maximum_examples: int = Field(
        default=500,
        ge=1,
        le=1_000_000,
        description="The maximum number of test examples used, chosen by the seed. Default: 500.",
    )
    generation: Generation = Field(default_factory=Generation, description="How answers are generated.")
    engine: EvaluationEngine = Field(
        default=EvaluationEngine.AUTO,
        description="What generates the answers of baseline and evaluation. Server: a vLLM server in the same pod, with the "
        "image and the arguments that serve the adapter, over all GPUs of evaluation.resources. InProcess: the trainer, on one "
        "GPU or the CPU. Auto: Server where these pods have GPUs, else InProcess. Without a cluster always InProcess. "
        "Default: Auto.",
    )
    labels: list[Label] | None = Field(
        default=None,
        min_length=2,
        max_length=1000,
        description="The possible answers of a classification task; case and surrounding white space are ignored. "
        "Absent: no classification.",
    )
    output_schema: SchemaObject | None = Field(
        default=None,
        description="A JSON Schema that answers must conform to. References to other documents are not followed. "
        "The baseline Structured is held to it while it answers; the tuned model is not. Absent: none.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )
    consistency: Consistency | None = Field(
        default=None,
        description="Measures whether sampled answers to one question agree, for the base and the tuned model. "
        "Absent: not measured.",
    )
    forgetting: Forgetting = Field(
        default_factory=Forgetting,
        description="The questions for Forgetting, GeneralAccuracy and InstructionFollowing.",
    )
    judge: Judge | None = Field(
        default=None,
        description="A language model that compares the tuned model's answers with the other contenders', for "
        "JudgeWinRate. Absent: not measured.",
    )
    harness: Harness | None = Field(
        default=None,
        description="Public benchmarks of lm-evaluation-harness, with gates of their own. Absent: none.",
    )
    gates: list[Gate] | None = Field(
        default=None,
        max_length=16,
        description="Requirements that the model must meet before it serves; all must pass, and those of "
        "harness.gates. The first gate's metric is the job's score. Absent: better than every baseline by the most telling "
        "metric of the task, and Forgetting at most 0.05. Empty: every model passes.",
    )
    resources: Resources | None = Field(
        default=None,
        description="What the pods of the evaluation, and of the baseline before training, request. Absent: the "
        "same as spec.resources, with as many of its GPUs as the estimate needs (status.preflight.estimatedEvaluation).",
    )

    def asks_a_server(self, gpus: int) -> bool:
        """Whether a server answers in a pod with so many GPUs."""
        return self.engine is EvaluationEngine.SERVER or (self.engine is EvaluationEngine.AUTO and gpus > 0)

    @property
    def stated(self) -> list[Gate]:
        """The gates that the job states; where it states none, the evaluation applies its own."""
        return self.gates or []

    @property
    def others(self) -> list[Candidate]:
        return self.candidates or []

    @property
    def absolute(self) -> list[Gate]:
        """The gates with a bound that a prompt could meet, too."""
        return [
            gate
            for gate in self.stated
            if (gate.minimum is not None or gate.maximum is not None) and gate.metric not in OF_TRAINING
        ]

    @property
    def relative(self) -> list[Gate]:
        """The gates that require an improvement over a prompt."""
        return [gate for gate in self.stated if gate.over is not None and gate.over is not Contender.SERVING]

    @property
    def decided_before_training(self) -> bool:
        """Whether a prompt could be enough: there is a bound to meet, every metric that must improve on a prompt has a
        maximum, and no public benchmark must reach what nobody measures before training."""
        benchmarks = self.harness.required if self.harness else []
        return (
            bool(self.absolute)
            and all(gate.metric in SHARES - PAIRWISE for gate in self.relative)
            and all(gate.base_passes for gate in benchmarks)
        )
