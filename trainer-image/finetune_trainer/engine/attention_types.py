"""What every way to compute attention shares: how a layer's attention differs from others', and the seam that passes use."""

import dataclasses
from typing import Any, Protocol

import torch


@dataclasses.dataclass(frozen=True)
class Kind:
    """How the attention of a layer differs from others'."""

    scale: float
    softcap: float | None = None
    """Gemma 2: scores = softcap * tanh(scores / softcap)."""
    window: int | None = None
    """Tokens that a position sees, itself included; None: all."""


class Attention(Protocol):
    """The attention of one micro-batch, over all its layers."""

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kind: Kind, keep: Any, out: torch.Tensor
    ) -> list[torch.Tensor]:
        """Writes the mixed values into `out` [T, kv · g · width]; returns what `backward` needs, in buffers named by `keep`."""

    def backward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        kept: list[torch.Tensor],
        kind: Kind,
        upstream: torch.Tensor,
        grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> None:
        """Writes the gradients of queries, keys and values, laid out like these. `upstream` is laid out like queries."""
