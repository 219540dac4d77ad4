"""Our passes against those of transformers, before they are trusted.

form        the first layer of each kind and the last one, copied in float32 to the CPU, with a window of a few tokens and with an
            adapter that is not zero: states, and gradients of the adapter, may differ by float32's rounding alone. On a GPU
            again there, in the model's precision: the kernels that training will use, with their masks
precision   every layer of the model itself, where and as it is held, on the input that it has in transformers: its output may
            differ by the rounding of one layer

An error of form (a scale, a window, a norm forgotten) is larger than the bound of either by orders of magnitude; a bound on the
states after all layers in bfloat16 would have to be so wide that it hides some.
"""

import copy
from typing import Any

import numpy as np
import torch

from finetune_trainer.engine import layers, lora, prefix_tree
from finetune_trainer.process import errors

CPU = torch.device("cpu")

VOCABULARY = 64
"""Tokens of the copy: the first ones."""

WINDOW = 16
"""Of the copy, where the model has a window: a few tokens, so that the examples cross it."""

CACHE = "finetune_decoding"
"""Attribute of a model under which `decoding` stores what it made of it; no part of the copy."""

EXACT = 1e-4
"""Difference in float32, of the norm: rounding gives about 1e-6."""

ON_DEVICE = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.03}
"""The same in the model's precision. In bfloat16 rounding gives up to 0.024 of the states and 0.094 of the gradients of the
tests' models, a window that is one token too long 0.28 and 0.64."""

ROUNDED = {torch.float32: EXACT, torch.bfloat16: 2.0**-5, torch.float16: 2.0**-8}
"""Difference of what a layer adds to a token, of its norm, in the median of the tokens (some have activations a thousand times as
large, which would hide all others in a sum). Two ways through a layer of ten roundings differ by about sqrt(20) / sqrt(3) of the
unit roundoff, 2**-8 in bfloat16: that is 0.010, measured 0.009 to 0.015; the bound is eight times the unit roundoff."""


# -- form --


def miniature(inner: Any, chosen: list[int] | None = None) -> Any:
    """A few layers of a model below its head as a model of their own: float32, on the CPU, with a short window.

    chosen: the numbers of the layers; default: those of `representative`.
    """
    config = copy.deepcopy(inner.config.get_text_config())
    chosen = chosen or representative(inner)
    config.num_hidden_layers = len(chosen)
    config._attn_implementation = "eager"
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[number] for number in chosen]
    if getattr(config, "sliding_window", None):
        config.sliding_window = WINDOW
    same: dict[int, Any] = {id(inner.config): config, id(inner.config.get_text_config()): config}
    parts = {
        id(inner.layers): torch.nn.ModuleList(_copied(inner.layers[number], same) for number in chosen),
        id(inner.embed_tokens): _copied(inner.embed_tokens, same, VOCABULARY),
        id(inner.norm): _copied(inner.norm, same),
        id(inner.rotary_emb): _copied(inner.rotary_emb, same),
        id(getattr(inner, CACHE, None)): None,
    }
    small = copy.deepcopy(inner, same | parts)
    small.__dict__.pop("forward", None)
    small.embed_tokens.padding_idx = None
    for layer in small.layers:
        if getattr(layer.self_attn, "sliding_window", None):
            layer.self_attn.sliding_window = WINDOW
    _randomise(small)
    return small.eval()


def representative(inner: Any) -> list[int]:
    """The numbers of the first layer of each kind, and of the last one."""
    types = getattr(inner.config.get_text_config(), "layer_types", None) or [None] * len(inner.layers)
    first: dict[Any, int] = {}
    for number, layer in enumerate(inner.layers):
        window = getattr(layer.self_attn, "sliding_window", None) is None
        adapted = tuple(hasattr(module, "lora_A") for module in layer.modules())
        first.setdefault((type(layer), types[number], window, adapted), number)
    return sorted({*first.values(), len(inner.layers) - 1})


def _copied(module: Any, same: dict[int, Any], rows: int | None = None) -> Any:
    """A module with weights of its own, the first rows of them, and with its class's own forward passes: neither `lora`'s nor
    accelerate's hooks, which would move its inputs back to the GPU. What is held in 4 bits becomes plain weights."""
    memo = dict(same)
    for weight in [*module.parameters(), *module.buffers()]:
        whole = _dequantised(weight) if hasattr(weight, "quant_state") else weight.data
        whole = whole[:rows] if whole.dim() else whole
        made = whole.to(CPU, torch.float32 if whole.is_floating_point() else None, copy=True)
        named = isinstance(weight, torch.nn.Parameter)
        memo[id(weight)] = torch.nn.Parameter(made, weight.requires_grad) if named else made
    copied = copy.deepcopy(module, memo)
    for parent in list(copied.modules()):
        parent.__dict__.pop("forward", None)
        for name, layer in list(parent.named_children()):
            if isinstance(layer, torch.nn.Linear) and type(layer) is not torch.nn.Linear:
                plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
                plain.weight, plain.bias = layer.weight, layer.bias
                setattr(parent, name, plain)
    return copied


