"""The architecture of a base model, from the numbers of its config.json or of the catalogue. No weights, no torch.

config.json or catalogue -> Shape -> `memory`
"""

import dataclasses
from typing import Any

from finetune_api import basemodel, job, run

FAST = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
"""Values of model_type that `decoder` supports; any other takes the plain engine."""


@dataclasses.dataclass(frozen=True)
class Linear:
    """Linear layers of one input, as `fused` stores them."""

    name: str
    inputs: int
    outputs: int
    rank: int
    """Columns of all their adapters together."""

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs

    @property
    def adapter(self) -> int:
        """Elements that the adapters add to memory: the columns B beside the weight, and A."""
        return self.rank * (self.inputs + self.outputs)


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model's numbers, and the properties of its family."""

    numbers: basemodel.Architecture
    fast: bool = True
    """Whether `decoder` knows the family."""
    heads_normed: bool = False
    """Qwen 3 and Gemma 3 norm queries and keys: both are also saved before the norm."""
    blocks_normed: bool = False
    """Gemma norms the outputs of its blocks: these are also saved before the norm."""
    softcap: bool = False
    """Gemma 2 caps its logits by tanh."""
    stored: int = 2
    """Bytes of a weight in the files."""

    @property
    def queries(self) -> int:
        """Width of all query heads."""
        return self.numbers.attention_heads * self.numbers.head_dim

    @property
    def keys(self) -> int:
        """Width of all key heads, or value heads."""
        return self.numbers.key_value_heads * self.numbers.head_dim

    def linears(self, lora: job.LoRA) -> tuple[Linear, ...]:
        """The linear layers of one decoder layer, with the adapter's columns."""
        numbers, rank = self.numbers, lora.rank
        attention = rank if lora.target_modules is not job.Modules.MLP else 0
        mlp = rank if lora.target_modules is not job.Modules.ATTENTION else 0
        return (
            Linear("qkv", numbers.hidden_size, self.queries + 2 * self.keys, 3 * attention),
            Linear("out", self.queries, numbers.hidden_size, attention),
            Linear("up", numbers.hidden_size, 2 * numbers.intermediate_size, 2 * mlp),
            Linear("down", numbers.intermediate_size, numbers.hidden_size, mlp),
        )

    @property
    def embeddings(self) -> int:
        """Weights of the embedding and, where it is separate, of the output head."""
        numbers = self.numbers
        return numbers.vocabulary_size * numbers.hidden_size * (1 if numbers.tied_embeddings else 2)

    @property
    def parameters(self) -> int:
        """Weights of the base model, without biases and the small norms of some families."""
        layer = sum(linear.weights for linear in self.linears(job.LoRA())) + 2 * self.numbers.hidden_size
        return self.numbers.layers * layer + self.embeddings + self.numbers.hidden_size

    def adapter(self, lora: job.LoRA) -> int:
        """Weights of the adapter: A and B of each adapted layer."""
        numbers, rank = self.numbers, lora.rank
        hidden, middle = numbers.hidden_size, numbers.intermediate_size
        attention = 2 * (hidden + self.queries) + 2 * (hidden + self.keys)
        mlp = 3 * (hidden + middle)
        adapted = {job.Modules.ATTENTION: attention, job.Modules.MLP: mlp}.get(lora.target_modules, attention + mlp)
        return numbers.layers * rank * adapted


def of(config: dict[str, Any]) -> Shape | None:
    """The shape in a config.json; None where a model uses other names."""
    stored = config.get("dtype") or config.get("torch_dtype")
    config = config.get("text_config", config)
    try:
        heads = config["num_attention_heads"]
        numbers = basemodel.Architecture(
            layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            attention_heads=heads,
            key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocabulary_size=config["vocab_size"],
            max_positions=config.get("max_position_embeddings") or 2048,
            # Where the file does not say, Gemma's configuration class says yes.
            tied_embeddings=config.get("tie_word_embeddings", str(config.get("model_type")).startswith("gemma")),
        )
    except (KeyError, TypeError, ValueError):
        return None
    kind = str(config.get("model_type"))
    stored = config.get("dtype") or config.get("torch_dtype") or stored
    return dataclasses.replace(_family(numbers, kind), fast=kind in FAST, stored=4 if "float32" in str(stored) else 2)


SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def missing_sizes(config: dict[str, Any]) -> list[str]:
    """Sizes without which transformers would build another model than the one in the files: it has defaults for each."""
    if str(config.get("model_type")) in FAST:
        return [name for name in SIZES if not _size(config.get(name))]
    # Other families have other names for them, and some keep them in a part of their own.
    inner = [part for part in config.values() if isinstance(part, dict)]
    found = any(_size(value) for part in (config, *inner) for name, value in part.items() if not name.endswith("_id"))
    return [] if found else list(SIZES)


TOWERS = ("vision_config", "audio_config", "speech_config")


def tower(config: dict[str, Any]) -> str | None:
    """Why a model that reads more than text cannot be trained, whichever of its parts would be loaded; None: it reads text."""
    found = next((name for name in TOWERS if isinstance(config.get(name), dict)), None)
    return found and (
        f"its config.json has a {found}: the model reads more than text, and training.lora would adapt these layers, too; "
        "choose the model of the same family for text alone"
    )


def _size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 1


def of_catalogue(base: run.ResolvedBaseModel) -> Shape | None:
    """The shape by the catalogue's numbers; the family by the model's name, since they do not have it."""
    if base.architecture is None:
        return None
    text = f"{base.name} {base.source}".lower().replace("-", "").replace("_", "")
    families = ("qwen3", "gemma3", "gemma2")
    return _family(base.architecture, next((kind for kind in families if kind in text), ""))


def _family(numbers: basemodel.Architecture, kind: str) -> Shape:
    return Shape(
        numbers,
        heads_normed=kind.startswith(("qwen3", "gemma3")),
        blocks_normed=kind.startswith(("gemma2", "gemma3")),
        softcap=kind.startswith("gemma2"),
    )
