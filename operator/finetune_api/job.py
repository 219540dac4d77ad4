"""FineTuneJob: what a user asks for. Validation is schema and CEL, so that the API server refuses mistakes at once."""

import enum
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from finetune_api import basemodel, model


def _quantity(value: Any) -> Any:
    """`cpu: 4` is as good as `cpu: "4"`; everything else is left to the schema."""
    return str(value) if type(value) is int else value


Quantity = Annotated[
    str,
    # First the pattern, then the conversion: the other way round the pattern would not reach the schema.
    Field(
        pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$",
        max_length=32,
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            "x-message": "must be a quantity, for example 500m, 4 or 32Gi",
        },
    ),
    pydantic.BeforeValidator(_quantity),
]
_CORES = model.rules(
    (
        "!isQuantity(string(self)) || (quantity(string(self)).isGreaterThan(quantity('0'))"
        " && !quantity(string(self)).isGreaterThan(quantity('1024')))",
        "cpu is in cores, above 0 and at most 1024: write 4, or 500m for half a core",
    )
)
_MEMORY = model.rules(
    (
        "!isQuantity(string(self)) || !quantity(string(self)).isLessThan(quantity('64Mi'))",
        "memory is in bytes and must be at least 64Mi: write 32Gi, not 32",
    )
)
Uri = Annotated[
    str,
    model.text(
        r"^(s3://[^/\s]+/\S+|file:///\S+)$",
        "must be s3://bucket/path or file:///path, without spaces",
        1024,
    ),
]
_LABEL = r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)"
LabelValue = Annotated[
    str,
    model.text(
        f"^{_LABEL}?$", "must be a label's value: letters, digits, '-', '_' and '.', a letter or digit at both ends", 63
    ),
]
Labels = Annotated[
    dict[str, LabelValue],
    Field(
        max_length=32,
        json_schema_extra=model.rules(
            (
                f"self.all(k, k.size() <= 317 && k.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?{_LABEL}$'))",
                "every key must be a label's name, for example kubernetes.io/arch",
            )
        ),
    ),
]

MAXIMUM_NAME = 40
"""Longest metadata.name: children append revision, stage and attempt, and Kubernetes names end at 63 characters."""


class Advice(enum.StrEnum):
    ENFORCE = "Enforce"
    WARN = "Warn"
    # Not "Off": YAML readers turn a bare Off into false.
    IGNORE = "Ignore"


class Intent(model.Model):
    """Why the job exists; the advisor reads it."""

    advice: Advice = Field(
        default=Advice.WARN,
        description="What to do when fine-tuning looks like the wrong tool, for example for too few examples. "
        "Enforce: stop before a GPU is requested. Warn: say so and go on. Ignore: say nothing. Default: Warn.",
    )


class BaseModelReference(model.Model):
    """The model to start from."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            (
                "has(self.name) != has(self.source)",
                "set exactly one of baseModel.name (an entry of `kubectl get basemodels`) and baseModel.source",
            ),
            (
                "!has(self.revision) || has(self.source)",
                "baseModel.revision belongs to baseModel.source; an entry has its own",
            ),
        )
    }
    name: model.Name | None = Field(
        default=None, description="The name of a BaseModel of the catalogue (`kubectl get basemodels`)."
    )
    source: basemodel.Source | None = None
    revision: str | None = Field(
        default=None,
        max_length=128,
        description="The commit, tag or branch of an hf:// source. Absent: the main branch.",
    )


class Format(enum.StrEnum):
    AUTO = "Auto"
    CHAT = "Chat"
    PROMPT_COMPLETION = "PromptCompletion"
    INSTRUCTION = "Instruction"
    TEXT = "Text"
    PREFERENCE = "Preference"


UriList = Annotated[list[Uri], Field(min_length=1, max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"})]


class Split(model.Model):
    """Held-out examples: of their own files, or a share of the training files, split by prompt so that none leaks."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            ("has(self.fraction) != has(self.uris)", "set exactly one of fraction and uris for a held-out split")
        )
    }
    fraction: float | None = Field(
        default=None,
        gt=0,
        le=0.5,
        json_schema_extra={"x-message": "must be above 0 and at most 0.5: write 0.1 for 10 %"},
        description="The share of the training files' examples to hold out, above 0 and at most 0.5. Examples with "
        "the same prompt stay on one side.",
    )
    uris: UriList | None = Field(
        default=None, description="Files of held-out examples, in the same formats as dataset.train."
    )


