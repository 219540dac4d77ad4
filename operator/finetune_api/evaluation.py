"""How the tuned model is compared with what a prompt reaches, and what it must reach itself."""

import enum
from typing import Annotated, Any, Literal

from pydantic import Field

from finetune_api import model
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
    CONSISTENCY = "Consistency"
    JUDGE_WIN_RATE = "JudgeWinRate"


LOWER_IS_BETTER = frozenset(
    {Metric.INVALID_LABELS, Metric.REPETITION, Metric.LOSS, Metric.PERPLEXITY, Metric.FORGETTING}
)

SHARES = frozenset(Metric) - {Metric.LENGTH_RATIO, Metric.LOSS, Metric.PERPLEXITY, Metric.FORGETTING}
"""Metrics from 0 to 1."""

PAIRWISE = frozenset({Metric.JUDGE_WIN_RATE})
"""Metrics of two contenders together: of neither alone, so that a gate names the other one."""

OF_TRAINING = PAIRWISE | {Metric.FORGETTING, Metric.GENERAL_ACCURACY, Metric.CONSISTENCY}
"""Metrics that say nothing about a prompt, or that a few quick questions do not measure."""

MEANINGS = {
    Metric.EXACT_MATCH: "share of answers equal to the expected one, white space around them aside",
    Metric.NORMALIZED_MATCH: "the same without regard to case, punctuation and runs of white space",
    Metric.ACCURACY: "share of answers that are the expected one of evaluation.labels",
    Metric.MACRO_F1: "F1 of each label of evaluation.labels that was expected, averaged",
    Metric.INVALID_LABELS: "share of answers that are none of evaluation.labels",
    Metric.JSON_VALID: "share of answers that parse as JSON",
    Metric.JSON_SCHEMA: "share of answers that parse as JSON and fit evaluation.outputSchema",
    Metric.FIELD_F1: "F1 of the fields of an answer in JSON: right with the expected value at the expected place",
    Metric.TOOL_CALL_MATCH: "share of the examples with tools whose calls are the expected ones: the same names and "
    "arguments, in any order; where none is expected, none is made",
    Metric.TOOL_CALL_VALID: "share of the answers that should call tools that do, all calls of known tools and with arguments "
    "that fit their parameters",
    Metric.ROUGE_L: "F-measure of the longest common subsequence of words",
    Metric.CHRF: "chrF, F-score of character n-grams",
    Metric.BLEU: "BLEU of single answers with smoothed counts, averaged",
    Metric.STOPPED: "share of answers that ended by themselves before generation.maxNewTokens",
    Metric.REPETITION: "share of word 4-grams of an answer that occurred in it before",
    Metric.LENGTH_RATIO: "characters of the answer by those of the expected one, averaged",
    Metric.LOSS: "nats per token of the expected answers",
    Metric.PERPLEXITY: "e to the power of Loss",
    Metric.FORGETTING: "rise of the loss on general questions over the base model, as a share of it",
    Metric.GENERAL_ACCURACY: "share of general questions whose right answer is the most likely of four",
    Metric.CONSISTENCY: "share of pairs of sampled answers to one question that agree",
    Metric.JUDGE_WIN_RATE: "share of questions whose answer by the tuned model evaluation.judge likes better than that of the "
    "contender it is held against; ties count half",
}
"""Each metric in a phrase; the reference documentation has them."""


class Contender(enum.StrEnum):
    BASE = "Base"
    PROMPT = "Prompt"
    FEW_SHOT = "FewShot"
    SERVING = "Serving"
    TUNED = "Tuned"


