"""The loss: cross-entropy of the labelled positions only, chunk by chunk, so that the full logits never exist.

The head is frozen, so its gradient with respect to the hidden states is computed in the same pass over a chunk in which
its loss is: the logits are computed once, used twice and dropped. Sums are in float32. Equals the full cross-entropy.
"""

import dataclasses
from typing import Any

import torch

from finetune_trainer.engine import buffers, sizes


@dataclasses.dataclass(frozen=True)
class Head:
    """The frozen output head: `weight` [vocabulary, hidden], tied to the embedding or not. None: the head is
    unknown, and the hidden states are the model's own logits."""

    weight: torch.Tensor | None
    bias: torch.Tensor | None = None
    softcap: float | None = None
    """Gemma 2: logits = softcap * tanh(logits / softcap)."""
    memory: buffers.BufferPool | None = None
    """For the logits of a chunk; None: new memory for each."""

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
    weight, bias, softcap = output.weight.detach(), output.bias, getattr(config, "final_logit_softcapping", None)
    return Head(weight, bias, softcap, buffers.BufferPool(weight.dtype, weight.device))


def total(
    hidden: torch.Tensor, targets: torch.Tensor, head: Head, weights: torch.Tensor | None = None
) -> tuple[float, torch.Tensor]:
    """The weighted sum of the cross-entropies in nats, and its gradient with respect to the hidden states.

    hidden [n, d], targets [n], weights [n] (absent: all 1) -> a float, [n, d] in the precision of hidden.
    """
    value = torch.zeros((), dtype=torch.float64, device=hidden.device)
    gradient = torch.empty_like(hidden)
    memory = head.memory or buffers.BufferPool(hidden.dtype, hidden.device)
    for begin in range(0, hidden.shape[0], sizes.CHUNK):
        here = slice(begin, begin + sizes.CHUNK)
        if head.weight is None:
            logits = gradient[here].copy_(hidden[here])
        else:
            logits = memory.take("logits", len(hidden[here]), len(head.weight))
            torch.mm(hidden[here], head.weight.t(), out=logits)
            if head.bias is not None:
                logits += head.bias
        chunk = None if weights is None else weights[here]
        value += _gradients(logits, targets[here], head.softcap, chunk, memory)
        if head.weight is not None:
            torch.mm(logits, head.weight, out=gradient[here])
    return float(value), gradient


def _gradients(
    logits: torch.Tensor,
    targets: torch.Tensor,
    softcap: float | None,
    weights: torch.Tensor | None,
    memory: buffers.BufferPool,
) -> torch.Tensor:
    """The weighted sum of the cross-entropies; their gradients overwrite the logits [n, vocabulary]."""
    value = torch.zeros((), dtype=torch.float64, device=logits.device)
    size = sizes.LOGITS[logits.device.type]
    for begin in range(0, len(logits), size):
        here = slice(begin, begin + size)
        part, target = logits[here], targets[here, None]
        full = memory.take("gradients", *part.shape, dtype=torch.float32).copy_(part)
        cap_gradient = None
        if softcap is not None:
            cap_gradient = full.div_(softcap).tanh_().square()
            full.mul_(softcap)
        full.sub_(full.amax(-1, keepdim=True))
        chosen = full.gather(1, target)
        sums = full.exp_().sum(-1, keepdim=True)
        losses = sums.log() - chosen
        full.div_(sums).scatter_add_(1, target, full.new_full(target.shape, -1.0))
        if weights is not None:
            losses *= weights[here, None]
            full *= weights[here, None]
        if cap_gradient is not None:
            full *= cap_gradient.neg_().add_(1)
        value += losses.sum(dtype=torch.float64)
        part.copy_(full)
    return value


def log_probabilities(hidden: torch.Tensor, targets: torch.Tensor, head: Head) -> torch.Tensor:
    """The log-probability of each target [n] in float32, without gradients."""
    return likelihoods(hidden, targets, head)[0]


def likelihoods(hidden: torch.Tensor, targets: torch.Tensor, head: Head) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probability of each target [n] in float32, and whether it is the likeliest token [n]; without gradients."""
    likely, best, size = [], [], 4 * sizes.LOGITS[hidden.device.type]
    for begin in range(0, hidden.shape[0], size):
        logits = head.logits(hidden[begin : begin + size])
        chosen = logits.gather(1, targets[begin : begin + size, None])[:, 0]
        likely.append(chosen - torch.logsumexp(logits, dim=-1))
        best.append(chosen == logits.amax(-1))
    return (torch.cat(likely), torch.cat(best)) if likely else (torch.zeros(0), torch.zeros(0, dtype=torch.bool))