class Dataset(model.Model):
    """The examples: where they lie and how they are split."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            (
                "(has(self.validation.fraction) ? self.validation.fraction : 0.0)"
                " + (has(self.test.fraction) ? self.test.fraction : 0.0) < 1.0",
                "dataset.validation.fraction and dataset.test.fraction together must stay below 1, or nothing is "
                "left to train on",
            ),
            (
                "!has(self.test.uris) || self.test.uris.all(u, !(u in self.train))",
                "dataset.test.uris must not name a file of dataset.train: the model would be scored on what it learned",
            ),
            (
                "!has(self.validation.uris) || self.validation.uris.all(u, !(u in self.train))",
                "dataset.validation.uris must not name a file of dataset.train: early stopping would watch what is "
                "learned",
            ),
        )
    }
    format: Format = Field(
        default=Format.AUTO,
        description="How the examples are written. Chat: a list `messages` of {role, content}. PromptCompletion: "
        "`prompt` and `completion`. Instruction: `instruction`, optional `input`, `output`. Text: `text`. Preference: "
        "`prompt`, `chosen` and `rejected`. Auto (the default) tells by the fields of the first example.",
    )
    train: UriList = Field(
        description="The training files: 1 to 64 URIs such as s3://bucket/path/train.jsonl. JSONL, JSON, CSV and "
        "Parquet, plain or compressed (.gz, .zst); * and ? match within a folder, ** across folders."
    )
    validation: Split = Field(
        default_factory=lambda: Split(fraction=0.05),
        description="Examples that early stopping watches. Default: a fraction of 0.05 of the training files.",
    )
    test: Split = Field(
        default_factory=lambda: Split(fraction=0.1),
        description="Examples that the evaluation scores, never seen in training. Default: a fraction of 0.1 of the "
        "training files.",
    )
    minimum_examples: int = Field(
        default=200,
        ge=1,
        le=1_000_000_000,
        description="Fewer training examples than this give the advice TooFewExamples. Default: 200.",
    )


class Storage(model.Model):
    """Where results go, and how S3 is reached; data and results use the same store."""

    output: str = Field(
        pattern=r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\s?*#]*)?|file:///\S+)$",
        max_length=512,
        description="The place for everything that the job writes, below <output>/<namespace>/<name>/<revision>/. It "
        "cannot be changed later.",
        json_schema_extra={"x-message": "must be s3://bucket/prefix or file:///folder, without spaces and wildcards"}
        | model.rules(
            ("self == oldSelf", "storage.output cannot be changed: create another FineTuneJob for another place"),
            ("!self.contains('/../') && !self.endsWith('/..')", "storage.output must not contain '..'"),
        ),
    )
    endpoint: (
        Annotated[
            str,
            model.text(
                r"^https?://[^\s/@]+/?$",
                "must be a URL of scheme, host and port alone, for example https://minio.example:9000",
                256,
            ),
        ]
        | None
    ) = Field(
        default=None,
        description="The URL of an S3-compatible store, for example https://minio.example:9000. Absent: Amazon S3.",
    )
    region: Annotated[str, model.text(r"^[a-z0-9-]+$", "must be a region's name, for example eu-west-1", 64)] | None = (
        Field(default=None, description="The store's region, for example eu-west-1.")
    )
    credentials_secret: model.Name | None = Field(
        default=None,
        description="The name of a Secret in the job's namespace with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, "
        "where needed, AWS_SESSION_TOKEN. Absent: the pods' own identity (IRSA, workload identity).",
    )
    service_account_name: model.Name | None = Field(
        default=None,
        description="The ServiceAccount of the job's pods, for example one with a cloud identity. Absent: the "
        "operator creates one for the job.",
    )


class Modules(enum.StrEnum):
    ALL_LINEAR = "AllLinear"
    ATTENTION = "Attention"
    MLP = "MLP"


class LoRA(model.Model):
    """The adapter's shape."""

    rank: Literal[8, 16, 32, 64, 128, 256] = Field(
        default=16,
        description="The rank of the update: 8, 16, 32, 64, 128 or 256, the ones that vLLM serves. Default: 16.",
    )
    alpha: int = Field(
        default=32, ge=1, le=1024, description="The scale: updates are multiplied by alpha / rank. Default: 32."
    )
    dropout: float = Field(
        default=0, ge=0, lt=1, description="The share of the adapter's inputs dropped in training. Default: 0."
    )
    target_modules: Modules = Field(
        default=Modules.ALL_LINEAR,
        description="Which layers get an adapter. AllLinear: attention and feed-forward (the default), Attention, or "
        "MLP. The output head never does.",
    )


