"""BaseModel: an entry of the platform team's catalogue, which jobs reference by name; and a job's reference to its model."""

from typing import Annotated, Any

from pydantic import Field

from finetune_api import arguments, model
from finetune_api import storage as stores

Source = Annotated[
    str,
    model.text(
        r"^(hf://[^/\s]+/[^/\s]+|s3://[^/\s]+/\S(.*\S)?|pvc://[a-z0-9][-a-z0-9.]*(/\S+)?|file:///\S(.*\S)?)$",
        "must be hf://organisation/name, s3://bucket/prefix, pvc://claim/path or file:///path",
        512,
    ),
    Field(
        description="Where the model's files are: hf://organisation/name, s3://bucket/prefix, pvc://claim/path (a "
        "claim in the job's namespace), or file:///path (local runs only). The folder must be in the "
        "transformers layout with safetensors weights.",
    ),
]

ARCHITECTURE = (
    "Numbers of the model's config.json. They allow estimating the memory of training before any weights are "
    "downloaded."
)


class Architecture(model.Model):
    """The numbers that the memory estimate needs."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            (
                "self.attentionHeads % self.keyValueHeads == 0",
                "architecture.keyValueHeads must divide attentionHeads: copy num_key_value_heads from the model's "
                "config.json",
            )
        )
    }
    layers: int = Field(ge=1, le=1000, description="The number of decoder layers (num_hidden_layers).")
    hidden_size: int = Field(ge=1, description="The width of the residual stream (hidden_size).")
    intermediate_size: int = Field(ge=1, description="The width of the feed-forward layer (intermediate_size).")
    attention_heads: int = Field(ge=1, description="The number of query heads (num_attention_heads).")
    key_value_heads: int = Field(ge=1, description="The number of key and value heads (num_key_value_heads).")
    head_dim: int = Field(ge=1, description="The width of one attention head (head_dim).")
    vocabulary_size: int = Field(ge=1, description="The number of rows of the embedding (vocab_size).")
    max_positions: int = Field(
        ge=1, description="The longest sequence that the model supports (max_position_embeddings)."
    )
    tied_embeddings: bool = Field(
        default=False, description="Whether the output head shares the embedding's weights (tie_word_embeddings)."
    )

    def splits(self, gpus: int) -> list[int]:
        """Over how many of so many GPUs vLLM can split a layer, which takes query heads evenly, and KV heads evenly or as whole
        copies: all of them, or a power of two, which divides the other sizes of every usual model."""
        counts = [1 << power for power in range(gpus.bit_length()) if 1 << power < gpus]
        return [
            count
            for count in [*counts, max(1, gpus)]
            if self.attention_heads % count == 0 and 0 in (self.key_value_heads % count, count % self.key_value_heads)
        ]


class TrainingDefaults(model.Model):
    """Values for jobs of this model that do not set them."""

    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="The peak learning rate for jobs that set none. Absent: a formula, see FineTuneJob's "
        "training.learningRate.",
    )


class ServingDefaults(model.Model):
    """Settings of the server of this model, in addition to the job's own."""

    extra_args: arguments.OfTheCatalogue = Field(
        default_factory=list,
        description="Arguments of vLLM that every deployment of this model gets, before the job's own extraArgs: "
        "any except those that the operator sets itself.",
    )


class Defaults(model.Model):
    """Defaults for jobs that choose this model."""

    training: TrainingDefaults = Field(
        default_factory=TrainingDefaults, description="Training defaults of jobs that choose this model."
    )
    serving: ServingDefaults = Field(
        default_factory=ServingDefaults, description="Serving defaults of jobs that choose this model."
    )


class BaseModelSpec(model.Model):
    """The location and architecture of a base model, and defaults for jobs that use it."""

    source: Source
    revision: str | None = Field(
        default=None,
        max_length=128,
        description="The commit, tag or branch of an hf:// source. A commit makes jobs reproducible. Absent: the "
        "main branch.",
    )
    family: str | None = Field(
        default=None,
        max_length=64,
        description="The model family, shown to people and in dashboards, for example llama-3 or qwen-2.5.",
    )
    parameters: int | None = Field(
        default=None, ge=1, description="The number of parameters, for example 8030261248 for Llama 3.1 8B."
    )
    architecture: Architecture | None = Field(default=None, description=ARCHITECTURE)
    license: str | None = Field(
        default=None, max_length=128, description="The SPDX identifier or name of the license, shown to people."
    )
    access_token_secret: model.Name | None = Field(
        default=None,
        description="The name of a Secret in the job's namespace whose key HF_TOKEN gives access to a gated hf:// "
        "model.",
    )
    storage: stores.Connection | None = Field(
        default=None,
        description="The store of an s3:// source, where it is not that of the job, or has other credentials: its "
        "credentialsSecret is in the job's namespace. Absent: as the job's spec.storage.",
    )
    defaults: Defaults = Field(default_factory=Defaults, description="Defaults for jobs that choose this model.")


_REVISION = (
    "!has(self.revision) || has(self.source)",
    "baseModel.revision needs baseModel.source; an entry of the catalogue has its own revision",
)


class BaseModelReference(model.Model):
    """The model to start from."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            (
                "has(self.name) != has(self.source)",
                "set exactly one of baseModel.name (an entry of `kubectl get basemodels`) and baseModel.source",
            ),
            _REVISION,
        )
    }
    name: model.Name | None = Field(
        default=None, description="The name of a BaseModel in the catalogue (`kubectl get basemodels`)."
    )
    source: Source | None = None
    revision: str | None = Field(
        default=None,
        max_length=128,
        description="The commit, tag or branch of an hf:// source. Absent: the main branch.",
    )


class StartingModel(BaseModelReference):
    """The model that a job starts from, or several of which the smallest that passes the gates is used."""

    model_config = model.Model.model_config | {
        "json_schema_extra": model.rules(
            (
                "(has(self.name) ? 1 : 0) + (has(self.source) ? 1 : 0) + (has(self.candidates) ? 1 : 0) == 1",
                "set exactly one of baseModel.name (an entry of `kubectl get basemodels`), baseModel.candidates (several of "
                "them) and baseModel.source",
            ),
            _REVISION,
        )
    }
    candidates: list[model.Name] | None = Field(
        default=None,
        min_length=2,
        max_length=8,
        description="Names of BaseModels, of which the smallest that passes the gates is used. They are trained and evaluated "
        "one after the other, by BaseModel.parameters, or as listed where one has no parameters: the next one only after "
        "evidence that the one before misses a gate. status.candidates shows each.",
        json_schema_extra=model.rules(
            ("self.all(a, self.exists_one(b, a == b))", "baseModel.candidates must not name a BaseModel twice"),
        ),
    )


PRINTER_COLUMNS: list[dict[str, Any]] = [
    {"name": "Family", "type": "string", "jsonPath": ".spec.family"},
    {"name": "Parameters", "type": "integer", "jsonPath": ".spec.parameters"},
    {"name": "Source", "type": "string", "jsonPath": ".spec.source"},
    {"name": "License", "type": "string", "jsonPath": ".spec.license", "priority": 1},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
]
