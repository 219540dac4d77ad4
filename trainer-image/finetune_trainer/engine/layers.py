"""A decoder's layers, read from the modules of transformers: one description for all families of the catalogue."""

import dataclasses
from typing import Any

import torch

from finetune_trainer.engine import attention_types, buffers, fused, lora


class Unknown(Exception):
    """The model's family is not described here; the message says what differs."""


class Norm:
    """RMSNorm in float32. Llama's multiplies by the weight after rounding, Gemma's by 1 + weight before it."""

    def __init__(self, module: Any, memory: buffers.BufferPool, name: str = "norm") -> None:
        """`name`: of the buffers, which norms of the same name share; what `forward` returns is valid until one of them runs."""
        self._memory, self._name = memory, name
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if eps is None or not isinstance(getattr(module, "weight", None), torch.Tensor):
            raise Unknown(f"the norm {type(module).__name__}")
        self.eps = eps
        weight = module.weight.data
        with torch.no_grad():
            x = torch.linspace(-1, 1, weight.numel(), device=weight.device, dtype=weight.dtype)[None]
            expected = module(x)
            for plus in (False, True):
                self.plus = plus
                self.weight = weight.float() + 1 if plus else weight
                out = torch.empty_like(x)
                self.forward(x, out)
                if torch.allclose(out.float(), expected.float(), rtol=1e-2 if weight.dtype != torch.float32 else 1e-5):
                    return
        raise Unknown(f"the norm {type(module).__name__}")

    def forward(self, x: torch.Tensor, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes [n, d]; returns the normalised rows and the factor of each, in float32, for `backward`."""
        unit = self._take("unit", x.shape).copy_(x)
        factor = torch.linalg.vector_norm(unit, dim=-1, keepdim=True).square_()
        factor = factor.div_(x.shape[-1]).add_(self.eps).rsqrt_()
        unit.mul_(factor)
        if self.plus:
            torch.mul(unit, self.weight, out=out) if out.dtype == unit.dtype else out.copy_(unit * self.weight)
        else:
            out.copy_(unit)
            out.mul_(self.weight)
        return unit, factor

    def backward(self, upstream: torch.Tensor, unit: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """The gradient of the input [n, d], in float32."""
        gradient = self._take("gradient", upstream.shape).copy_(upstream).mul_(self.weight)
        along = (
            torch.mul(gradient, unit, out=self._take("product", unit.shape)).sum(-1, keepdim=True).div_(unit.shape[-1])
        )
        return gradient.addcmul_(unit, along, value=-1).mul_(factor)

    def _take(self, name: str, shape: torch.Size) -> torch.Tensor:
        return self._memory.take((self._name, name), *shape, dtype=torch.float32)


@dataclasses.dataclass(frozen=True)
class Layer:
    """One decoder layer. Its linear layers are fused by input; norms that a family lacks are None."""

    number: int
    qkv: fused.Fused
    out: fused.Fused
    up: fused.Fused
    down: fused.Fused
    before_attention: Norm
    after_attention: Norm | None
    before_mlp: Norm
    after_mlp: Norm | None
    query_norm: Norm | None
    key_norm: Norm | None
    heads: int
    kv_heads: int
    width: int
    kind: attention_types.Kind
    rope: str | None
    """The layer type whose rotary embedding it uses; None where the model has only one."""
    gelu: bool

    @property
    def linears(self) -> tuple[fused.Fused, ...]:
        return self.qkv, self.out, self.up, self.down


def of(
    number: int,
    module: Any,
    config: Any,
    memory: buffers.BufferPool,
    by_type: bool,
    learns: bool,
) -> Layer:
    """Raises Unknown. by_type: whether rotary embeddings differ by the layer's type; learns: whether dropout matters."""
    try:
        attended, mlp = module.self_attn, module.mlp
        groups = {
            "qkv": [attended.q_proj, attended.k_proj, attended.v_proj],
            "out": [attended.o_proj],
            "up": [mlp.gate_proj, mlp.up_proj],
            "down": [mlp.down_proj],
        }
        # Gemma also norms what a block adds; elsewhere post_attention_layernorm is the norm before the feed-forward block.
        post_norms = hasattr(module, "pre_feedforward_layernorm")
        before_mlp = module.pre_feedforward_layernorm if post_norms else module.post_attention_layernorm
        for layer in (layer for group in groups.values() for layer in group):
            _check(layer, learns)
        if getattr(attended, "attention_dropout", 0) or not getattr(attended, "is_causal", True):
            raise Unknown("attention with dropout, or in both directions")
        width, scale = attended.head_dim, attended.scaling
        linears = {name: fused.Fused(group, name, memory) for name, group in groups.items()}
        queries, keys = linears["qkv"].parts[:2]
        return Layer(
            number=number,
            qkv=linears["qkv"],
            out=linears["out"],
            up=linears["up"],
            down=linears["down"],
            before_attention=Norm(module.input_layernorm, memory),
            after_attention=Norm(module.post_attention_layernorm, memory) if post_norms else None,
            before_mlp=Norm(before_mlp, memory),
            after_mlp=Norm(module.post_feedforward_layernorm, memory) if post_norms else None,
            query_norm=Norm(attended.q_norm, memory) if hasattr(attended, "q_norm") else None,
            key_norm=Norm(attended.k_norm, memory) if hasattr(attended, "k_norm") else None,
            heads=queries.end // width,
            kv_heads=(keys.end - keys.begin) // width,
            width=width,
            kind=attention_types.Kind(
                scale, getattr(attended, "attn_logit_softcapping", None), _window(attended, config, number)
            ),
            rope=attended.layer_type if by_type else None,
            gelu=_is_gelu(mlp.act_fn),
        )
    except (AttributeError, ValueError) as error:
        raise Unknown(str(error)) from None


def _window(attended: Any, config: Any, number: int) -> int | None:
    """Tokens that a layer sees. The configuration says it layer by layer, or once for all (Mistral). Raises Unknown."""
    everywhere: int | None = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is None:
        return getattr(attended, "sliding_window", everywhere)
    if types[number] not in ("full_attention", "sliding_attention"):
        raise Unknown(f"a layer of the type {types[number]}")
    return everywhere if types[number] == "sliding_attention" else None


def _check(layer: Any, learns: bool) -> None:
    """Raises Unknown unless a layer is plain and linear; its adapter, if it has one, must have no dropout where it learns."""
    base = getattr(layer, "base_layer", layer)
    if type(base) is not torch.nn.Linear and not hasattr(base.weight, "quant_state"):
        raise Unknown(f"a linear layer of the kind {type(base).__name__}")
    if learns and layer is not base and not isinstance(layer.lora_dropout[lora.ADAPTER], torch.nn.Identity):
        raise Unknown("an adapter with dropout")


def _is_gelu(activation: Any) -> bool:
    x = torch.linspace(-3, 3, 64)
    out = activation(x)
    if torch.allclose(out, torch.nn.functional.silu(x), atol=1e-6):
        return False
    if torch.allclose(out, torch.nn.functional.gelu(x, approximate="tanh"), atol=1e-6):
        return True
    raise Unknown(f"the activation {type(activation).__name__}")
