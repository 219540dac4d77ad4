"""Models in the shapes of the catalogue, with random weights made on the device, and an adapter."""

from typing import Any

import torch
import transformers

from finetune_api import job
from finetune_trainer.engine import lora

SHAPES: dict[str, Any] = {
    "Llama 3.1 8B": lambda: transformers.LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
    ),
    "Qwen 2.5 7B": lambda: transformers.Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32768,
    ),
}

SMALL = {"vocab_size": 384, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}


def config_of(name: str, *, shrunk: bool) -> Any:
    """The configuration; shrunk: of the same kind, small enough for the tests."""
    made = SHAPES[name]()
    if shrunk:
        made.update({**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16})
    return made


def adapted(config: Any, where: torch.device, *, quantised: bool = False) -> Any:
    """A model in bfloat16 with an adapter of rank 16 on all linear layers; quantised: as QLoRA stores it."""
    tuned = lora.add(bare(config, where, quantised=quantised), job.LoRA(rank=16, alpha=32), "random")
    for weight in lora.parameters(tuned).values():
        weight.data = weight.data.to(where)
    return tuned


def bare(config: Any, where: torch.device, *, quantised: bool = False) -> Any:
    """The same model without an adapter."""
    torch.manual_seed(0)
    with where:
        base = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    base.requires_grad_(False).eval()
    if quantised:
        quantise(base, where)
    return base


def quantise(base: Any, where: torch.device) -> None:
    """Its linear layers but the head in 4 bits, as `engine.model.nf4` has transformers do on loading."""
    import bitsandbytes

    head = base.get_output_embeddings()
    for parent in list(base.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is not torch.nn.Linear or layer is head:
                continue
            stored = bitsandbytes.nn.Linear4bit(
                layer.in_features,
                layer.out_features,
                bias=layer.bias is not None,
                compute_dtype=torch.bfloat16,
                quant_type="nf4",
            )
            stored.weight = bitsandbytes.nn.Params4bit(
                layer.weight.data.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=True
            )
            stored.bias = layer.bias
            stored.support_avx512bf16_for_cpu = False  # as `engine.model.load`
            setattr(parent, name, stored.to(where))
    base.is_loaded_in_4bit = True
