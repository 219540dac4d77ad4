"""The decoder's forward and backward pass, written out for the families of the catalogue: the trainer's hot loop.

One description (`layers.Layer`) fits Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3; the modules of transformers hold the
weights, and `of` compares the states of both on a probe before it is trusted. Unlike autograd it

- keeps of each layer only what its backward pass cannot make again cheaply (normalised inputs and the activation are made again),
- works on blocks of rows in buffers that all layers use in turn,
- computes the last layer's feed-forward part for the states that predict a label only,
- and goes no deeper than the first adapted layer.
"""

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import torch

from finetune_trainer.engine import attention, buffers, elementwise, fused, layers, prefix_tree
from finetune_trainer.process import log

ROWS = 1280
"""Rows of a block on a CPU, whose buffers all layers use in turn. More rows make fewer calls, and larger buffers."""


@dataclasses.dataclass
class Kept:
    """What a layer's forward pass leaves for its backward pass."""

    x: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    chances: list[torch.Tensor]
    raw: torch.Tensor | None
    """Queries and keys before their norms."""
    mixed: torch.Tensor
    """The attention's output with the rank's columns."""
    attended: torch.Tensor | None
    """The attention's projection before its norm."""
    middle: torch.Tensor
    gates: torch.Tensor
    projected: torch.Tensor | None
    """The feed-forward projection before its norm."""


