"""A GPU that is not there: tensors on `cuda` with shapes and devices but without numbers, and no CUDA.

with fake_gpu.tensors() as syncs:     every operator follows shapes, dtypes and devices; a CPU tensor that meets a CUDA
    ...                               one is an error, as on a GPU
syncs                                 where the code waited for the GPU to know a number: file:function

with fake_gpu.processes():            a process group that takes tensors on CUDA alone, as NCCL does
"""

import collections
import contextlib
import pathlib
import sys
import unittest.mock
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers
from torch._subclasses import fake_tensor
from torch.testing._internal.distributed import fake_pg
from torch.utils import _python_dispatch

from finetune_api import job
from finetune_trainer.engine import lora

CUDA = torch.device("cuda", 0)

OURS = "finetune_trainer"


class Numbers(_python_dispatch.TorchDispatchMode):
    """Answers every question for a number of a fake tensor with 1, and records who asked: on a GPU the process waits there."""

    def __init__(self) -> None:
        super().__init__()
        self.syncs: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, operator: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = operator is torch.ops.aten._to_copy.default and kwargs.get("device") == torch.device("cpu")
        number = torch.Tag.data_dependent_output in operator.tags
        if (leaves or number) and args[0].device.type == "cuda":
            self.syncs[asking()] += 1
        if operator is torch.ops.aten.allclose.default:
            return True
        if operator is torch.ops.aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
        return operator(*args, **kwargs)


def asking() -> str:
    """The innermost function of the trainer on the stack, as module.function."""
    frame = sys._getframe(1)
    while frame is not None:
        path = pathlib.Path(frame.f_code.co_filename)
        if OURS in path.parts:
            return f"{path.stem}.{frame.f_code.co_qualname.partition('.<locals>')[0]}"
        frame = frame.f_back  # type: ignore[assignment]
    return "a test"


def gradients(
    outputs: torch.Tensor, inputs: Sequence[torch.Tensor], upstream: torch.Tensor, **_: Any
) -> tuple[torch.Tensor, ...]:
    """In place of torch.autograd.grad, whose engine asks CUDA for its streams: gradients of the right kind."""
    assert (outputs.shape, outputs.device, outputs.dtype) == (upstream.shape, upstream.device, upstream.dtype)
    assert outputs.requires_grad
    return tuple(torch.empty_like(each) for each in inputs)


@contextlib.contextmanager
def tensors() -> Iterator[collections.Counter[str]]:
    """Within it every new tensor is fake; yields the waits for the GPU, counted by function."""
    numbers = Numbers()
    with (
        fake_tensor.FakeTensorMode(allow_non_fake_inputs=True),
        numbers,
        unittest.mock.patch.object(torch.autograd, "grad", gradients),
    ):
        yield numbers.syncs


def adapted(config: Any, settings: job.LoRA) -> Any:
    """A model of transformers in bfloat16 with an adapter, without weights. To be called before `tensors`."""
    with torch.device("meta"):
        base = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        base.requires_grad_(False).eval()
        tuned = lora.add(base, settings, "base")
    return tuned


def move(tuned: Any) -> None:
    """Replaces a model's weights by fake ones on the GPU. To be called within `tensors`."""
    moved: dict[int, torch.nn.Parameter] = {}
    for module in tuned.modules():
        for name, weight in module._parameters.items():
            if weight is not None:  # a tied one stays one
                module._parameters[name] = moved.setdefault(id(weight), _moved(weight))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=CUDA)


def _moved(weight: torch.nn.Parameter) -> torch.nn.Parameter:
    made = torch.nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype, device=CUDA), weight.requires_grad)
    if hasattr(weight, "quant_state"):
        made.quant_state = weight.quant_state  # type: ignore[attr-defined]
    return made


@contextlib.contextmanager
def processes(size: int = 2) -> Iterator[None]:
    """This process as the first of several, each with a GPU of its own; the others are imagined."""
    torch.distributed.init_process_group("cuda:fake", store=fake_pg.FakeStore(), rank=0, world_size=size)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
