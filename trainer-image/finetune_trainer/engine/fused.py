"""Linear layers that read the same input, with their adapters, as one matrix product.

    y = [x | x Aᵀ] [W | B]ᵀ        W frozen, A and B of all the layers side by side, B block by block

The rank's columns are part of the frozen weight's own storage: they are rewritten after each optimizer step from PEFT's float32
parameters, so that the adapter's forward and backward pass need no pass over the outputs of their own.
PEFT's layers stay as they are; their base weights become views of this storage.

Weights in 4 bits are decoded when they are needed, into one buffer for all layers of their kind.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from finetune_trainer.engine import buffers, lora


@dataclasses.dataclass(frozen=True)
class Part:
    """One of the layers: its rows of the output and, where it is adapted, its columns of the rank and its two weights."""

    begin: int
    end: int
    rank: slice | None = None
    a: torch.nn.Parameter | None = None
    b: torch.nn.Parameter | None = None


class Quantised:
    """Layers of bitsandbytes in 4 bits (nf4): the frozen base of QLoRA (arXiv 2305.14314)."""

    def __init__(self, bases: Sequence[Any]) -> None:
        self._bases = bases

    def put(self, out: torch.Tensor) -> None:
        """Writes them, [outputs, inputs], into a view of the buffer."""
        import bitsandbytes.functional

        begin = 0
        for base in self._bases:
            end = begin + base.out_features
            weights = bitsandbytes.functional.dequantize_4bit(base.weight.data, base.weight.quant_state)
            out[begin:end] = weights.to(out.dtype)
            begin = end


class Fused:
    """Several linear layers of one input. x is [n, inputs + rank], of which the last columns are for `fill`."""

    def __init__(self, layers: Sequence[Any], name: str, memory: buffers.BufferPool) -> None:
        self._name, self._memory = name, memory
        self._quantised: Quantised | None = None
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
        bases = [getattr(layer, "base_layer", layer) for layer in layers]
        self._dtype, where = memory.dtype, memory.where
        biases = [base.bias for base in bases]
        self.bias = None
        if any(bias is not None for bias in biases):
            zero = [torch.zeros(part.end - part.begin, dtype=self._dtype, device=where) for part in self.parts]
            joined = [other if bias is None else bias.data for bias, other in zip(biases, zero, strict=True)]
            self.bias = torch.cat([part.to(where, self._dtype) for part in joined])
        self._columns = torch.zeros(self.outputs, rank, dtype=self._dtype, device=where)
        self._joined: torch.Tensor | None = None
        if any(hasattr(base.weight, "quant_state") for base in bases):
            self._quantised = Quantised(bases)
        else:
            self._join(bases)
        self.down = torch.zeros(rank, self.inputs, dtype=self._dtype, device=where)
        """[rank, inputs]: scale · A of all adapted layers."""

    def _join(self, bases: list[Any]) -> None:
        joined = torch.zeros(self.outputs, self.inputs + self.rank, dtype=self._dtype, device=self._memory.where)
        for part, base in zip(self.parts, bases, strict=True):
            rows = joined[part.begin : part.end, : self.inputs]
            rows.copy_(base.weight.data)
            base.weight.data = rows
        self._joined = joined
        self._columns = joined[:, self.inputs :]

    @property
    def weight(self) -> torch.Tensor:
        """[outputs, inputs + rank]; an assembled one is valid until the next layer of its kind is read."""
        if self._joined is not None:
            return self._joined
        name = ("weight", self._name)
        weights = self._memory.take(name, self.outputs, self.inputs + self.rank)
        if self._memory.claim(name, self) and self._quantised is not None:
            self._quantised.put(weights[:, : self.inputs])
            weights[:, self.inputs :] = self._columns
        return weights

    @property
    def width(self) -> int:
        """Columns of x."""
        return self.inputs + self.rank

    def refresh(self) -> None:
        """Copies the adapters' weights."""
        for part in self.parts:
            if part.rank is not None and part.a is not None and part.b is not None:
                self.down[part.rank] = part.a.detach() * self.scale
                self._columns[part.begin : part.end, part.rank] = part.b.detach().to(self._dtype)
        self._memory.release(("weight", self._name))

    def fill(self, x: torch.Tensor, adapted: bool = True) -> torch.Tensor:
        """Fills the rank's columns of x; with zero where the adapters are off."""
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

    def backward(self, upstream: torch.Tensor, x: torch.Tensor, input_gradient: bool = True) -> torch.Tensor | None:
        """Adds to the adapters' gradients; returns the gradient of the input [n, inputs], a view, where it is needed.

        `upstream` [n, outputs] is the gradient of the output, x the filled input.
        """
        if not input_gradient:
            if not self.rank:
                return None
            grad_rank = upstream @ self._columns
            self._learn(upstream, x, grad_rank)
            return None
        joined = self._memory.take(("grad_inputs", self._name), upstream.shape[0], self.width)
        torch.mm(upstream, self.weight, out=joined)
        grad_inputs = joined[:, : self.inputs]
        if self.rank:
            grad_rank = joined[:, self.inputs :]
            self._learn(upstream, x, grad_rank)
            grad_inputs.addmm_(grad_rank, self.down)
        return grad_inputs

    def _learn(self, upstream: torch.Tensor, x: torch.Tensor, grad_rank: torch.Tensor) -> None:
        grad_a = grad_rank.t() @ x[:, : self.inputs]
        for part in self.parts:
            if part.rank is None or part.a is None or part.b is None:
                continue
            columns = slice(self.inputs + part.rank.start, self.inputs + part.rank.stop)
            grad_b = upstream[:, part.begin : part.end].t() @ x[:, columns]
            _accumulate(part.a, grad_a[part.rank], self.scale)
            _accumulate(part.b, grad_b, 1.0)


def _accumulate(weight: torch.nn.Parameter, gradient: torch.Tensor, scale: float) -> None:
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    weight.grad.add_(gradient, alpha=scale)
