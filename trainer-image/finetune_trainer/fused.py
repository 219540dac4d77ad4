"""Linear layers that read the same input, with their adapters, as one matrix product.

    y = [x | x Aᵀ] [W | B]ᵀ        W frozen, A and B of all the layers side by side, B block by block

The rank's columns are part of the frozen weight's own storage: they are written anew after each optimizer step, from the float32
parameters that PEFT made, and the forward and the backward pass of the adapter cost no pass over the outputs of their own.
PEFT's layers stay what they are; their base weights become views of this storage.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from finetune_trainer import arena, lora


@dataclasses.dataclass(frozen=True)
class Part:
    """One of the layers: its rows of the output and, where it is adapted, its columns of the rank and its two weights."""

    begin: int
    end: int
    rank: slice | None = None
    a: torch.nn.Parameter | None = None
    b: torch.nn.Parameter | None = None


class Fused:
    """Several linear layers of one input. x is [n, inputs + rank], of which the last columns are for `fill`."""

    def __init__(self, layers: Sequence[Any], name: str, memory: arena.Arena) -> None:
        self._name, self._memory = name, memory
        self.parts: list[Part] = []
        outputs = rank = 0
        scales = []
        for layer in layers:
            base = getattr(layer, "base_layer", layer)
            part = Part(outputs, outputs + base.out_features)
            if layer is not base:
                a, b = layer.lora_A[lora.ADAPTER].weight, layer.lora_B[lora.ADAPTER].weight
                part = dataclasses.replace(part, rank=slice(rank, rank + a.shape[0]), a=a, b=b)
                rank += a.shape[0]
                scales.append(layer.scaling[lora.ADAPTER])
            self.parts.append(part)
            outputs = part.end
        if len(set(scales)) > 1:
            raise ValueError("adapters of one input differ in their scale")
        first = getattr(layers[0], "base_layer", layers[0])
        self.inputs: int = first.in_features
        self.outputs, self.rank = outputs, rank
        self.scale = scales[0] if scales else 0.0
        self._take_weights([getattr(layer, "base_layer", layer) for layer in layers])
        self.down = self.weight.new_zeros(rank, self.inputs)
        """[rank, inputs]: scale · A of all adapted layers."""

    def _take_weights(self, bases: list[Any]) -> None:
        sample = bases[0].weight
        self.weight = torch.zeros(self.outputs, self.inputs + self.rank, dtype=sample.dtype, device=sample.device)
        for part, base in zip(self.parts, bases, strict=True):
            here = self.weight[part.begin : part.end, : self.inputs]
            here.copy_(base.weight.data)
            base.weight.data = here
        biases = [base.bias for base in bases]
        self.bias = None
        if any(bias is not None for bias in biases):
            zero = [sample.new_zeros(part.end - part.begin) for part in self.parts]
            self.bias = torch.cat(
                [other if bias is None else bias.data for bias, other in zip(biases, zero, strict=True)]
            )

    @property
    def width(self) -> int:
        """Columns of x."""
        return self.inputs + self.rank

    def refresh(self) -> None:
        """Takes the adapters' weights as they are now."""
        for part in self.parts:
            if part.rank is not None and part.a is not None and part.b is not None:
                self.down[part.rank] = part.a.detach() * self.scale
                columns = slice(self.inputs + part.rank.start, self.inputs + part.rank.stop)
                self.weight[part.begin : part.end, columns] = part.b.detach().to(self.weight.dtype)

    def fill(self, x: torch.Tensor, adapted: bool = True) -> torch.Tensor:
        """Completes x by the rank's columns; zero where the adapters are off."""
        if self.rank:
            if adapted:
                torch.mm(x[:, : self.inputs], self.down.t(), out=x[:, self.inputs :])
            else:
                x[:, self.inputs :].zero_()
        return x

    def forward(self, x: torch.Tensor, out: torch.Tensor, adapted: bool = True) -> torch.Tensor:
        """Writes [n, outputs]."""
        self.fill(x, adapted)
        if self.bias is not None:
            return torch.addmm(self.bias, x, self.weight.t(), out=out)
        return torch.mm(x, self.weight.t(), out=out)

    def backward(self, upstream: torch.Tensor, x: torch.Tensor, through: bool = True) -> torch.Tensor | None:
        """Adds to the adapters' gradients; the gradient of the input [n, inputs], a view, where it is wanted.

        `upstream` [n, outputs] is the gradient of the output, x the filled input.
        """
        if not through:
            if not self.rank:
                return None
            thin = upstream @ self.weight[:, self.inputs :]
            self._learn(upstream, x, thin)
            return None
        whole = self._memory.take(("below", self._name), upstream.shape[0], self.width)
        torch.mm(upstream, self.weight, out=whole)
        below = whole[:, : self.inputs]
        if self.rank:
            thin = whole[:, self.inputs :]
            self._learn(upstream, x, thin)
            below.addmm_(thin, self.down)
        return below

    def _learn(self, upstream: torch.Tensor, x: torch.Tensor, thin: torch.Tensor) -> None:
        grad_a = thin.t() @ x[:, : self.inputs]
        for part in self.parts:
            if part.rank is None or part.a is None or part.b is None:
                continue
            columns = slice(self.inputs + part.rank.start, self.inputs + part.rank.stop)
            grad_b = upstream[:, part.begin : part.end].t() @ x[:, columns]
            _gather(part.a, grad_a[part.rank], self.scale)
            _gather(part.b, grad_b, 1.0)


def _gather(weight: torch.nn.Parameter, gradient: torch.Tensor, scale: float) -> None:
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    weight.grad.add_(gradient, alpha=scale)