def _dequantised(weight: Any) -> torch.Tensor:
    import bitsandbytes.functional

    found: torch.Tensor = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    return found


def _randomise(small: Any) -> None:
    """Gives the adapter weights that do something, as a fresh one does not."""
    random = torch.Generator().manual_seed(0)
    for layer in lora.layers(small):
        layer.enable_adapters(enabled=True)
        scale = max(1.0, layer.scaling[lora.ADAPTER]) ** -0.5
        for weight in (layer.lora_A[lora.ADAPTER].weight, layer.lora_B[lora.ADAPTER].weight):
            weight.data = torch.randn(weight.shape, generator=random) * scale * weight.shape[1] ** -0.5


def examples() -> list[prefix_tree.TokenRow]:
    """Three that begin alike, at two depths, and one of its own; each crosses the window."""
    numbers = np.random.default_rng(0)
    begin, middle = numbers.integers(1, VOCABULARY, 20), numbers.integers(1, VOCABULARY, 10)
    tails = [numbers.integers(1, VOCABULARY, size) for size in (18, 9, 30, 40)]
    ids = [
        *(np.concatenate([begin, *part]) for part in ((middle, tails[0]), (middle, tails[1]), (tails[2],))),
        tails[3],
    ]
    return [prefix_tree.TokenRow(row, np.arange(len(row)) % 5 < 3) for row in ids]


def move(small: Any, where: torch.device, dtype: torch.dtype) -> None:
    """A miniature to a device, its frozen weights in a precision, without the gradients that it has."""
    for weight in small.parameters():
        weight.data = weight.data.to(where, torch.float32 if weight.requires_grad else dtype)
        weight.grad = None
    for module in small.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(where))


def form(ours: Any, small: Any, where: torch.device = CPU, bound: float = EXACT) -> None:
    """Compares our decoder of a miniature with the miniature: states, and gradients of the adapter. Raises Unknown."""
    rows = examples()
    batch = prefix_tree.build(rows).to(where)
    read = [torch.from_numpy(row.ids)[None].to(where) for row in rows]
    learned = [torch.from_numpy(np.flatnonzero(row.learned[1:])).to(where) for row in rows]
    expected = torch.cat(
        [
            small(input_ids=ids, use_cache=False).last_hidden_state[0, :-1][at]
            for ids, at in zip(read, learned, strict=True)
        ]
    )
    order = torch.argsort(batch.rows, stable=True)
    weights = lora.parameters(small)
    equal("states", ours.forward(batch, save=bool(weights))[order], expected, bound)
    if not weights:
        return
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(where, expected.dtype)
    gradients = torch.autograd.grad(expected, list(weights.values()), upstream)
    ours.backward(upstream[torch.argsort(order)])
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        if weight.grad is None:
            raise layers.Unknown(f"no gradient of {name}")
        equal(f"gradients of {name}", weight.grad, gradient, bound)


def equal(name: str, ours: torch.Tensor, expected: torch.Tensor, bound: float) -> None:
    """Raises Unknown when tensors differ by more than the bound, of the norm."""
    difference = float((ours.detach().float() - expected.detach().float()).norm() / expected.detach().float().norm())
    if not difference <= bound:
        raise layers.Unknown(f"{name} differ by {difference:.2g} of their norm, above {bound:.2g}")


# -- precision --


@torch.no_grad()
def precision(ours: Any, inner: Any, where: torch.device) -> None:
    """Compares each layer of our decoder with the model's own, on the same input. Raises Unknown."""
    ids = np.arange(1, 66) % inner.embed_tokens.weight.shape[0]
    batch = prefix_tree.build([prefix_tree.TokenRow(ids, np.ones(len(ids), dtype=bool))]).to(where)
    states = _states(inner, torch.from_numpy(ids[:-1]).to(where))
    # bitsandbytes rounds inside a layer, whatever the precision
    quantised = any(hasattr(weight, "quant_state") for weight in inner.parameters())
    bound = ROUNDED[torch.bfloat16 if quantised else states[0].dtype]
    outputs = ours.layer_outputs(batch, states[:-1], lora.active(inner))
    for number, (output, x, expected) in enumerate(zip(outputs, states[:-1], states[1:], strict=True)):
        added = expected.float() - x.float()
        difference = float(((output.float() - expected.float()).norm(dim=-1) / added.norm(dim=-1)).median())
        if not difference <= bound:
            raise layers.Unknown(
                f"what layer {number} adds differs by {difference:.2g} of its norm, rounding explains {bound:.2g}"
            )


def _states(inner: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """What each layer reads, [n, hidden], and what the final norm does."""
    states: list[torch.Tensor] = []

    def note(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        states.append((given[0] if given else named["hidden_states"])[0])

    hooks = [part.register_forward_pre_hook(note, with_kwargs=True) for part in (*inner.layers, inner.norm)]
    try:
        inner(input_ids=ids[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return states


def described(problem: Exception) -> str:
    """What the log says differs."""
    return str(problem) if isinstance(problem, layers.Unknown) else errors.describe(problem)