class GradientCheckpointing(enum.StrEnum):
    AUTO = "Auto"
    ENABLED = "Enabled"
    DISABLED = "Disabled"


class Precision(enum.StrEnum):
    AUTO = "Auto"
    BFLOAT16 = "BFloat16"
    FLOAT32 = "Float32"


class LossOn(enum.StrEnum):
    ASSISTANT = "Assistant"
    LAST_ASSISTANT = "LastAssistant"
    ALL = "All"


class EarlyStopping(model.Model):
    """When to stop before the last epoch."""

    patience: int = Field(
        default=3,
        ge=1,
        le=100,
        description="The number of validations in a row without a better loss after which training stops. Default: 3.",
    )


class Checkpoints(model.Model):
    """How often progress is saved."""

    every_minutes: float = Field(
        default=10,
        ge=0.01,
        le=1440,
        json_schema_extra={"x-message": "must be from 0.01 to 1440 minutes"},
        description="Minutes between checkpoints; what is lost with a node is at most this much work. Default: 10.",
    )
    keep: int = Field(default=2, ge=1, le=100, description="The number of newest checkpoints to keep. Default: 2.")


class Training(model.Model):
    """How the adapter is trained."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            ("!(has(self.epochs) && has(self.maxSteps))", "set at most one of training.epochs and training.maxSteps")
        )
    }
    lora: LoRA = Field(default_factory=LoRA, description="The adapter's shape.")
    epochs: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="Passes over the training examples. Absent, and maxSteps too: 3; more for fewer than 34 "
        "examples, fewer for more than 8,333.",
    )
    max_steps: int | None = Field(default=None, ge=1, le=10_000_000, description="Optimizer steps, instead of epochs.")
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="The peak learning rate after the warm-up. Absent: the BaseModel's default, else 2e-4 below 30 "
        "billion parameters and 1e-4 from there on.",
    )
    batch_size: int = Field(
        default=16, ge=1, le=4096, description="Examples of one optimizer step over all GPUs. Default: 16."
    )
    max_sequence_length: int = Field(
        default=2048,
        ge=16,
        le=1_048_576,
        description="Tokens of the longest example; longer ones are cut. Default: 2048.",
    )
    gradient_checkpointing: GradientCheckpointing = Field(
        default=GradientCheckpointing.AUTO,
        description="Computing activations twice to save memory, at about 1.5 times the work. Auto (the default) "
        "does it only when the memory estimate says so.",
    )
    precision: Precision = Field(
        default=Precision.AUTO,
        description="The precision of the frozen base: Auto (the default: bfloat16 where the machine has it), "
        "BFloat16 or Float32. The adapter is always float32.",
    )
    loss_on: LossOn = Field(
        default=LossOn.ASSISTANT,
        description="Which tokens are learned: Assistant (all answers, the default), LastAssistant (the last answer "
        "of each chat) or All (prompts too).",
    )
    early_stopping: EarlyStopping = Field(
        default_factory=EarlyStopping, description="When to stop before the last epoch."
    )
    checkpoints: Checkpoints = Field(default_factory=Checkpoints, description="How often progress is saved to S3.")
    retries: int = Field(
        default=2, ge=0, le=20, description="Further attempts of a stage after failures that may pass. Default: 2."
    )
    seed: int = Field(default=42, ge=0, le=2**31 - 1, description="The seed of every random choice. Default: 42.")


class Toleration(model.Model):
    """A taint that the pods tolerate, as in a pod's spec."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            ("self.operator == 'Equal' || !has(self.value)", "a toleration with operator Exists must not have a value"),
            ("self.operator == 'Exists' || has(self.key)", "a toleration without a key needs operator Exists"),
            (
                "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
                "tolerationSeconds needs effect NoExecute",
            ),
        )
    }
    key: str | None = Field(
        default=None, min_length=1, max_length=317, description="The taint's key; absent with Exists: every taint."
    )
    operator: Literal["Exists", "Equal"] = Field(default="Equal", description="Exists or Equal. Default: Equal.")
    value: LabelValue | None = Field(default=None, description="The taint's value, for Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="The taint's effect; absent: all effects."
    )
    toleration_seconds: int | None = Field(
        default=None, description="For NoExecute: how many seconds the pod stays. Absent: for good."
    )


