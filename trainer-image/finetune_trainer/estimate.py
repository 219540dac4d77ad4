"""Memory of LoRA training from the architecture's numbers: pure arithmetic, no weights needed.

    total = weights + adapter with optimizer + activations of a micro-batch + loss chunk + overhead

preflight reports it; train chooses micro-batch and gradient checkpointing by it. Bytes everywhere.
"""

import dataclasses
from typing import Any

from finetune_api import basemodel, job

BYTES = 2
"""Of a base weight and an activation: bfloat16. Float32 doubles both."""

MASTER = 16
"""Of an adapter weight: float32 value, gradient and AdamW's two moments."""

OVERHEAD = {"cuda": 1 << 30, "cpu": 1300 << 20}
"""The libraries, and on a GPU the context. Of a CPU measured: SmolLM2-135M peaks at 2.3 and 2.9 GiB with micro-batches of
679 and 1,357 tokens, the estimate says 2.4 and 3.0."""

FRAGMENTATION = 1.2
CHUNK = 512
"""Positions of a loss chunk; see `loss`."""

SHARE = 0.85
"""Of the device's memory that may be planned for."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes by purpose."""

    weights: int
    adapter: int
    activations: int
    loss: int
    overhead: int

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.activations + self.loss + self.overhead


@dataclasses.dataclass(frozen=True)
class Setup:
    """What train runs with."""

    tokens: int
    """Tokens of a micro-batch, padding included."""
    checkpointing: bool
    memory: Memory


def architecture(config: dict[str, Any]) -> basemodel.Architecture | None:
    """The numbers of a config.json; None where a model names them otherwise."""
    config = config.get("text_config", config)
    try:
        heads = config["num_attention_heads"]
        return basemodel.Architecture(
            layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            attention_heads=heads,
            key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocabulary_size=config["vocab_size"],
            max_positions=config.get("max_position_embeddings") or 2048,
            tied_embeddings=config.get("tie_word_embeddings", False),
        )
    except (KeyError, TypeError, ValueError):
        return None


def shapes(arch: basemodel.Architecture, modules: job.Modules) -> list[tuple[int, int]]:
    """(in, out) of the linear layers of one decoder layer that the adapter targets."""
    h, i = arch.hidden_size, arch.intermediate_size
    q, kv = arch.attention_heads * arch.head_dim, arch.key_value_heads * arch.head_dim
    attention, mlp = [(h, q), (h, kv), (h, kv), (q, h)], [(h, i), (h, i), (i, h)]
    if modules is job.Modules.ATTENTION:
        return attention
    return mlp if modules is job.Modules.MLP else attention + mlp


def parameters(arch: basemodel.Architecture) -> int:
    """Weights of the base model."""
    layer = sum(one * other for one, other in shapes(arch, job.Modules.ALL_LINEAR)) + 2 * arch.hidden_size
    embeddings = arch.vocabulary_size * arch.hidden_size * (1 if arch.tied_embeddings else 2)
    return arch.layers * layer + embeddings + arch.hidden_size


def adapter_parameters(arch: basemodel.Architecture, lora: job.LoRA) -> int:
    return arch.layers * sum(lora.rank * (one + other) for one, other in shapes(arch, lora.target_modules))


def activations(arch: basemodel.Architecture, tokens: int, checkpointing: bool, width: int = BYTES) -> int:
    """What the backward pass keeps of a micro-batch.

    A layer keeps per token: two norms' float32 inputs and their outputs, queries, keys and values (repeated to all heads),
    the attention's output twice, and four feed-forward activations. With checkpointing: each layer's input, and one layer.
    """
    q = arch.attention_heads * arch.head_dim
    layer = 2 * (4 + width) * arch.hidden_size + 5 * width * q + 4 * width * arch.intermediate_size
    kept = arch.layers * layer if not checkpointing else arch.layers * width * arch.hidden_size + layer
    return round(tokens * kept * FRAGMENTATION)


def memory(
    arch: basemodel.Architecture,
    training: job.Training,
    tokens: int,
    *,
    checkpointing: bool,
    device: str = "cuda",
    weights: int | None = None,
    width: int = BYTES,
) -> Memory:
    """The estimate for micro-batches of `tokens`."""
    return Memory(
        weights=(weights or parameters(arch)) * width,
        adapter=adapter_parameters(arch, training.lora) * MASTER,
        activations=activations(arch, tokens, checkpointing, width),
        loss=min(CHUNK, tokens) * arch.vocabulary_size * (2 * 4 + width),
        overhead=OVERHEAD[device],
    )


def setup(
    arch: basemodel.Architecture,
    training: job.Training,
    *,
    longest: int,
    average: float,
    available: int,
    device: str,
    weights: int | None = None,
    width: int = BYTES,
) -> Setup:
    """The micro-batch that fits into `available` bytes, and whether checkpointing is needed for it.

    As many tokens as one step has, but no more than the device gains from, and never fewer than the longest example.
    """
    wanted = max(longest, min(round(average * training.batch_size * 1.1), 16_384 if device == "cuda" else 2_048))
    modes = {
        job.GradientCheckpointing.AUTO: (False, True),
        job.GradientCheckpointing.ENABLED: (True,),
        job.GradientCheckpointing.DISABLED: (False,),
    }[training.gradient_checkpointing]
    for checkpointing in modes:
        tokens = wanted
        while True:
            found = memory(
                arch, training, tokens, checkpointing=checkpointing, device=device, weights=weights, width=width
            )
            if found.total <= available * SHARE or tokens == longest:
                break
            tokens = max(longest, tokens // 2)
        if found.total <= available * SHARE:
            break
    return Setup(tokens, checkpointing, found)


def text(size: int) -> str:
    """Bytes for people: 21Gi, or 3.2Gi below ten."""
    gib = size / 2**30
    return f"{gib:.0f}Gi" if gib >= 10 else f"{gib:.1f}Gi"