class Decoder:
    """The layers between the embedding and the output head. One batch at a time: forward, then backward."""

    def __init__(
        self, inner: Any, where: torch.device, shards: tuple[int, int] | None = None, learns: bool = True
    ) -> None:
        """`inner`: the decoder of transformers, below its head, with PEFT's layers in it; shards: see Fused; learns: whether
        the adapters do, so that what they drop would matter. Raises Unknown."""
        config = inner.config.get_text_config()
        self._inner, self._where = inner, where
        for name in ("embed_tokens", "layers", "norm", "rotary_emb"):
            if not hasattr(inner, name):
                raise layers.Unknown(f"a model without {name}")
        self._dtype = inner.embed_tokens.weight.dtype
        self.memory = buffers.BufferPool(self._dtype, where)
        self.final = layers.Norm(inner.norm, self.memory, "final norm")
        typed = "layer_type" in inspect.signature(inner.rotary_emb.forward).parameters
        self.layers = [
            layers.of(number, module, config, self.memory, typed, shards, learns)
            for number, module in enumerate(inner.layers)
        ]
        self._first = next((layer.number for layer in self.layers if any(part.rank for part in layer.linears)), None)
        self._ropes = {layer.rope for layer in self.layers}
        self.checkpointing = False
        self.refresh()

    def refresh(self) -> None:
        """Takes the adapters' weights as they are now; to be called whenever they changed."""
        with torch.no_grad():
            for layer in self.layers:
                for linear in layer.linears:
                    linear.refresh()

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """What the first layer reads: [T, hidden] of ids [T]."""
        found: torch.Tensor = self._inner.embed_tokens(ids)
        return found

    # -- one batch --

    @torch.no_grad()
    def forward(self, batch: prefix_tree.Batch, *, keep: bool, adapted: bool = True) -> torch.Tensor:
        """The normed states [n, hidden] that predict the batch's labels, one for each label."""
        self._batch = batch
        self._attention = attention.of(batch, self.memory)
        self._rotations = self.rotations(batch.positions)
        rows, self._label = torch.unique_consecutive(batch.states, return_inverse=True)
        self._learned = len(rows)
        # Filled up as the batch is: see forest.ROUND. The gradient of what is filled in is zero.
        self._rows = torch.cat([rows, rows.new_zeros(-len(rows) % prefix_tree.ROUND)])
        self._kept: list[Kept | torch.Tensor] = []
        self._keep = keep
        x = self.embed(batch.ids)
        for layer in self.layers:
            slot = layer.number if keep and not self.checkpointing else -1
            y, kept = self._layer_forward(layer, x, slot, adapted)
            if keep:
                self._kept.append(x if self.checkpointing else kept)
            x = y
        states = torch.empty_like(x)
        self._last = (x, *self.final.forward(x, states))
        return states[self._label]

    @torch.no_grad()
    def backward(self, upstream: torch.Tensor) -> None:
        """Adds to the gradients of the adapters; `upstream` [n, hidden] is the gradient of what `forward` returned."""
        if self._first is None:
            return
        summed = torch.zeros(len(self._rows), upstream.shape[1], dtype=torch.float32, device=upstream.device)
        summed.index_add_(0, self._label, upstream.float())
        x, unit, factor = self._last
        slope = self.final.backward(summed.to(x.dtype), unit, factor).to(x.dtype)
        for layer in reversed(self.layers[self._first :]):
            kept = self._kept.pop()
            if not isinstance(kept, Kept):
                kept = self._layer_forward(layer, kept, -1, True)[1]
            slope = self._layer_backward(layer, kept, slope)
        self._kept.clear()

    # -- one layer --

    def _layer_forward(
        self, layer: layers.Layer, x: torch.Tensor, slot: int, adapted: bool
    ) -> tuple[torch.Tensor, Kept]:
        take, size = self.memory.take, len(x)
        group = layer.heads // layer.shared
        q = take(("q", slot), layer.shared, size + 1, group * layer.width)
        k = take(("k", slot), layer.shared, size + 1, layer.width)
        v = take(("v", slot), layer.shared, size + 1, layer.width)
        normed = layer.query_norm is not None
        raw = take(("raw", slot), size, (layer.heads + layer.shared) * layer.width) if normed else None
        for rows in self._blocks(size):
            inputs = take("inputs", rows.stop - rows.start, layer.qkv.width)
            layer.before_attention.forward(x[rows], inputs[:, : layer.qkv.inputs])
            flat = layer.qkv.forward(inputs, take("qkv", len(inputs), layer.qkv.outputs), adapted)
            self._turn(layer, flat, rows, q, k, v, raw)
        for part in (q, k, v):
            part[:, size].zero_()
        mixed = take(("mixed", slot), size, layer.out.width)
        chances = self._attention.forward(q, k, v, layer.kind, slot, mixed[:, : layer.out.inputs])

        residual = x
        if layer is self.layers[-1]:
            residual, mixed = x[self._rows], mixed[self._rows]
            size = len(residual)
        middle = take(("middle", slot), size, x.shape[1])
        attended = take(("attended", slot), size, x.shape[1]) if layer.after_attention else None
        gates = take(("gates", slot), size, layer.up.outputs)
        projected = take(("projected", slot), size, x.shape[1]) if layer.after_mlp else None
        # The next layer's input: kept where the backward pass wants it, else one of two that take turns.
        y = take(("y", layer.number if self._keep else layer.number % 2), size, x.shape[1])
        for rows in self._blocks(size):
            self._add_projection(
                layer.out, layer.after_attention, mixed[rows], residual[rows], attended, rows, middle, adapted
            )
            inputs = take("inputs", rows.stop - rows.start, layer.up.width)
            layer.before_mlp.forward(middle[rows], inputs[:, : layer.up.inputs])
            layer.up.forward(inputs, gates[rows], adapted)
            active = take("active", len(inputs), layer.down.width)
            gate = take("gate", len(inputs), layer.down.inputs)
            elementwise.activate(layer.gelu, gates[rows], gate, active[:, : layer.down.inputs])
            self._add_projection(layer.down, layer.after_mlp, active, middle[rows], projected, rows, y, adapted)
        return y, Kept(x, q, k, v, chances, raw, mixed, attended, middle, gates, projected)

    def _add_projection(
        self,
        linear: fused.Fused,
        norm: layers.Norm | None,
        inputs: torch.Tensor,
        residual: torch.Tensor,
        before_norm: torch.Tensor | None,
        rows: slice,
        out: torch.Tensor,
        adapted: bool,
    ) -> None:
        """out[rows] = residual + norm(linear(inputs)); what comes before the norm is kept."""
        if norm is None or before_norm is None:
            linear.forward(inputs, out[rows], adapted)
        else:
            linear.forward(inputs, before_norm[rows], adapted)
            norm.forward(before_norm[rows], out[rows])
        out[rows].add_(residual)

    def _layer_backward(self, layer: layers.Layer, kept: Kept, slope: torch.Tensor) -> torch.Tensor:
        take, size = self.memory.take, len(kept.middle)
        deepest = layer.number == self._first
        attention_learns = bool(layer.qkv.rank or layer.out.rank)
        above = take("above", size, layer.out.inputs)
        for rows in self._blocks(size):
            # feed-forward
            active = take("active", rows.stop - rows.start, layer.down.width)
            unit_slope = _through(layer.after_mlp, kept.projected, slope, rows)
            gates = kept.gates[rows]
            gate = take("gate", len(active), layer.down.inputs)
            elementwise.activate(layer.gelu, gates, gate, active[:, : layer.down.inputs])
            layer.down.fill(active)
            below = layer.down.backward(unit_slope, active)
            assert below is not None
            elementwise.activate_backward(layer.gelu, gates, gate, below)
            inputs = take("inputs", len(active), layer.up.width)
            unit, factor = layer.before_mlp.forward(kept.middle[rows], inputs[:, : layer.up.inputs])
            layer.up.fill(inputs)
            through = not deepest or attention_learns
            below = layer.up.backward(gates, inputs, through)
            if below is None:
                continue
            slope[rows] += layer.before_mlp.backward(below, unit, factor).to(slope.dtype)
            # the attention's projection
            unit_slope = _through(layer.after_attention, kept.attended, slope, rows)
            below = layer.out.backward(unit_slope, kept.mixed[rows], not deepest or bool(layer.qkv.rank))
            if below is not None:
                above[rows] = below
        if deepest and not layer.qkv.rank:
            return slope
        return self._attention_backward(layer, kept, slope, above, deepest)

    def _attention_backward(
        self, layer: layers.Layer, kept: Kept, slope: torch.Tensor, above: torch.Tensor, deepest: bool
    ) -> torch.Tensor:
        take, size = self.memory.take, kept.q.shape[1] - 1
        if layer is self.layers[-1]:
            whole = torch.zeros(size, above.shape[1], dtype=above.dtype, device=above.device)
            learned = self._rows[: self._learned]
            whole[learned] = above[: self._learned]
            above = whole
            wide = torch.zeros(size, slope.shape[1], dtype=slope.dtype, device=slope.device)
            wide[learned] = slope[: self._learned]
            slope = wide
        upstream = take("upstream", *kept.q.shape)
        upstream[:, :size].copy_(above.view(size, layer.shared, -1).transpose(0, 1))
        upstream[:, size].zero_()
        grads = (take("dq", *kept.q.shape), take("dk", *kept.k.shape), take("dv", *kept.v.shape))
        self._attention.backward(kept.q, kept.k, kept.v, kept.chances, layer.kind, upstream, grads)
        for rows in self._blocks(size):
            flat = take("qkv", rows.stop - rows.start, layer.qkv.outputs)
            self._turn_back(layer, flat, rows, grads, kept.raw)
            inputs = take("inputs", len(flat), layer.qkv.width)
            unit, factor = layer.before_attention.forward(kept.x[rows], inputs[:, : layer.qkv.inputs])
            layer.qkv.fill(inputs)
            below = layer.qkv.backward(flat, inputs, not deepest)
            if below is not None:
                slope[rows] += layer.before_attention.backward(below, unit, factor).to(slope.dtype)
        return slope

    # -- rotary embedding --

    def rotations(self, positions: torch.Tensor) -> dict[str | None, tuple[torch.Tensor, torch.Tensor]]:
        """Cosine and sine [T, 1, width / 2] of the positions [T], for each kind of rotary embedding that a layer uses."""
        sample = torch.empty(0, dtype=self._dtype, device=self._where)
        found = {}
        for name in self._ropes:
            cosine, sine = self._inner.rotary_emb(sample, positions[None], *((name,) if name else ()))
            half = cosine.shape[-1] // 2
            found[name] = cosine[0, :, None, :half].contiguous(), sine[0, :, None, :half].contiguous()
        return found

    def _turn(
        self,
        layer: layers.Layer,
        flat: torch.Tensor,
        rows: slice,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        raw: torch.Tensor | None,
    ) -> None:
        """A block's queries, keys and values [n, ...] to where the attention wants them: normed, turned, by heads."""
        size, width = len(flat), layer.width
        turned = (layer.heads + layer.shared) * width
        both = flat[:, :turned]
        if raw is not None:
            raw[rows] = both
            normed = self.memory.take("normed", size, turned)
            for norm, part in self._normed_parts(layer, turned):
                shape = (size, -1, width)
                norm.forward(both[:, part].view(shape), normed[:, part].view(shape))
            both = normed
        cosine, sine = (part[rows] for part in self._rotations[layer.rope])
        elementwise.rotate(both[:, : layer.heads * width], cosine, sine, q[:, rows].view(layer.shared, size, -1, width))
        elementwise.rotate(both[:, layer.heads * width :], cosine, sine, k[:, rows].view(layer.shared, size, -1, width))
        v[:, rows].copy_(flat[:, turned:].view(size, layer.shared, width).transpose(0, 1))

    def _turn_back(
        self,
        layer: layers.Layer,
        flat: torch.Tensor,
        rows: slice,
        grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        raw: torch.Tensor | None,
    ) -> None:
        """The gradients of a block's queries, keys and values as that of the fused layer's output [n, ...]."""
        size, width = len(flat), layer.width
        here, turned = layer.heads * width, (layer.heads + layer.shared) * width
        cosine, sine = (part[rows] for part in self._rotations[layer.rope])
        for grad, begin, end in ((grads[0], 0, here), (grads[1], here, turned)):
            heads = grad[:, rows].view(layer.shared, size, -1, width)
            elementwise.rotate_back(heads, cosine, sine, flat[:, begin:end].view(size, layer.shared, -1, width))
        flat[:, turned:].view(size, layer.shared, width).copy_(grads[2][:, rows].transpose(0, 1))
        if raw is not None:
            for norm, part in self._normed_parts(layer, turned):
                heads, slopes = raw[rows, part].view(size, -1, width), flat[:, part].view(size, -1, width)
                slopes.copy_(norm.backward(slopes, *norm.forward(heads, torch.empty_like(heads))))

    def _normed_parts(self, layer: layers.Layer, turned: int) -> list[tuple[layers.Norm, slice]]:
        here = layer.heads * layer.width
        parts = ((layer.query_norm, slice(0, here)), (layer.key_norm, slice(here, turned)))
        return [(norm, part) for norm, part in parts if norm is not None]

    def _blocks(self, size: int) -> Iterator[slice]:
        step = ROWS if self._where.type == "cpu" else max(size, 1)
        for begin in range(0, size, step):
            yield slice(begin, min(begin + step, size))


