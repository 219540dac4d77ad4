"""What the two implementations of attention share: the settings of a layer's attention, and their protocol."""

import dataclasses
from typing import Any, Protocol

import torch


@dataclasses.dataclass(frozen=True)
class Kind:
    """The settings of a layer's attention."""

    scale: float
    softcap: float | None = None
    """Gemma 2: scores = softcap * tanh(scores / softcap)."""
    window: int | None = None
    """Tokens that a position attends to, itself included; None: all."""


class Attention(Protocol):
    """The attention of one micro-batch, over all its layers."""

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kind: Kind, slot: Any, out: torch.Tensor
    ) -> list[torch.Tensor]:
        """Writes the mixed values into `out` [T, kv · g · width]; returns what `backward` needs, in buffers named by `slot`."""

    def backward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        saved: list[torch.Tensor],
        kind: Kind,
        upstream: torch.Tensor,
        grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> None:
        """Writes the gradients of queries, keys and values, in their layout. `upstream` has the layout of the queries."""
