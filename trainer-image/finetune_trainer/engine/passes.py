"""Forward and backward passes of a micro-batch, behind one seam.

Fast      `decoder` on a `prefix_tree`: for the families that it supports
Plain     the modules of transformers with autograd, by `packing` where that proves itself, else padded: correct for any other
          model and for `sharded` ones, and slower

`of` chooses; both return the states that predict the learned tokens, and accept their gradient.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from finetune_trainer.engine import decoder, decoding, layers, liger, lora, loss, model, packing, prefix_tree
from finetune_trainer.process import log

STANDARD = "through transformers' passes"

FAILED = f"{STANDARD}, since the trainer's own failed with the largest micro-batch"

ELSEWHERE = "they did not prove themselves in another process"


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
    """Whether rows with a common prefix cost less together."""
    pads: bool
    """Whether all rows of a micro-batch cost as much as its longest one."""
    note: str | None
    """Why it is not the trainer's own passes, for the status."""

    def forward(self, rows: Sequence[prefix_tree.TokenRow], *, save: bool, adapted: bool = True) -> Labelled: ...

    def backward(self, gradient: torch.Tensor) -> None:
        """Adds to the gradients of the adapter; `gradient` [n, hidden] is the gradient of the states."""

    def refresh(self) -> None:
        """Copies the adapter's weights, where the engine has copies."""

    def checkpoint(self) -> None:
        """From now on computes each layer's activations again in the backward pass instead of saving them."""

    def release(self) -> None:
        """Frees what passes hold that ended with an error."""


class Fast:
    """The trainer's own passes."""

    shares, pads = True, False
    note: str | None = None

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

    def release(self) -> None:
        self._inner.release()


class Plain:
    """Autograd through transformers' own modules."""

    shares = False

    def __init__(
        self,
        tuned: Any,
        head: loss.Head,
        where: torch.device,
        note: str = STANDARD,
        agreed: Callable[[bool], bool] = bool,
    ) -> None:
        self.head = head
        self._tuned, self._where = tuned, where
        self._states = torch.empty(0)
        kernels = liger.proven(tuned, head, where, agreed)
        self._packing = packing.proven(tuned, head, where, agreed)
        self.pads = self._packing is None
        self.note: str | None = (
            note + kernels + ("; its micro-batches are padded, since packing them differed" if self.pads else "")
        )

    def forward(self, rows: Sequence[prefix_tree.TokenRow], *, save: bool, adapted: bool = True) -> Labelled:
        self._tuned.train(save)
        with (
            contextlib.nullcontext() if adapted else lora.disabled(self._tuned),
            torch.set_grad_enabled(save and adapted),
        ):
            self._states, targets = self._labelled(rows)
        counts = torch.tensor([int(row.learned[1:].sum()) for row in rows], device=self._where)
        owners = torch.repeat_interleave(torch.arange(len(rows), device=self._where), counts)
        return Labelled(self._states.detach(), targets, owners)

    def _labelled(self, rows: Sequence[prefix_tree.TokenRow]) -> tuple[torch.Tensor, torch.Tensor]:
        if self._packing is not None:
            return self._packing.labelled(rows)
        ids, learned = [row.ids.tolist() for row in rows], [row.learned.tolist() for row in rows]
        return model.labelled(self._tuned, self.head, ids, learned, self._where)

    def backward(self, gradient: torch.Tensor) -> None:
        with self._packing.installed() if self._packing else contextlib.nullcontext():
            torch.autograd.backward(self._states, gradient)
        self._states = torch.empty(0)

    def refresh(self) -> None:
        """This engine has no copies."""

    def checkpoint(self) -> None:
        lora.checkpoint_activations(self._tuned.get_base_model())

    def release(self) -> None:
        self._states = torch.empty(0)


def of(
    tuned: Any,
    head: loss.Head,
    where: torch.device,
    *,
    sharded: bool = False,
    agreed: Callable[[bool], bool] = bool,
    proves_form: bool = True,
) -> Engine:
    """The fast engine where the model's family and its output head are known, else the plain one.

    sharded: whether the frozen layers are, see `sharded`, which works through the modules of transformers; agreed: whether
    something holds in all processes, so that all train with the same passes; proves_form: as of `decoder.of`.
    """
    if sharded:
        return Plain(tuned, head, where, f"{STANDARD}, since its layers are sharded over the processes", agreed)
    inner, differs = None, ELSEWHERE
    try:
        if head.weight is None:
            raise layers.Unknown("its output head is of an unknown kind")
        inner = decoder.of(model.decoder(tuned), where, proves_form)
    except layers.Unknown as problem:
        differs = str(problem)
    if agreed(inner is not None) and inner is not None:
        decoding.lend(model.decoder(tuned), inner)
        return Fast(inner, head, where)
    del inner
    log.warning("the fast engine does not support this model; training uses transformers, more slowly", differs=differs)
    return Plain(tuned, head, where, f"{STANDARD}, since the trainer's own do not apply: {differs[:300]}", agreed)