def _through(norm: layers.Norm | None, before: torch.Tensor | None, slope: torch.Tensor, rows: slice) -> torch.Tensor:
    """The gradient of what comes before a norm, or the gradient itself where there is none."""
    if norm is None or before is None:
        return slope[rows]
    unit, factor = norm.forward(before[rows], torch.empty_like(before[rows]))
    return norm.backward(slope[rows], unit, factor).to(slope.dtype)


def of(inner: Any, where: torch.device, shards: tuple[int, int] | None = None) -> Decoder | None:
    """The decoder of a model of transformers below its head, after comparing both on a probe (not where weights are shared
    among processes: then only it has them); None where it is unknown."""
    try:
        found = Decoder(inner, where, shards)
        if shards is None:
            _compare(found, inner, where)
    except layers.Unknown as unknown:
        log.warning("the model's family is not known to the fast trainer; a slower path is taken", differs=str(unknown))
        return None
    return found


def _compare(found: Decoder, inner: Any, where: torch.device) -> None:
    """Two examples that share a beginning, by both. Raises Unknown when the states differ."""
    import numpy as np

    size = inner.embed_tokens.weight.shape[0]
    common = np.arange(1, 18)
    rows = [np.concatenate([common, tail]) % size for tail in (np.arange(20, 33), np.arange(40, 47))]
    batch = prefix_tree.build([prefix_tree.Row(ids, np.arange(len(ids)) >= len(ids) - 4) for ids in rows]).to(where)
    states = found.forward(batch, keep=False).float()
    quantised = any(hasattr(weight, "quant_state") for weight in inner.parameters())
    with torch.no_grad():
        expected = [
            inner(input_ids=torch.tensor(ids, device=where)[None], use_cache=False).last_hidden_state[0] for ids in rows
        ]
    for index, theirs in enumerate(expected):
        mine = states[batch.rows == index]
        wanted = theirs[len(theirs) - 5 : -1].float()
        difference = float((mine - wanted).norm() / wanted.norm())
        # bitsandbytes rounds on its way through a layer, whatever the precision
        if difference > (5e-2 if theirs.dtype != torch.float32 or quantised else 1e-4):
            raise layers.Unknown(f"its states differ by {difference:.2g}")
