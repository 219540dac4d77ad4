"""The adapter in the model: PEFT creates and names it, `Fast` computes it.

PEFT's own forward casts every input to the adapter's float32 and keeps a copy of it for the backward pass. `Fast` saves
the layer's input and the rank-sized product only, multiplies in the base's precision, and skips the input's gradient where
it is not needed (below the first adapted layer). The weights stay PEFT's float32 parameters: the master copy. A base weight in
4 bits is decoded for each product and not saved, so that it may also be one that `sharded` gathers.

PEFT adds the adapter's part to an output that is rounded already, so that in bfloat16 what is smaller than half a unit in its
last place vanishes: most of the first updates. Here the frozen product is added to the adapter's part: one rounding.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch

from finetune_api import job, reasons
from finetune_trainer.process import errors

ADAPTER = "default"
"""PEFT's name for the one adapter of a model."""

PARENTS = {
    job.Modules.ATTENTION: ("attn", "attention"),
    job.Modules.MLP: ("mlp", "ffn", "feed_forward", "expert"),
}
"""Parts of the name of the module around the linear layers that an adapter targets."""


class Fast(torch.autograd.Function):
    """y = scale · (x' Aᵀ) Bᵀ + x Wᵀ + bias with W frozen; x [n, in], W [out, in], A [rank, in], B [out, rank].

    state: how W is decoded where it is stored in 4 bits, see `decoded`; dropped: x' where the adapter has dropout, else it is x.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
        state: Any = None,
        dropped: torch.Tensor | None = None,
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        read = flat if dropped is None else dropped.reshape(flat.shape)
        a, b = a.to(x.dtype), b.to(x.dtype)
        x_a = read @ a.t()
        whole = x.new_empty(*x.shape[:-1], b.shape[0])  # no view is returned, since some families write into it
        y = whole.view(-1, b.shape[0])
        torch.mm(x_a, b.t(), out=y).mul_(scale)
        y.addmm_(flat, decoded(weight, state, x.dtype).t())
        if bias is not None:
            y += bias
        ctx.save_for_backward(read, x_a, weight, a, b)
        ctx.scale, ctx.shape, ctx.state, ctx.apart = scale, x.shape, state, dropped is not None
        return whole

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        read, x_a, weight, a, b = ctx.saved_tensors
        g = upstream[0].reshape(-1, b.shape[0])
        down = (g @ b).mul_(ctx.scale)
        grad_a = (down.t() @ read).float()
        grad_b = (g.t() @ x_a).float().mul_(ctx.scale)
        grad_x = grad_dropped = None
        if ctx.needs_input_grad[0]:
            grad_x = g @ decoded(weight, ctx.state, g.dtype)
            if not ctx.apart:
                grad_x.addmm_(down, a)
            grad_x = grad_x.view(ctx.shape)
        if ctx.apart and ctx.needs_input_grad[7]:
            grad_dropped = (down @ a).view(ctx.shape)
        return grad_x, None, None, grad_a, grad_b, None, None, grad_dropped


def decoded(weight: torch.Tensor, state: Any, dtype: torch.dtype) -> torch.Tensor:
    """A frozen weight [out, in]; state: of bitsandbytes, where it is stored in 4 bits."""
    if state is None:
        return weight
    import bitsandbytes.functional

    plain: torch.Tensor = bitsandbytes.functional.dequantize_4bit(weight.data, state)
    return plain.to(dtype)


def state_of(base: Any) -> Any:
    """How the weight of a linear layer is decoded; None where it is not stored in 4 bits. The weight itself has it, but not one
    that `sharded` gathers."""
    return getattr(base.weight, "quant_state", None) or getattr(base, "quant_state", None)


def _frozen(base: Any, x: torch.Tensor, state: Any) -> torch.Tensor:
    """The layer without its adapter: that of rank 0 where the weight is stored in 4 bits."""
    if state is None:
        plain: torch.Tensor = base(x)
        return plain
    a, b = x.new_empty(0, base.in_features), x.new_empty(base.out_features, 0)
    fast: torch.Tensor = Fast.apply(x, base.weight, base.bias, a, b, 0.0, state)  # type: ignore[no-untyped-call]
    return fast


def _forward(layer: Any, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """The forward of a PEFT LoRA layer with `Fast`."""
    base = layer.base_layer
    state = state_of(base)
    if layer.disable_adapters:
        return _frozen(base, x, state)
    a, b, scale = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, layer.scaling[ADAPTER]
    dropout = layer.lora_dropout[ADAPTER]
    dropped = dropout(x) if layer.training and not isinstance(dropout, torch.nn.Identity) else None
    fast: torch.Tensor = Fast.apply(x, base.weight, base.bias, a, b, scale, state, dropped)  # type: ignore[no-untyped-call]
    return fast


def targets(model: Any, modules: job.Modules) -> list[str]:
    """The names of the linear layers to adapt, without their parents': q_proj, up_proj, ... The head is never one."""
    names = set()
    for name, _ in linears(model):
        parent, _, leaf = name.rpartition(".")
        parts = PARENTS.get(modules)
        if parts is None or any(part in parent.rpartition(".")[2].lower() for part in parts):
            names.add(leaf)
    if not names:
        raise errors.Failure(
            reasons.Reason.MODEL_INVALID,
            f"the base model ({type(model).__name__}) has no linear layers for training.lora.targetModules: {modules}; "
            "choose AllLinear or another model",
        )
    return sorted(names)


def linears(model: Any) -> Iterator[tuple[str, torch.nn.Linear]]:
    """The linear layers below the top, by name, without the head."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head and "." in name:
            yield name, module


def add(model: Any, spec: job.LoRA, base_name: str) -> Any:
    """The model with a fresh adapter: A random by torch's generator, B zero, both float32 and the only trainable weights."""
    import peft

    config = peft.LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=targets(model, spec.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )
    tuned = peft.get_peft_model(model, config)
    tuned.peft_config[ADAPTER].base_model_name_or_path = base_name
    for layer in layers(tuned):
        layer.forward = functools.partial(_forward, layer)
    return tuned


def layers(model: Any) -> Iterator[Any]:
    """The adapted layers."""
    for module in model.modules():
        if hasattr(module, "lora_A") and isinstance(getattr(module, "base_layer", None), torch.nn.Linear):
            yield module


def parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """The trainable weights by name, in the model's order."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def active(model: Any) -> bool:
    """Whether an adapter is switched on."""
    return any(not layer.disable_adapters for layer in layers(model))


@contextlib.contextmanager
def disabled(model: Any) -> Iterator[None]:
    """Switches the adapter off within the context."""
    with model.disable_adapter():
        yield


@contextlib.contextmanager
def enabled() -> Iterator[None]:
    """Changes nothing: the counterpart of `disabled`."""
    yield


def checkpoint_activations(base: Any) -> None:
    """Recomputes each layer's activations in the backward pass instead of saving them."""
    base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    # Non-reentrant checkpointing needs no gradient of the embedding's output, which transformers would request.
    base.disable_input_require_grads()
