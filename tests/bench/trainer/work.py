"""The arithmetic that a step of LoRA needs, by the model's shape. Pure."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Weights:
    """Of a model's matrix products."""

    body: int
    """Of all linear layers but the output head."""
    head: int

    def needed(self, tokens: int, labelled: int) -> float:
        """Floating-point operations of training on so many tokens, so many of them learned, with a frozen base.

        Two for each weight and token forward, two for the gradient of the activations, none for that of the weights: four.
        The output head counts for learned tokens only. Attention's own products, the adapter's and everything element-wise
        are left out. Tokens that examples share count for each of them: a trainer that computes them once can pass 100 %.
        """
        return 4.0 * (self.body * tokens + self.head * labelled)


def weights(config: dict[str, Any]) -> Weights:
    """By the config.json of a Llama- or Qwen2-shaped model."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    queries, keys = heads * width, config["num_key_value_heads"] * width
    attention = 2 * hidden * queries + 2 * hidden * keys
    body = config["num_hidden_layers"] * (attention + 3 * hidden * config["intermediate_size"])
    return Weights(body, config["vocab_size"] * hidden)
