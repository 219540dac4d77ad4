"""Attention over a prefix tree on a GPU: torch's FlexAttention with the tree as its mask."""

import functools
from typing import Any

import torch

from finetune_trainer.engine import attention_types, prefix_tree
from finetune_trainer.process import log, machine


class FlexAttention:
    """torch.nn.attention.flex_attention with the prefix tree as its mask; autograd computes its backward pass."""

    def __init__(self, batch: prefix_tree.Batch) -> None:
        self._batch = batch
        self._masks: dict[int | None, Any] = {}

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        kind: attention_types.Kind,
        slot: Any,
        out: torch.Tensor,
    ) -> list[torch.Tensor]:
        """Returns queries, keys, values and output, with autograd's graph between them."""
        size = self._batch.tokens
        queries = self._heads(q, k).detach().requires_grad_()
        keys, values = (part[None, :, :size].detach().clone().requires_grad_() for part in (k, v))
        with torch.enable_grad():
            mixed = _flex(queries.device.type)(
                queries,
                keys,
                values,
                score_mod=_capped(kind.softcap),
                block_mask=self._mask(kind.window),
                scale=kind.scale,
                enable_gqa=queries.shape[1] != keys.shape[1],
            )
        out.copy_(mixed.detach()[0].transpose(0, 1).reshape(size, -1))
        return [queries, keys, values, mixed]

    def backward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        saved: list[torch.Tensor],
        kind: attention_types.Kind,
        upstream: torch.Tensor,
        grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> None:
        queries, keys, values, mixed = saved
        with torch.enable_grad():
            gradients = torch.autograd.grad(mixed, (queries, keys, values), self._heads(upstream, k))
        dq, dk, dv = (part[:, : self._batch.tokens] for part in grads)
        kv, size, width = dk.shape
        dq.view(kv, size, -1, width).copy_(gradients[0].view(kv, -1, size, width).transpose(1, 2))
        dk.copy_(gradients[1][0])
        dv.copy_(gradients[2][0])

    def _heads(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """[1, heads, T, width] of a tensor in the layout of the queries."""
        kv, width = k.shape[0], k.shape[2]
        size = self._batch.tokens
        return q[:, :size].view(kv, size, -1, width).transpose(1, 2).reshape(1, -1, size, width)

    def _mask(self, window: int | None) -> Any:
        from torch.nn.attention import flex_attention

        if window not in self._masks:
            ends, positions = self._batch.ends, self._batch.positions

            def sees(_: Any, __: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
                seen = (key <= query) & (query < ends[key])
                return seen if window is None else seen & (positions[query] - positions[key] < window)

            size = self._batch.tokens
            self._masks[window] = flex_attention.create_block_mask(sees, None, None, size, size, device=ends.device)
        return self._masks[window]


@functools.lru_cache(maxsize=8)
def _capped(softcap: float | None) -> Any:
    if softcap is None:
        return None

    def capped(score: torch.Tensor, *_: Any) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


@functools.lru_cache(maxsize=2)
def _flex(device: str) -> Any:
    """FlexAttention, compiled; where that is impossible (it has no backward pass on a CPU, and compiling needs a C compiler),
    plain attention with a full mask."""
    from torch.nn.attention import flex_attention

    if device != "cuda":
        return _masked
    if not machine.c_compiler():
        log.warning(
            "no C compiler: attention is computed with a mask over the whole micro-batch, which costs time and memory"
        )
        return _masked
    return torch.compile(flex_attention.flex_attention, dynamic=True)


def _masked(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    score_mod: Any,
    block_mask: Any,
    scale: float,
    enable_gqa: bool,
) -> torch.Tensor:
    """The same by torch's own kernels, with the arguments of FlexAttention: [1, heads, T, width]."""
    from torch.nn.attention import flex_attention

    size = query.shape[2]
    mask = flex_attention.create_mask(block_mask.mask_mod, None, None, size, size, device=str(query.device))
    if score_mod is None:
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scale, enable_gqa=enable_gqa
        )
    group = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(group, 1) for part in (key, value))
    scores = score_mod(query @ key.transpose(2, 3) * scale)
    return torch.softmax(scores.masked_fill(~mask, float("-inf")), -1) @ value
