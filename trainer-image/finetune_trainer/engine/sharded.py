"""The frozen layers sharded over the processes by torch's FSDP2, for a base model that one device does not hold.

    model of which `own_part` loaded this process's part of every layer, with its adapter -> shard -> passes.Plain

A layer's weights are gathered when it runs and dropped afterwards; all processes must run the same number of passes. The adapter
is not sharded: its gradients are added once a step, and its checkpoints are those of any number of processes.
"""

from typing import Any

import torch
import torch.distributed.device_mesh
import torch.distributed.fsdp
import torch.distributed.tensor

from finetune_api import reasons
from finetune_trainer.engine import lora, model
from finetune_trainer.process import errors


def shard(tuned: Any, where: torch.device) -> None:
    """Shards the layers of a model with an adapter in place, and moves all else to this process's device.

    To be called by all processes of the default group. Raises Failure(InsufficientGpuMemory) where the model does not say what
    its layers are.
    """
    import accelerate.hooks

    from finetune_trainer.engine import own_part

    base, inner = tuned.get_base_model(), model.decoder(tuned)
    accelerate.hooks.remove_hook_from_module(base, recurse=True)  # they would move inputs to where it was loaded
    layers = [layer for _, layer in own_part.layers(inner)]
    if not layers:
        raise errors.Failure(
            reasons.Reason.INSUFFICIENT_GPU_MEMORY,
            f"the base model does not fit one device, and {type(base).__name__} does not say which of its modules are layers, "
            "so that they could be sharded; choose a larger resources.gpuType or a smaller base model",
        )
    mesh = torch.distributed.device_mesh.init_device_mesh(where.type, (torch.distributed.get_world_size(),))
    whole = set(lora.parameters(tuned).values())
    for layer in layers:
        parts = _take_parts(layer)
        _release_4_bits(layer, where)
        torch.distributed.fsdp.fully_shard(layer, mesh=mesh, ignored_params=whole)
        for module, name, part in parts:
            _give_part(module, name, part)
    whole |= {weight for weight in inner.parameters() if not isinstance(weight, torch.distributed.tensor.DTensor)}
    torch.distributed.fsdp.fully_shard(inner, mesh=mesh, ignored_params=whole)  # gathers the next layer in time
    _place(base, where)


def _take_parts(layer: Any) -> list[tuple[Any, str, torch.Tensor]]:
    """Replaces weights that were loaded in part by ones of the whole shape without data, which FSDP2 shards too."""
    from finetune_trainer.engine import own_part

    parts = []
    for module in layer.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if (shape := getattr(weight, own_part.WHOLE, None)) is not None:
                empty = torch.empty(shape, dtype=weight.dtype, device="meta")
                setattr(module, name, torch.nn.Parameter(empty, requires_grad=False))
                parts.append((module, name, weight.data))
    return parts


def _give_part(module: Any, name: str, part: torch.Tensor) -> None:
    """The data of this process's part; FSDP2 takes it over when it runs first."""
    empty = getattr(module, name)
    filled = torch.distributed.tensor.DTensor.from_local(
        part, empty.device_mesh, empty.placements, run_check=False, shape=empty.shape, stride=empty.stride()
    )
    setattr(module, name, torch.nn.Parameter(filled, requires_grad=False))


def _release_4_bits(layer: Any, where: torch.device) -> None:
    """Makes weights in 4 bits plain tensors of bytes: bitsandbytes' own kind would quantise itself again when it is moved. How
    they are decoded stays with their module, whole."""
    for module in layer.modules():
        if isinstance(module, torch.nn.Linear) and (state := lora.state_of(module)) is not None:
            module.weight = torch.nn.Parameter(module.weight.data, requires_grad=False)
            module.quant_state = state
            state.to(where)


def _place(base: Any, where: torch.device) -> None:
    """Moves what is not sharded."""
    for module in base.modules():
        for weight in module.parameters(recurse=False):
            if not isinstance(weight, torch.distributed.tensor.DTensor):
                weight.data = weight.data.to(where)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(where))
