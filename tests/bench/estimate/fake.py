"""Peaks of live tensors of a training step on a GPU that is not there, in the real shapes of the catalogue's models.

The trainer's own passes with fake tensors on `cuda`. FlexAttention's kernel is replaced by one that makes and saves the same
tensors, bitsandbytes' by one that makes the decoded weights. The standard path needs autograd's engine, which asks CUDA for its
streams.
"""

import unittest.mock
import weakref
from typing import Any

import bitsandbytes.functional
import numpy as np
import torch
from tests.trainer import fake_gpu
from torch.utils import _python_dispatch, _pytree

from finetune_trainer.engine import decoder, flex_attention, lora, loss, model, passes, prefix_tree
from finetune_trainer.planning import workload
from finetune_trainer.training import objective


class Live(_python_dispatch.TorchDispatchMode):
    """Counts the bytes of living storages on a device, and their peak."""

    def __init__(self, where: torch.device) -> None:
        super().__init__()
        self._where = where.type
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        self.now = self.peak = 0

    def __torch_dispatch__(self, operator: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = operator(*args, **(kwargs or {}))
        for tensor in _pytree.tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == self._where:
                self.add(tensor)
        return made

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.now -= size


class Kernel(torch.autograd.Function):
    """In place of FlexAttention's kernel: its output, and what it saves for the backward pass."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(query)
        sums = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])


def flex(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any) -> torch.Tensor:
    out: torch.Tensor = Kernel.apply(query, key, value)  # type: ignore[no-untyped-call]
    return out


def rows(tokens: int, longest: int, learned: float = 0.5) -> list[prefix_tree.TokenRow]:
    """A micro-batch of rows of at most `longest` tokens without common prefixes."""
    made = []
    for number, begin in enumerate(range(0, tokens, longest)):
        size = min(longest, tokens - begin)
        ids = np.arange(number + 1, number + 1 + size)
        made.append(prefix_tree.TokenRow(ids, np.arange(size) >= size * (1 - learned)))
    return made


def peak(config: Any, case: workload.Workload, tokens: int, *, checkpointing: bool) -> int:
    """Bytes of a step of one micro-batch, weights and optimizer included."""
    tuned = fake_gpu.adapted(config, case.training.lora)
    batch = rows(tokens, case.examples.row, case.examples.learned)
    live = Live(fake_gpu.CUDA)
    with (
        fake_gpu.tensors(),
        live,
        unittest.mock.patch.object(flex_attention, "_flex", return_value=flex),
        unittest.mock.patch.object(bitsandbytes.functional, "dequantize_4bit", _decoded),
    ):
        if case.quantised:
            for layer in lora.layers(tuned):
                _in_4_bits(layer.base_layer)
        fake_gpu.move(tuned)
        weights = lora.parameters(tuned)
        optimizer = torch.optim.AdamW(weights.values(), lr=1e-4, weight_decay=0.0, foreach=False)
        for weight in weights.values():
            optimizer.state[weight] = {
                "step": torch.ones(()),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }
        inner = decoder.Decoder(model.decoder(tuned), fake_gpu.CUDA)
        engine = passes.Fast(inner, loss.head_of(tuned.get_base_model()), fake_gpu.CUDA)
        if checkpointing:
            engine.checkpoint()
        goal = objective.of(case.training)
        live.peak = live.now
        goal.learn(engine, batch, max(1, goal.units(batch)))
        optimizer.step()
    return live.peak


def _in_4_bits(base: Any) -> None:
    """Gives a linear layer bytes of the size that bitsandbytes makes of it, and of its constants."""
    count = base.weight.numel()
    packed = torch.nn.Parameter(torch.empty(count // 2, 1, dtype=torch.uint8, device="meta"), requires_grad=False)
    packed.quant_state = base.weight.shape  # type: ignore[attr-defined]
    base.weight = packed
    base.register_buffer("constants", torch.empty(count // 64 + count // 4096, dtype=torch.uint8, device="meta"))


def _decoded(_: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device=fake_gpu.CUDA)
