"""The loss: cross-entropy of the labelled positions only, chunk by chunk, so that the full logits never exist.

The head is frozen, so its gradient with respect to the hidden states is computed in the same pass over a chunk in which
its loss is: the logits are made once, used twice and forgotten. Sums are in float32. Equals the full cross-entropy.
"""

import dataclasses
from typing import Any

import torch

CHUNK = 128
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


def total(
    hidden: torch.Tensor, targets: torch.Tensor, head: Head, weights: torch.Tensor | None = None
) -> tuple[float, torch.Tensor]:
    """The weighted sum of the cross-entropies in nats, and its gradient with respect to the hidden states.

    hidden [n, d], targets [n], weights [n] (absent: all 1) -> a float, [n, d] in the precision of hidden.
    """
    value = torch.zeros((), dtype=torch.float64, device=hidden.device)
    gradient = torch.empty_like(hidden)
    for begin in range(0, hidden.shape[0], CHUNK):
        here = slice(begin, begin + CHUNK)
        logits, target = head.logits(hidden[here]), targets[here, None]
        slope = torch.log_softmax(logits, -1)
        losses = slope.gather(1, target).neg_()
        slope.exp_().scatter_add_(1, target, slope.new_full(target.shape, -1.0))
        if weights is not None:
            losses *= weights[here, None]
            slope *= weights[here, None]
        value += losses.sum(dtype=torch.float64)
        if head.weight is None:
            gradient[here] = slope
            continue
        if head.softcap is not None:
            slope *= 1 - (logits / head.softcap).square_()
        torch.mm(slope.to(head.weight.dtype), head.weight, out=gradient[here])
    return float(value), gradient


def log_probabilities(hidden: torch.Tensor, targets: torch.Tensor, head: Head) -> torch.Tensor:
    """The log-probability of each target [n] in float32, without gradients."""
    found = []
    for begin in range(0, hidden.shape[0], CHUNK):
        logits = head.logits(hidden[begin : begin + CHUNK])
        chosen = logits.gather(1, targets[begin : begin + CHUNK, None])[:, 0]
        found.append(chosen - torch.logsumexp(logits, dim=-1))
    return torch.cat(found) if found else torch.zeros(0)