_SHARES = ", ".join(f"'{metric}'" for metric in Metric if metric in SHARES)


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
                f"!(self.metric in [{_SHARES}]) || [has(self.minimum) ? self.minimum : 0.0, "
                "has(self.maximum) ? self.maximum : 0.0, has(self.improvement) ? self.improvement : 0.0]"
                ".all(share, share >= 0.0 && share <= 1.0)",
                "this metric is a share from 0 to 1: write 0.8 for 80 %",
            ),
            (
                "self.metric != 'Forgetting' || !has(self.over)",
                "Forgetting compares with the base model by itself: set maximum, for example 0.05",
            ),
            (
                "self.metric != 'JudgeWinRate' || (has(self.over) && !has(self.maximum) && !has(self.improvement))",
                "JudgeWinRate is of two contenders: set over, which alone wants more than half of the questions won; for more "
                "than that set minimum, for example 0.6, in place of maximum and improvement",
            ),
        )
    }
    metric: Metric = Field(
        description="What is compared; docs/reference/evaluation.md says how each is measured. Accuracy, MacroF1 and "
        "InvalidLabels need evaluation.labels, JsonSchema needs evaluation.outputSchema, Consistency needs "
        "evaluation.consistency, JudgeWinRate needs evaluation.judge and over."
    )
    minimum: float | None = Field(default=None, description="The tuned model's value must be at least this.")
    maximum: float | None = Field(default=None, description="The tuned model's value must be at most this.")
    over: Literal[Contender.BASE, Contender.PROMPT, Contender.FEW_SHOT, Contender.SERVING] | None = Field(
        default=None,
        description="The contender to be better than. Base: the model without the adapter. Prompt: the base model with "
        "intent.prompt.system. FewShot: with examples before each question, too. Serving: the revision that serves now; while "
        "none does, this holds.",
    )
    improvement: float | None = Field(
        default=None,
        ge=0,
        description="With over: by how much the tuned model must be better, in the metric's unit. Absent: better by however "
        "little; over Serving: not worse.",
    )
    confidence: float = Field(
        default=0.95,
        ge=0.5,
        le=0.9999,
        json_schema_extra={"x-message": "must be from 0.5 to 0.9999: write 0.95 for 95 %"},
        description="How sure the test examples must make it: a bound holds when a model that just misses it would have passed "
        "with a probability of at most 1 - confidence. 0.5: the measured value alone decides. Default: 0.95.",
    )


class Generation(model.Model):
    """How answers are generated."""

    max_new_tokens: int = Field(
        default=256,
        ge=1,
        le=32_768,
        description="The most tokens of a generated answer. Answers are greedy. Default: 256.",
    )


class Consistency(model.Model):
    """Several sampled answers to one question: do they agree?"""

    samples: int = Field(default=5, ge=2, le=32, description="Answers sampled for each question. Default: 5.")
    temperature: float = Field(
        default=0.7,
        gt=0,
        le=2,
        json_schema_extra={"x-message": "must be above 0 and at most 2"},
        description="The temperature at which they are sampled. Default: 0.7.",
    )
    maximum_examples: int = Field(
        default=50, ge=1, le=10_000, description="At most this many test examples are asked. Default: 50."
    )


