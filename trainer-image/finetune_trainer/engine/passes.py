"""Forward and backward passes of a micro-batch, behind one seam.

Fast      `decoder` on a `prefix_tree`: for the families that it supports
Plain     the modules of transformers with autograd, padded: correct for any other model, and slower

`of` chooses; both return the states that predict the learned tokens, and accept their gradient.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from finetune_api import reasons
from finetune_trainer.engine import decoder, lora, loss, model, prefix_tree
from finetune_trainer.process import errors


@dataclasses.dataclass(frozen=True)
class Labelled:
    """The result of a forward pass: states [n, hidden] that predict the targets [n] of the rows [n]."""

    states: torch.Tensor
    targets: torch.Tensor
    rows: torch.Tensor


class Engine(Protocol):
    """A model that learns. `forward` with save=True saves the activations for one `backward`."""

    head: loss.Head
    shares: bool
    """Whether rows with a common prefix cost less together, and nothing is padded."""

    def forward(self, rows: Sequence[prefix_tree.TokenRow], *, save: bool, adapted: bool = True) -> Labelled: ...

    def backward(self, gradient: torch.Tensor) -> None:
        """Adds to the gradients of the adapter; `gradient` [n, hidden] is the gradient of the states."""

    def refresh(self) -> None:
        """Copies the adapter's weights, where the engine has copies."""

    def checkpoint(self) -> None:
        """From now on computes each layer's activations again in the backward pass instead of saving them."""


class Fast:
    """The trainer's own passes."""

    shares = True

    def __init__(self, inner: decoder.Decoder, head: loss.Head, where: torch.device) -> None:
        self.head = head
        self._inner, self._where = inner, where

    def forward(self, rows: Sequence[prefix_tree.TokenRow], *, save: bool, adapted: bool = True) -> Labelled:
        batch = prefix_tree.build(rows).to(self._where)
        states = self._inner.forward(batch, save=save, adapted=adapted)
        return Labelled(states, batch.targets, batch.rows)

    def backward(self, gradient: torch.Tensor) -> None:
        self._inner.backward(gradient)

    def refresh(self) -> None:
        self._inner.refresh()

    def checkpoint(self) -> None:
        self._inner.checkpointing = True


class Plain:
    """Autograd through transformers' own modules."""

    shares = False

    def __init__(self, tuned: Any, head: loss.Head, where: torch.device) -> None:
        self.head = head
        self._tuned, self._where = tuned, where
        self._states = torch.empty(0)

    def forward(self, rows: Sequence[prefix_tree.TokenRow], *, save: bool, adapted: bool = True) -> Labelled:
        ids, learned = [row.ids.tolist() for row in rows], [row.learned.tolist() for row in rows]
        self._tuned.train(save)
        with (
            contextlib.nullcontext() if adapted else lora.disabled(self._tuned),
            torch.set_grad_enabled(save and adapted),
        ):
            self._states, targets = model.labelled(self._tuned, self.head, ids, learned, self._where)
        counts = torch.tensor([int(row.learned[1:].sum()) for row in rows], device=self._where)
        owners = torch.repeat_interleave(torch.arange(len(rows), device=self._where), counts)
        return Labelled(self._states.detach(), targets, owners)

    def backward(self, gradient: torch.Tensor) -> None:
        torch.autograd.backward(self._states, gradient)
        self._states = torch.empty(0)

    def refresh(self) -> None:
        """This engine has no copies."""

    def checkpoint(self) -> None:
        lora.checkpoint_activations(self._tuned.get_base_model())


def of(tuned: Any, head: loss.Head, where: torch.device, shards: tuple[int, int] | None = None) -> Engine:
    """The fast engine where the model's family and its output head are known, else the plain one.

    shards: this process's number and the number of processes that each hold a shard of the frozen layers; see `fused.Sharded`.
    """
    built = None if head.weight is None else decoder.of(model.decoder(tuned), where, shards)
    if built is None and shards is not None:
        raise errors.Failure(
            reasons.Reason.INSUFFICIENT_GPU_MEMORY,
            "the base model does not fit into one GPU, and the trainer cannot shard its family over several "
            "(Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3); choose a larger resources.gpuType or a smaller base model",
        )
    return Plain(tuned, head, where) if built is None else Fast(built, head, where)