class Requests(model.Model):
    """CPU and memory requests."""

    cpu: Quantity | None = Field(
        default=None, description="CPU cores requested, for example 4 or 500m.", json_schema_extra=_CORES
    )
    memory: Quantity | None = Field(
        default=None,
        description="Memory requested, for example 32Gi. It is also the limit, so that the node stays safe.",
        json_schema_extra=_MEMORY,
    )


class Resources(model.Model):
    """What the pods of a stage need."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            (
                "!has(self.gpuType) || self.gpus > 0",
                "resources.gpuType needs resources.gpus of at least 1: remove one of them",
            )
        )
    }
    gpus: int = Field(
        default=1,
        ge=0,
        le=16,
        description="GPUs of a pod; 0 runs on the CPU. A server splits its model over them; training and evaluation use one "
        "so far. Default: 1.",
    )
    gpu_type: (
        Annotated[
            str, model.text(f"^{_LABEL}$", "must be a GPU type of the operator's settings, for example nvidia-l4", 63)
        ]
        | None
    ) = Field(
        default=None,
        description="A GPU type of the operator's settings, for example nvidia-l4; it stands for a node selector and "
        "tolerations. Absent: any GPU.",
    )
    requests: Requests = Field(default_factory=Requests, description="CPU and memory requests.")
    node_selector: Labels = Field(
        default_factory=dict, description="Labels that a node must have, besides those of the gpuType."
    )
    tolerations: list[Toleration] = Field(
        default_factory=list, max_length=32, description="Taints that the pods tolerate, besides those of the gpuType."
    )
    priority_class_name: model.Name | None = Field(default=None, description="The PriorityClass of the pods.")


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


class Rollout(model.Model):
    """How a new revision takes over."""

    strategy: Literal["BlueGreen", "Recreate"] = Field(
        default="BlueGreen",
        description="BlueGreen (the default): the new revision starts beside the serving one and takes over when "
        "verified. Recreate: the serving one is stopped first, for clusters without a spare GPU, and comes back when "
        "the new one fails.",
    )


class Deployment(model.Model):
    """The server of the tuned model: vLLM with its OpenAI-compatible API."""

    enabled: bool = Field(
        default=True, description="Whether the model is served. Default: true; false ends the job with its report."
    )
    served_model_name: (
        Annotated[
            str,
            model.text(
                r"^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$",
                "must consist of letters, digits, '.', '_', '-' and '/', with a letter or digit at both ends",
                128,
            ),
        ]
        | None
    ) = Field(
        default=None,
        description="The name that clients send as `model`. Absent: the job's name.",
    )
    replicas: int = Field(default=1, ge=1, le=1000, description="Pods of the server. Default: 1.")
    resources: Resources = Field(default_factory=Resources, description="What each pod of the server needs.")
    image: (
        Annotated[
            str,
            model.text(r"^[a-z0-9][^\s]*$", "must be an image's reference, for example vllm/vllm-openai:v0.20.0", 512),
        ]
        | None
    ) = Field(
        default=None,
        description="The server's image; it must run vLLM's OpenAI server. Absent: the image of the operator's "
        "settings.",
    )
    extra_args: basemodel.Arguments = Field(
        default_factory=list,
        description="Further arguments of vLLM, for example --max-model-len=4096. Arguments that the operator sets "
        "itself or that would open the server (such as --trust-remote-code) are refused.",
    )
    rollout: Rollout = Field(default_factory=Rollout, description="How a new revision takes over.")
    api_key_secret: model.Name | None = Field(
        default=None,
        description="The name of a Secret in the job's namespace whose key API_KEY clients must send as a bearer "
        "token. Absent: the server asks for none.",
    )


class FineTuneJobSpec(model.Model):
    """One job from data to a served, measured model."""

    intent: Intent = Field(default_factory=Intent, description="Why the job exists, and how strict advice is.")
    base_model: BaseModelReference = Field(description="The model to start from: exactly one of name and source.")
    dataset: Dataset = Field(description="The examples.")
    storage: Storage = Field(description="Where results go, and how S3 is reached.")
    training: Training = Field(default_factory=Training, description="How the adapter is trained.")
    resources: Resources = Field(default_factory=Resources, description="What the training pod needs.")
    evaluation: Evaluation = Field(
        default_factory=Evaluation, description="How the tuned model is compared with the base, and what it must reach."
    )
    deployment: Deployment = Field(default_factory=Deployment, description="How the tuned model is served.")
    suspend: bool = Field(
        default=False,
        description="true stops the running stage, keeping its checkpoints; false resumes. A model that serves goes "
        "on serving.",
    )
    active_deadline_seconds: int = Field(
        default=86_400,
        ge=1,
        le=31_536_000,
        description="Seconds that a revision may take from its start to its end, waiting included, suspension not. "
        "Default: 86400.",
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        ge=0,
        le=315_360_000,
        description="Seconds after which a Complete or Failed job is deleted; never one that serves. Its files in S3 "
        "stay. Absent: never.",
    )


NAME_RULES = model.rules(
    (
        f"self.metadata.name.size() <= {MAXIMUM_NAME}",
        f"metadata.name must have at most {MAXIMUM_NAME} characters, since the job's pods add revision, stage and "
        "attempt",
    ),
    (
        "!self.metadata.name.contains('.')",
        "metadata.name must not contain a dot, since the model's Service has the same name",
    ),
    (
        "self.metadata.name.matches('^[a-z]')",
        "metadata.name must begin with a letter, since the model's Service has the same name",
    ),
    (
        "!has(self.spec.baseModel.name) || self.spec.baseModel.name != (has(self.spec.deployment.servedModelName) ? "
        "self.spec.deployment.servedModelName : self.metadata.name)",
        "the served name (deployment.servedModelName, or else metadata.name) must differ from baseModel.name: the server "
        "lists both",
    ),
)

PRINTER_COLUMNS: list[dict[str, Any]] = [
    {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
    {"name": "Progress", "type": "string", "jsonPath": ".status.progress.summary"},
    {"name": "ETA", "type": "string", "jsonPath": ".status.progress.eta"},
    {"name": "Loss", "type": "string", "jsonPath": ".status.progress.loss"},
    {"name": "Score", "type": "string", "jsonPath": ".status.evaluation.score"},
    {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].status"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    {"name": "Model", "type": "string", "jsonPath": ".status.baseModel", "priority": 1},
    {"name": "Revision", "type": "string", "jsonPath": ".status.revision", "priority": 1},
    {"name": "Serving", "type": "string", "jsonPath": ".status.deployment.revision", "priority": 1},
    {"name": "Attempt", "type": "integer", "jsonPath": ".status.attempt", "priority": 1},
    {"name": "Endpoint", "type": "string", "jsonPath": ".status.deployment.endpoint", "priority": 1},
]
