"""FineTuneJob: what a user asks for. Validation lives here as schema and CEL, so that the API server refuses it at once."""

import enum
from typing import Annotated, Any, Literal

from pydantic import Field

from finetune_api import basemodel, model

Quantity = Annotated[
    str,
    Field(
        pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$",
        max_length=32,
        json_schema_extra={"x-kubernetes-int-or-string": True},
    ),
]
Uri = Annotated[str, Field(pattern=r"^(s3://[^/\s]+/\S+|file:///\S+)$", max_length=1024)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
Labels = dict[str, Annotated[str, Field(max_length=63)]]

MAXIMUM_NAME = 40
"""Longest metadata.name: children append revision, stage and attempt, and Kubernetes names end at 63 characters."""


class Advice(enum.StrEnum):
    ENFORCE = "Enforce"
    WARN = "Warn"
    OFF = "Off"


class Intent(model.Model):
    """Why the job exists; the advisor reads it."""

    advice: Advice = Field(
        default=Advice.WARN,
        description="What to do when fine-tuning looks like the wrong tool, for example for too few examples. Enforce: stop "
        "before a GPU is requested. Warn: say so and go on. Off: say nothing. Default: Warn.",
    )


class BaseModelReference(model.Model):
    """The model to start from."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            (
                "has(self.name) != has(self.source)",
                "set exactly one of baseModel.name (an entry of `kubectl get basemodels`) and baseModel.source",
            ),
            ("!has(self.revision) || has(self.source)", "baseModel.revision belongs to baseModel.source; an entry has its own"),
        )
    }
    name: Name | None = Field(
        default=None, description="The name of a BaseModel of the catalogue (`kubectl get basemodels`)."
    )
    source: basemodel.Source | None = None
    revision: str | None = Field(
        default=None, max_length=128, description="The commit, tag or branch of an hf:// source. Absent: the main branch."
    )


class Format(enum.StrEnum):
    AUTO = "Auto"
    CHAT = "Chat"
    PROMPT_COMPLETION = "PromptCompletion"
    INSTRUCTION = "Instruction"
    TEXT = "Text"


UriList = Annotated[list[Uri], Field(min_length=1, max_length=64)]


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
        description="The share of the training files' examples to hold out, above 0 and at most 0.5. Examples with the same "
        "prompt stay on one side.",
    )
    uris: UriList | None = Field(default=None, description="Files of held-out examples, in the same formats as dataset.train.")


class Dataset(model.Model):
    """The examples: where they lie and how they are split."""

    format: Format = Field(
        default=Format.AUTO,
        description="How the examples are written. Chat: a list `messages` of {role, content}. PromptCompletion: `prompt` and "
        "`completion`. Instruction: `instruction`, optional `input`, `output`. Text: `text`. Auto (the default) tells by the "
        "fields of the first example.",
    )
    train: UriList = Field(
        description="The training files: 1 to 64 URIs such as s3://bucket/path/train.jsonl. JSONL, JSON, CSV and Parquet, plain "
        "or compressed (.gz, .zst); * and ? match within a folder, ** across folders."
    )
    validation: Split = Field(
        default_factory=lambda: Split(fraction=0.05),
        description="Examples that early stopping watches. Default: a fraction of 0.05 of the training files.",
        json_schema_extra={"default": {"fraction": 0.05}},
    )
    test: Split = Field(
        default_factory=lambda: Split(fraction=0.1),
        description="Examples that the evaluation scores, never seen in training. Default: a fraction of 0.1 of the training "
        "files.",
        json_schema_extra={"default": {"fraction": 0.1}},
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
        description="The place for everything that the job writes, below <output>/<namespace>/<name>/<revision>/. It cannot be "
        "changed later.",
        json_schema_extra=model.rules(
            ("self == oldSelf", "storage.output cannot be changed: create another FineTuneJob for another place"),
            ("!self.contains('/../') && !self.endsWith('/..')", "storage.output must not contain '..'"),
        ),
    )
    endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s/@]+/?$",
        max_length=256,
        description="The URL of an S3-compatible store, for example https://minio.example:9000. Absent: Amazon S3.",
    )
    region: str | None = Field(
        default=None, pattern=r"^[a-z0-9-]+$", max_length=64, description="The store's region, for example eu-west-1."
    )
    credentials_secret: Name | None = Field(
        default=None,
        description="The name of a Secret in the job's namespace with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, where "
        "needed, AWS_SESSION_TOKEN. Absent: the pods' own identity (IRSA, workload identity).",
    )
    service_account_name: Name | None = Field(
        default=None,
        description="The ServiceAccount of the job's pods, for example one with a cloud identity. Absent: the operator creates "
        "one for the job.",
    )


class Modules(enum.StrEnum):
    ALL_LINEAR = "AllLinear"
    ATTENTION = "Attention"
    MLP = "MLP"


class LoRA(model.Model):
    """The adapter's shape."""

    rank: Literal[8, 16, 32, 64, 128, 256] = Field(
        default=16, description="The rank of the update: 8, 16, 32, 64, 128 or 256, the ones that vLLM serves. Default: 16."
    )
    alpha: int = Field(default=32, ge=1, le=1024, description="The scale: updates are multiplied by alpha / rank. Default: 32.")
    dropout: float = Field(
        default=0, ge=0, lt=1, description="The share of the adapter's inputs dropped in training. Default: 0."
    )
    target_modules: Modules = Field(
        default=Modules.ALL_LINEAR,
        description="Which layers get an adapter. AllLinear: attention and feed-forward (the default), Attention, or MLP. The "
        "output head never does.",
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
    patience: int = Field(
        default=3,
        ge=1,
        le=100,
        description="The number of validations in a row without a better loss after which training stops. Default: 3.",
    )


class Checkpoints(model.Model):
    every_minutes: float = Field(
        default=10,
        ge=0.01,
        le=1440,
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
        description="Passes over the training examples. Absent, and maxSteps too: 3; more for fewer than 34 examples, fewer for "
        "more than 8,333.",
    )
    max_steps: int | None = Field(default=None, ge=1, le=10_000_000, description="Optimizer steps, instead of epochs.")
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="The peak learning rate after the warm-up. Absent: the BaseModel's default, else 2e-4 below 30 billion "
        "parameters and 1e-4 from there on.",
    )
    batch_size: int = Field(
        default=16, ge=1, le=4096, description="Examples of one optimizer step over all GPUs. Default: 16."
    )
    max_sequence_length: int = Field(
        default=2048, ge=16, le=1_048_576, description="Tokens of the longest example; longer ones are cut. Default: 2048."
    )
    gradient_checkpointing: GradientCheckpointing = Field(
        default=GradientCheckpointing.AUTO,
        description="Computing activations twice to save memory, at about 1.5 times the work. Auto (the default) does it only "
        "when the memory estimate says so.",
    )
    precision: Precision = Field(
        default=Precision.AUTO,
        description="The precision of the frozen base: Auto (the default: bfloat16 where the machine has it), BFloat16 or Float32. "
        "The adapter is always float32.",
    )
    loss_on: LossOn = Field(
        default=LossOn.ASSISTANT,
        description="Which tokens are learned: Assistant (all answers, the default), LastAssistant (the last answer of each chat) "
        "or All (prompts too).",
    )
    early_stopping: EarlyStopping = Field(default_factory=EarlyStopping, description="When to stop before the last epoch.")
    checkpoints: Checkpoints = Field(default_factory=Checkpoints, description="How often progress is saved to S3.")
    retries: int = Field(
        default=2, ge=0, le=20, description="Further attempts of a stage after failures that may pass. Default: 2."
    )
    seed: int = Field(default=42, ge=0, le=2**31 - 1, description="The seed of every random choice. Default: 42.")


class Toleration(model.Model):
    key: str | None = Field(default=None, max_length=317, description="The taint's key; empty with Exists tolerates all.")
    operator: Literal["Exists", "Equal"] = Field(default="Equal", description="Exists or Equal. Default: Equal.")
    value: str | None = Field(default=None, max_length=63, description="The taint's value, for Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="The taint's effect; absent: all effects."
    )
    toleration_seconds: int | None = Field(
        default=None, description="For NoExecute: how many seconds the pod stays. Absent: for good."
    )


class Requests(model.Model):
    cpu: Quantity | None = Field(default=None, description="CPU cores requested, for example 4 or 500m.")
    memory: Quantity | None = Field(
        default=None, description="Memory requested, for example 32Gi. It is also the limit, so that the node stays safe."
    )


class Resources(model.Model):
    """What the pods of a stage need."""

    gpus: int = Field(default=1, ge=0, le=16, description="GPUs of a pod; 0 runs on the CPU. Default: 1.")
    gpu_type: str | None = Field(
        default=None,
        max_length=63,
        description="A GPU type of the operator's settings, for example nvidia-l4; it stands for a node selector and "
        "tolerations. Absent: any GPU.",
    )
    requests: Requests = Field(default_factory=Requests, description="CPU and memory requests.")
    node_selector: Labels = Field(
        default_factory=dict, max_length=32, description="Labels that a node must have, besides those of the gpuType."
    )
    tolerations: list[Toleration] = Field(
        default_factory=list, max_length=32, description="Taints that the pods tolerate, besides those of the gpuType."
    )
    priority_class_name: Name | None = Field(default=None, description="The PriorityClass of the pods.")


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
        )
    }
    metric: Metric = Field(
        description="ExactMatch (share of answers equal to the expected one after trimming), RougeL (0 to 1), JsonValid (share of "
        "answers that parse as JSON), Loss (nats per answer token) or Perplexity."
    )
    minimum: float | None = Field(default=None, description="The tuned model's value must be at least this.")
    maximum: float | None = Field(default=None, description="The tuned model's value must be at most this.")
    over: Literal[Contender.BASE] | None = Field(
        default=None, description="The contender to be better than: Base, the same model without the adapter."
    )
    improvement: float | None = Field(
        default=None,
        ge=0,
        description="With over: by how much the tuned model must be better, in the metric's unit (lower is better for Loss and "
        "Perplexity). Absent: 0.",
    )


