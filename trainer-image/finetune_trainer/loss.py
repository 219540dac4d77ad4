"""The loss: cross-entropy of the labelled positions only, chunk by chunk, so that the full logits never exist.

The head is frozen, so its gradient with respect to the hidden states is computed in the same pass over a chunk in which
its loss is: the logits are made once, used twice and forgotten. Sums are in float32. Equals the full cross-entropy.
"""

import dataclasses
from typing import Any

import torch

CHUNK = 512
"""Labelled positions whose logits exist at a time."""


@dataclasses.dataclass(frozen=True)
class Head:
    """The frozen output head: `weight` [vocabulary, hidden], tied to the embedding or not. None: the model's own logits
    take the place of the hidden states."""

    weight: torch.Tensor | None
    bias: torch.Tensor | None = None
    softcap: float | None = None
    """Gemma 2: logits = softcap * tanh(logits / softcap)."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[n, vocabulary] in float32."""
        if self.weight is None:
            return hidden.float()
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias).float()
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


def head_of(model: Any) -> Head:
    """The head of a causal language model of transformers."""
    output = model.get_output_embeddings()
    config = model.config.get_text_config()
    return Head(output.weight.detach(), getattr(output, "bias", None), getattr(config, "final_logit_softcapping", None))


class _CrossEntropy(torch.autograd.Function):
    """The sum of the losses of `hidden` [n, d] against `targets` [n]."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, head: Head, chunk: int) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        wanted = hidden.requires_grad
        gradient = torch.empty_like(hidden) if wanted else None
        for begin in range(0, hidden.shape[0], chunk):
            part, target = hidden[begin : begin + chunk], targets[begin : begin + chunk]
            logits = head.logits(part)
            normaliser = torch.logsumexp(logits, dim=-1)
            total += (normaliser - logits.gather(1, target[:, None])[:, 0]).sum()
            if gradient is not None:
                capped = None if head.softcap is None else 1 - (logits / head.softcap).square_()
                slope = logits.sub_(normaliser[:, None]).exp_()
                slope[torch.arange(len(target), device=target.device), target] -= 1
                if capped is not None:
                    slope *= capped
                weight = head.weight
                assert weight is not None
                torch.mm(slope.to(weight.dtype), weight, out=gradient[begin : begin + chunk])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0].to(gradient.dtype), None, None, None


def total(hidden: torch.Tensor, targets: torch.Tensor, head: Head, chunk: int = CHUNK) -> torch.Tensor:
    """The sum of the cross-entropies in nats: hidden [n, d], targets [n] -> a float32 scalar."""
    if head.weight is None:
        return torch.nn.functional.cross_entropy(hidden.float(), targets, reduction="sum")
    result: torch.Tensor = _CrossEntropy.apply(hidden, targets, head, chunk)  # type: ignore[no-untyped-call]
    return result


def log_probabilities(hidden: torch.Tensor, targets: torch.Tensor, head: Head, chunk: int = CHUNK) -> torch.Tensor:
    """The log-probability of each target [n] in float32, without gradients."""
    found = []
    for begin in range(0, hidden.shape[0], chunk):
        logits = head.logits(hidden[begin : begin + chunk])
        chosen = logits.gather(1, targets[begin : begin + chunk, None])[:, 0]
        found.append(chosen - torch.logsumexp(logits, dim=-1))
    return torch.cat(found) if found else torch.zeros(0)