class Forgetting(model.Model):
    """Does the tuned model get worse at what it was not trained for?"""

    uris: UriList | None = Field(
        default=None,
        description="Files of general questions with answers, in the formats of dataset.train. Absent: the 64 questions that "
        "ship with the trainer, in English.",
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
    """A language model that says which of two answers is better: the tuned model's, or another contender's."""

    endpoint: Endpoint = Field(
        description="The base URL of an OpenAI-compatible API; /chat/completions is added. The evaluation's pod sends it the "
        "questions and expected answers of test examples, and the contenders' answers. Redirects are not followed."
    )
    model: ServedName = Field(description="The name that the endpoint knows the judge by.")
    api_key_secret: SecretName | None = Field(
        default=None,
        description="The name of a Secret in the job's namespace whose key API_KEY is sent as a bearer token. Absent: none is.",
    )
    criteria: Annotated[str, Field(min_length=1, max_length=2000)] | None = Field(
        default=None,
        description="What makes an answer better, in words for the judge. Absent: what answers the question more correctly and "
        "completely.",
    )
    maximum_examples: int = Field(
        default=100,
        ge=1,
        le=10_000,
        description="At most this many test examples are judged, chosen by the seed, each twice against every contender. "
        "Default: 100.",
    )


TaskName = Annotated[
    str,
    model.text(
        r"^[A-Za-z0-9_.:+()-]+$",
        "must be the name of a task of lm-evaluation-harness, for example arc_easy",
        128,
    ),
]


class Task(model.Model):
    """A public benchmark, by its name in lm-evaluation-harness, with its data."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            (
                "!has(self.fewShotUris) || has(self.uris)",
                "fewShotUris needs uris: a task takes all of its data from files, or all from the hub",
            )
        )
    }
    name: TaskName = Field(
        description="The task's name in the release of lm-evaluation-harness that the trainer's image has, for example arc_easy, "
        "hellaswag or gsm8k. Groups of tasks are named one by one. Preflight refuses names that it does not know, and tasks "
        "that run code of others; docs/reference/evaluation.md says which."
    )
    uris: UriList | None = Field(
        default=None,
        description="Files of the task's questions, with the fields of the task's own dataset, in the kinds of files of "
        "dataset.train. Absent: the pods fetch the task's own dataset from the hub.",
    )
    few_shot: int | None = Field(
        default=None,
        ge=0,
        le=64,
        description="Questions with answers that go before each question. Absent: as the task says.",
    )
    few_shot_uris: UriList | None = Field(
        default=None,
        description="Files that these are taken from, written as uris. Absent: as the task says, where it needs no files for it.",
    )


class Harness(model.Model):
    """Public benchmarks, of the base model and the tuned one: does it still know what it knew?"""

    tasks: list[Task] = Field(
        min_length=1,
        max_length=32,
        description="The tasks, each once.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    maximum_examples: int = Field(
        default=200,
        ge=2,
        le=1_000_000,
        description="At most this many questions of each task are asked, chosen by the seed. Default: 200.",
    )
    chat_template: bool = Field(
        default=False,
        description="Whether questions go through the model's chat template, as a chat does. Default: false, as in "
        "lm-evaluation-harness.",
    )


Baseline = Literal[Contender.BASE, Contender.PROMPT, Contender.FEW_SHOT]

Label = Annotated[str, Field(min_length=1, max_length=256)]

SchemaObject = dict[str, Any]


class Evaluation(model.Model):
    """How the contenders are compared on the held-out test examples."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            (
                "!has(self.gates) || !self.gates.exists(g, g.metric in ['Accuracy', 'MacroF1', 'InvalidLabels']) || "
                "has(self.labels)",
                "a gate on Accuracy, MacroF1 or InvalidLabels needs evaluation.labels, the list of answers that exist",
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
                "a gate on JudgeWinRate needs evaluation.judge: endpoint and model of who compares the answers",
            ),
            (
                "!has(self.gates) || self.gates.all(g, !has(g.over) || g.over == 'Serving' || g.over in self.baselines)",
                "a gate's over must be one of evaluation.baselines, or Serving",
            ),
        )
    }
    baselines: list[Baseline] = Field(
        default=[Contender.BASE, Contender.PROMPT, Contender.FEW_SHOT],
        max_length=3,
        description="What the tuned model is compared with. Prompt takes part where intent.prompt.system is set, FewShot where "
        "intent.prompt.fewShot is not 0. Default: all three.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    maximum_examples: int = Field(
        default=500,
        ge=1,
        le=1_000_000,
        description="At most this many test examples are scored, chosen by the seed. Default: 500.",
    )
    generation: Generation = Field(default_factory=Generation, description="How answers are generated.")
    labels: list[Label] | None = Field(
        default=None,
        min_length=2,
        max_length=1000,
        description="The answers that exist, of a classification; case and white space around them do not count. Absent: no "
        "classification.",
    )
    output_schema: SchemaObject | None = Field(
        default=None,
        description="A JSON Schema that answers must fit. References to other documents are not followed. Absent: none.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )
    consistency: Consistency | None = Field(
        default=None,
        description="Whether sampled answers to one question agree, of base and tuned model. Absent: not measured.",
    )
    forgetting: Forgetting = Field(
        default_factory=Forgetting, description="What Forgetting and GeneralAccuracy are measured on."
    )
    judge: Judge | None = Field(
        default=None,
        description="A language model that compares the tuned model's answers with the others', for JudgeWinRate. Absent: not "
        "measured.",
    )
    harness: Harness | None = Field(
        default=None,
        description="Public benchmarks of lm-evaluation-harness, for the report; no gate reads them. Absent: none.",
    )
    gates: list[Gate] = Field(
        default_factory=list,
        max_length=16,
        description="What must hold before the model serves; all must pass. The first gate's metric is the job's "
        "score. Empty: every model passes.",
    )
    resources: Resources | None = Field(
        default=None,
        description="What the pods of the evaluation, and of the baseline before training, need. Absent: as spec.resources.",
    )

    @property
    def absolute(self) -> list[Gate]:
        """The gates with a bound that a prompt could meet as well as a tuned model."""
        return [
            gate
            for gate in self.gates
            if (gate.minimum is not None or gate.maximum is not None) and gate.metric not in OF_TRAINING
        ]

    @property
    def relative(self) -> list[Gate]:
        """The gates that want more than a prompt gives."""
        return [gate for gate in self.gates if gate.over is not None and gate.over is not Contender.SERVING]

    @property
    def decided_before_training(self) -> bool:
        """Whether a prompt could be enough: there is a bound to meet, and what shall be better than a prompt has an end."""
        return bool(self.absolute) and all(gate.metric in SHARES - PAIRWISE for gate in self.relative)
