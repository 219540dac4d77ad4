"""How a job's adapter is trained."""

import enum
from typing import Annotated, Literal

from pydantic import Field

from finetune_api import model
from finetune_api.contenders import CANDIDATE


class Objective(enum.StrEnum):
    SFT = "SFT"
    DPO = "DPO"


class Method(enum.StrEnum):
    LORA = "LoRA"
    QLORA = "QLoRA"


class DPO(model.Model):
    """Direct preference optimisation (arXiv 2305.18290)."""

    beta: float = Field(
        default=0.1,
        gt=0,
        le=10,
        description="How strongly the tuned model is kept close to the base model: smaller values let it move "
        "further away. Default: 0.1.",
    )


class Modules(enum.StrEnum):
    ALL_LINEAR = "AllLinear"
    ATTENTION = "Attention"
    MLP = "MLP"


class LoRA(model.Model):
    """The adapter's shape."""

    rank: Literal[8, 16, 32, 64, 128, 256] = Field(
        default=16,
        description="The rank of the update: 8, 16, 32, 64, 128 or 256, the ranks that vLLM can serve. Default: 16.",
    )
    alpha: int = Field(
        default=32,
        ge=1,
        le=1024,
        description="The scaling factor: updates are multiplied by alpha / rank. Default: 32.",
    )
    dropout: float = Field(
        default=0, ge=0, lt=1, description="The dropout rate of the adapter's inputs in training. Default: 0."
    )
    target_modules: Modules = Field(
        default=Modules.ALL_LINEAR,
        description="Which layers get an adapter: AllLinear (attention and feed-forward layers, the default), "
        "Attention, or MLP. The output head never gets one.",
    )


class GradientCheckpointing(enum.StrEnum):
    AUTO = "Auto"
    ENABLED = "Enabled"
    DISABLED = "Disabled"


class Precision(enum.StrEnum):
    AUTO = "Auto"
    BFLOAT16 = "BFloat16"
    FLOAT32 = "Float32"


class TrainingPrompt(enum.StrEnum):
    AS_WRITTEN = "AsWritten"
    PROMPT = "Prompt"


PROMPTED = "Prompt"
"""training.teacher: the base model with intent.prompt.system."""

Teacher = Annotated[
    str,
    model.text(f"^({PROMPTED}|{CANDIDATE})$", f"must be {PROMPTED} or the name of one of evaluation.candidates", 63),
]


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
        description="The number of consecutive validations with neither a lower loss nor better answers after which "
        "training stops. Default: 3.",
    )


class Search(model.Model):
    """Settings that are tried on the first steps of the training before one of them is trained to the end."""

    learning_rates: int = Field(
        ge=2,
        le=8,
        description="The number of learning rates to try: that of a job without a search, and others a factor of 2 apart, more "
        "of them above it than below. Each trains the first 15 % of the steps; the one with the lowest validation loss "
        "continues, as if it had been the only one. Four take about 1.5 times the steps of one.",
    )


class Checkpoints(model.Model):
    """How often progress is saved."""

    every_minutes: float = Field(
        default=10,
        ge=0.01,
        le=1440,
        json_schema_extra={"x-message": "must be from 0.01 to 1440 minutes"},
        description="Minutes between checkpoints; at most this much work is lost with a node. Default: 10.",
    )
    keep: int = Field(default=2, ge=1, le=100, description="The number of newest checkpoints to keep. Default: 2.")


class Replay(model.Model):
    """General examples among those of the task, so that the tuned model forgets less of what it knew."""

    share: float = Field(
        gt=0,
        le=0.5,
        json_schema_extra={"x-message": "must be above 0 and at most 0.5: write 0.1 for 10 %"},
        description="The share of general examples among all: 0.1 is one of ten. Their prompts are the trainer's own, in "
        "English; the base model writes the answers before training, at most 64 tokens each. With training.maxSteps they "
        "take the place of examples of the task.",
    )