class Generation(model.Model):
    max_new_tokens: int = Field(
        default=256, ge=1, le=32_768, description="The most tokens of a generated answer. Answers are greedy. Default: 256."
    )


class Evaluation(model.Model):
    """How base and tuned model are compared on the held-out test examples."""

    maximum_examples: int = Field(
        default=500, ge=1, le=1_000_000, description="At most this many test examples are scored, chosen by the seed. Default: 500."
    )
    generation: Generation = Field(default_factory=Generation, description="How answers are generated.")
    gates: list[Gate] = Field(
        default_factory=list,
        max_length=16,
        description="What must hold before the model serves; all must pass. The first gate's metric is the job's score. Empty: "
        "every model passes.",
    )
    resources: Resources | None = Field(default=None, description="What the evaluation's pod needs. Absent: as spec.resources.")


class Rollout(model.Model):
    strategy: Literal["BlueGreen", "Recreate"] = Field(
        default="BlueGreen",
        description="BlueGreen (the default): the new revision starts beside the serving one and takes over when verified. "
        "Recreate: the serving one is stopped first, for clusters without a spare GPU, and comes back when the new one fails.",
    )


class Deployment(model.Model):
    """The server of the tuned model: vLLM with its OpenAI-compatible API."""

    enabled: bool = Field(
        default=True, description="Whether the model is served. Default: true; false ends the job with its report."
    )
    served_model_name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$",
        max_length=128,
        description="The name that clients send as `model`. Absent: the job's name.",
    )
    replicas: int = Field(default=1, ge=0, le=1000, description="Pods of the server. Default: 1.")
    resources: Resources = Field(default_factory=Resources, description="What each pod of the server needs.")
    image: str | None = Field(
        default=None,
        pattern=r"^[^\s]+$",
        max_length=512,
        description="The server's image; it must run vLLM's OpenAI server. Absent: the image of the operator's settings.",
    )
    extra_args: list[Annotated[str, Field(max_length=256)]] = Field(
        default_factory=list,
        max_length=32,
        description="Further arguments of vLLM, for example --max-model-len=4096. Arguments that the operator sets itself or that "
        "would open the server (such as --trust-remote-code) are refused.",
        json_schema_extra=model.rules(
            (
                "self.all(a, !['--model','--host','--port','--served-model-name','--lora-modules','--enable-lora','--max-lora-rank',"
                "'--chat-template','--api-key','--trust-remote-code','--allowed-local-media-path','--ssl-keyfile','--root-path',"
                "'--load-format','--tokenizer','--middleware','--worker-extension-cls','--logits-processors','--tool-parser-plugin',"
                "'--reasoning-parser-plugin','--enable-log-requests','--config']"
                ".exists(f, a == f || a.startsWith(f + '=')))",
                "deployment.extraArgs must not contain an argument that the operator sets or that would open the server "
                "(--model, --host, --port, --lora-modules, --api-key, --trust-remote-code and the like)",
            )
        ),
    )
    rollout: Rollout = Field(default_factory=Rollout, description="How a new revision takes over.")
    api_key_secret: Name | None = Field(
        default=None,
        description="The name of a Secret in the job's namespace whose key API_KEY clients must send as a bearer token. "
        "Absent: the server asks for none.",
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
        description="true stops the running stage, keeping its checkpoints; false resumes. A model that serves goes on serving.",
    )
    active_deadline_seconds: int = Field(
        default=86_400,
        ge=1,
        le=31_536_000,
        description="Seconds that a revision may take from its start to its end, waiting included, suspension not. Default: 86400.",
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        ge=0,
        le=315_360_000,
        description="Seconds after which a Complete or Failed job is deleted; never one that serves. Its files in S3 stay. "
        "Absent: never.",
    )


METADATA_RULES = model.rules(
    (
        f"self.metadata.name.size() <= {MAXIMUM_NAME}",
        f"metadata.name must have at most {MAXIMUM_NAME} characters, since the job's pods add revision, stage and attempt",
    ),
    (
        "!self.metadata.name.contains('.')",
        "metadata.name must not contain a dot, since the model's Service has the same name",
    ),
    (
        "self.metadata.name.matches('^[a-z]')",
        "metadata.name must begin with a letter, since the model's Service has the same name",
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
