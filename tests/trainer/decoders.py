"""Tiny random models of each family that the trainer's own passes know, with an adapter.

decoders.FAMILIES     name -> a function that makes a configuration of transformers
decoders.made(...)    a model of it
"""

from typing import Any

import torch
import transformers

from finetune_api import job
from finetune_trainer.engine import lora

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
