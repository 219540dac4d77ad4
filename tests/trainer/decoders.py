"""Tiny random models of each family that the trainer's own passes know, with an adapter.

decoders.FAMILIES     name -> a function that makes a configuration of transformers
decoders.UNKNOWN      the same of families that they do not know
decoders.made(...)    a model of it
decoders.rows(), one_by_one(...), close(...)   examples, and what transformers, PEFT and autograd make of them, one at a time
"""

from typing import Any

import numpy as np
import torch
import transformers

from finetune_api import job
from finetune_trainer.engine import lora, prefix_tree

SIZE: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.15,
    "pad_token_id": 0,
}
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
GEMMA = {"sliding_window": 24, "query_pre_attn_scalar": 32, "head_dim": 16}
FAMILIES: dict[str, Any] = {
    "llama 3": lambda: transformers.LlamaConfig(**SIZE, rope_parameters=ROPE),
    "llama, untied, with biases": lambda: transformers.LlamaConfig(
        **SIZE, tie_word_embeddings=False, attention_bias=True, mlp_bias=True
    ),
    "qwen 2.5": lambda: transformers.Qwen2Config(**SIZE),
    "qwen 3": lambda: transformers.Qwen3Config(**SIZE, head_dim=16),
    "mistral, sliding window": lambda: transformers.MistralConfig(**SIZE, sliding_window=24),
    "gemma 2, soft-capping": lambda: transformers.Gemma2Config(
        **SIZE, **GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=3.0
    ),
    "gemma 3, alternating windows": lambda: transformers.Gemma3TextConfig(
        **SIZE, **GEMMA, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
}

UNKNOWN: dict[str, Any] = {
    "another attention": lambda: transformers.GPTNeoXConfig(
        vocab_size=384, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    ),
    "residuals that are scaled": lambda: transformers.GraniteConfig(**SIZE, residual_multiplier=0.5),
    "an unknown head": lambda: transformers.GraniteConfig(**SIZE, logits_scaling=4.0),
    "half of each head turned": lambda: transformers.PhiConfig(**SIZE, partial_rotary_factor=0.5),
}


def made(config: Any, modules: job.Modules = job.Modules.ALL_LINEAR, dropout: float = 0.0) -> Any:
    """A random model with an adapter that already does something."""
    torch.manual_seed(1)
    config._attn_implementation = "eager"
    base = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in base.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(weight, std=0.3)
    base.requires_grad_(False).eval()
    tuned = lora.add(base, job.LoRA(rank=8, alpha=24, target_modules=modules, dropout=dropout), "base")
    for weight in lora.parameters(tuned).values():
        torch.nn.init.normal_(weight, std=0.1)
    return tuned


def rows() -> list[prefix_tree.TokenRow]:
    """Examples with two prefixes, one of them shared at two depths, a whole example that is another's prefix, and a long one."""
    numbers = np.random.default_rng(2)
    prefixes = [numbers.integers(1, 384, length) for length in (60, 30)]
    found = []
    for at in range(7):
        tail = numbers.integers(1, 384, numbers.integers(3, 30))
        middle = np.full(12, 5) if at % 3 == 0 else np.zeros(0, dtype=int)
        found.append(np.concatenate([prefixes[at % 2], middle, tail]))
    found += [found[0][:70], numbers.integers(1, 384, 600)]
    return [prefix_tree.TokenRow(ids, numbers.random(len(ids)) < 0.3) for ids in found]


def one_by_one(tuned: Any, examples: list[prefix_tree.TokenRow]) -> tuple[float, dict[str, torch.Tensor]]:
    """The summed loss and the adapter's gradients, by transformers and autograd."""
    total = 0.0
    for row in examples:
        logits = tuned(input_ids=torch.tensor(row.ids)[None]).logits[0].float()
        at = np.flatnonzero(row.learned[1:])
        value = torch.nn.functional.cross_entropy(logits[at], torch.tensor(row.ids[at + 1]), reduction="sum")
        value.backward()
        total += value.item()
    weights = lora.parameters(tuned)
    found = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
    for weight in weights.values():
        weight.grad = None
    return total, found


def close(mine: dict[str, torch.nn.Parameter], wanted: dict[str, torch.Tensor]) -> None:
    for name, gradient in wanted.items():
        found = mine[name].grad
        assert found is not None, name
        scale = float(gradient.abs().max())
        torch.testing.assert_close(
            found / scale, gradient / scale, rtol=0, atol=1e-5, msg=lambda text, at=name: f"{at}: {text}"
        )