class Training(model.Model):
    """How the adapter is trained."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            ("!(has(self.epochs) && has(self.maxSteps))", "set at most one of training.epochs and training.maxSteps"),
            (
                "!has(self.replay) || self.objective == 'SFT'",
                "training.replay needs training.objective SFT: preferences have no general pairs; remove training.replay",
            ),
            (
                "!has(self.dpo) || self.objective == 'DPO'",
                "training.dpo needs training.objective DPO: set it, or remove training.dpo",
            ),
            (
                "!has(self.teacher) || self.objective == 'SFT'",
                "training.teacher needs training.objective SFT: a teacher writes one answer to each prompt; remove "
                "training.teacher",
            ),
            (
                "!has(self.teacher) || self.teacher != 'Prompt' || self.prompt == 'AsWritten'",
                "training.teacher Prompt puts intent.prompt.system into the weights, and training.prompt Prompt keeps it in each "
                "request: remove one of them",
            ),
        )
    }
    objective: Objective = Field(
        default=Objective.SFT,
        description="The training objective. SFT (the default) learns the answers of the examples. DPO learns to "
        "prefer the chosen answer to the rejected one, from examples in format Preference.",
    )
    dpo: DPO | None = Field(default=None, description="Settings of objective DPO. Absent: their defaults.")
    method: Method = Field(
        default=Method.LORA,
        description="How the frozen base model is stored while the adapter is trained. LoRA (the default): in "
        "training.precision. QLoRA: in 4 bits (nf4), for a base model that does not fit otherwise, at 1.5 to 2 "
        "times the computation.",
    )
    lora: LoRA = Field(default_factory=LoRA, description="The adapter's shape.")
    epochs: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="Passes over the training examples. If maxSteps is absent too: 3; more for fewer than 34 "
        "examples, fewer for more than 8,333.",
    )
    max_steps: int | None = Field(default=None, ge=1, le=10_000_000, description="Optimizer steps, instead of epochs.")
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="The peak learning rate, reached after the warm-up. Absent: the BaseModel's default, else "
        "a formula of the model's family and width, batchSize and the number of steps; status.preflight.learningRate "
        "says which rate that is.",
    )
    search: Search | None = Field(
        default=None, description="Tries several learning rates. Absent: one learning rate, trained to the end."
    )
    batch_size: int = Field(
        default=16, ge=1, le=4096, description="Examples per optimizer step, over all GPUs and nodes. Default: 16."
    )
    max_sequence_length: int = Field(
        default=2048,
        ge=16,
        le=1_048_576,
        description="The maximum number of tokens of an example; longer ones are truncated. Default: 2048.",
    )
    gradient_checkpointing: GradientCheckpointing = Field(
        default=GradientCheckpointing.AUTO,
        description="Recomputes activations in the backward pass to save memory, at about 1.5 times the "
        "computation. Auto (the default) enables it only if the memory estimate requires it.",
    )
    precision: Precision = Field(
        default=Precision.AUTO,
        description="The precision of the frozen base model: Auto (the default: bfloat16 where the hardware "
        "supports it), BFloat16 or Float32. The adapter is always float32.",
    )
    loss_on: LossOn = Field(
        default=LossOn.ASSISTANT,
        description="Which tokens are learned: Assistant (all answers, the default), LastAssistant (the last answer "
        "of each chat) or All (prompts too).",
    )
    prompt: TrainingPrompt = Field(
        default=TrainingPrompt.AS_WRITTEN,
        description="The system prompt of the training examples. AsWritten (the default): their own. Prompt: "
        "intent.prompt.system in place of it, for training and prompting together; the tuned model is then evaluated with it, "
        "and clients must send it. An edit of intent.prompt.system then trains again.",
    )
    teacher: Teacher | None = Field(
        default=None,
        description="Who writes the answers that are learned. Prompt: the base model with intent.prompt.system, before "
        "training, so that the tuned model answers without the prompt as the base model does with it; rows need no answers, "
        "and the last answer of rows that have one is not used, in test files neither: the teacher's answers are the "
        "reference. The name of one of evaluation.candidates: that model, with intent.prompt.system where it is set; the "
        "questions of all training, validation and test examples are sent to its endpoint, and it is no contender. An edit of "
        "intent.prompt.system, or of the candidate's endpoint or model, then trains again. Absent: the answers of the rows.",
    )
    replay: Replay | None = Field(
        default=None,
        description="General examples among those of the task, against forgetting. Absent: none.",
    )
    early_stopping: EarlyStopping = Field(
        default_factory=EarlyStopping, description="When to stop before the last epoch."
    )
    checkpoints: Checkpoints = Field(default_factory=Checkpoints, description="How often progress is saved to S3.")
    retries: int = Field(
        default=2,
        ge=0,
        le=20,
        description="Further attempts of a stage after failures that may be transient. Default: 2.",
    )
    seed: int = Field(default=42, ge=0, le=2**31 - 1, description="The seed of all random choices. Default: 42.")
