"""How the tuned model is compared: the section `evaluation` of a job. Names of contenders and gates are available here, too."""

import enum
from typing import Annotated, Any

from pydantic import Field

from finetune_api import model
from finetune_api.benchmarks import Harness
from finetune_api.contenders import (
    BASELINES,
    BEST,
    BEST_ALTERNATIVE,
    FORMER_DEFAULTS,
    Baseline,
    Candidate,
    Contender,
    Endpoint,
    SecretName,
    ServedName,
    alternatives,
    compared_with,
)
from finetune_api.dataset import UriList
from finetune_api.gates import (
    FORGOTTEN,
    MEANINGS,
    OF_TRAINING,
    OVER_BASE,
    PAIRWISE,
    SHARES,
    Gate,
)
from finetune_api.resources import Resources

__all__ = [
    "BASELINES",
    "BEST",
    "BEST_ALTERNATIVE",
    "FORGOTTEN",
    "FORMER_DEFAULTS",
    "MEANINGS",
    "OF_TRAINING",
    "OVER_BASE",
    "PAIRWISE",
    "Consistency",
    "Contender",
    "Evaluation",
    "EvaluationEngine",
    "Forgetting",
    "Generation",
    "Judge",
    "Label",
    "SchemaObject",
    "alternatives",
    "compared_with",
]


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
        "evaluation, as a share of the training's, on one device; at least 30 seconds, and as many for each candidate and for "
        "intent.prompt.optimizer. What does not fit is left out and named. Default: 0.1.",
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
        "The baseline Structured is held to it while it answers, and with that baseline so are candidates whose endpoint takes a "
        "schema; the tuned model is not. Absent: none.",
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
    def scoring(self) -> "Evaluation":
        """What the answers to validation examples are scored by while the adapter trains."""
        return Evaluation(
            gates=self.gates,
            labels=self.labels,
            output_schema=self.output_schema,
            generation=self.generation,
            maximum_examples=self.maximum_examples,
        )

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
