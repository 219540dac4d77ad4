"""Attention of short rows on a CPU, for training: three plain batched products.

torch's fused kernel is made for long rows: on a CPU its backward pass in bfloat16 costs 4 to 8 times what the plain
products cost up to 200 tokens, and twice as much at 512. Longer rows, masks, evaluation and GPUs keep torch's kernel.
"""

import functools
from typing import Any

import torch

NAME = "finetune"

LONGEST = 512
"""Tokens of a row up to which the products are faster, and their scores take little memory."""


def install(model: Any) -> None:
    """Lets a model on a CPU that would use torch's kernel use this one where it is faster."""
    import transformers
    from transformers import masking_utils
    from transformers.integrations import sdpa_attention

    if model.device.type != "cpu" or model.config._attn_implementation != "sdpa":
        return
    transformers.AttentionInterface.register(NAME, functools.partial(_forward, sdpa_attention.sdpa_attention_forward))
    transformers.AttentionMaskInterface.register(NAME, masking_utils.sdpa_mask)
    model.set_attn_implementation(NAME)


def _forward(
    fallback: Any,
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """query [rows, heads, length, width] and fewer heads of key and value -> [rows, length, heads, width]."""
    length = query.shape[2]
    short = torch.is_grad_enabled() and mask is None and not dropout and 1 < length <= LONGEST
    if not short or length != key.shape[2] or not getattr(module, "is_causal", True) or options.get("softcap"):
        result: tuple[torch.Tensor, None] = fallback(
            module, query, key, value, mask, scaling=scaling, dropout=dropout, **options
        )
        return result
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    return causal(query, key, value, scale), None


def causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal attention; heads that share a key and value are rows of one product, so that these are not copied."""
    rows, heads, length, width = query.shape
    shared = key.shape[1]
    group = heads // shared
    queries = query.reshape(rows * shared, group * length, width)
    keys, values = (part.reshape(rows * shared, length, width) for part in (key, value))
    scores = torch.baddbmm(_mask(length, group, query.dtype), queries, keys.transpose(1, 2), alpha=scale)
    mixed = torch.bmm(torch.softmax(scores, -1), values)
    return mixed.view(rows, heads, length, width).transpose(1, 2).contiguous()


@functools.lru_cache(maxsize=64)
def _mask(length: int, group: int, dtype: torch.dtype) -> torch.Tensor:
    """[1, group * length, length]: 0 where a position sees another, minus infinity elsewhere."""
    above = torch.full((length, length), float("-inf"), dtype=dtype).triu(1)
    return above.repeat(group, 1)[None]
