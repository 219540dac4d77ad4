"""The arithmetic that a step of LoRA needs, by the model's shape. Pure."""

from typing import Any


def body(config: dict[str, Any]) -> int:
    """Weights of all linear layers but the output head, of a Llama- or Qwen2-shaped config.json."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    queries, keys = heads * width, config["num_key_value_heads"] * width
    attention = hidden * queries * 2 + hidden * keys * 2
    return int(config["num_hidden_layers"] * (attention + 3 * hidden * config["intermediate_size"]))


def head(config: dict[str, Any]) -> int:
    return int(config["vocab_size"] * config["hidden_size"])


def needed(config: dict[str, Any], tokens: int, labelled: int) -> float:
    """Floating-point operations of training on so many tokens, so many of them learned, with a frozen base.

    Two for each weight and token forward, two for the gradient of the activations, none for that of the weights: four. The
    output head counts for learned tokens only. Attention's own products, the adapter's and everything element-wise are
    left out. Tokens that examples share count for each of them: a trainer that computes them once can pass 100 %.
    """
    return 4.0 * (body(config) * tokens + head(config) * labelled)
