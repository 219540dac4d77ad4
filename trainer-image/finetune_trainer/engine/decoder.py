"""The decoder's forward and backward pass, written out for the families of the catalogue: the trainer's hot loop.

One description (`layers.Layer`) fits Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3; the modules of transformers hold the
weights, and `of` compares both before this one is used (`comparison`). Unlike autograd it

- saves of each layer only what its backward pass cannot recompute cheaply (normalised inputs and the activation are recomputed),
- works on blocks of rows in buffers that all layers use in turn,
- computes the last layer's feed-forward part only for the states that predict a label,
- and ends the backward pass at the first adapted layer.
"""

import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from finetune_trainer.engine import attention, buffers, comparison, elementwise, fused, layers, prefix_tree, sizes
from finetune_trainer.process import errors, log


@dataclasses.dataclass
class Saved:
    """The activations that a layer's forward pass saves for its backward pass."""

    x: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    probabilities: list[torch.Tensor]
    unnormed: torch.Tensor | None
    """Queries and keys before their norms, where the family has these."""
    mixed: torch.Tensor
    """The attention's output, with the columns of the adapter's rank."""
    attended: torch.Tensor | None
    """The attention's projection before its norm."""
    middle: torch.Tensor
    """The residual stream between attention and feed-forward part."""
    gates: torch.Tensor
    projected: torch.Tensor | None
    """The feed-forward projection before its norm."""


class Decoder:
    """The layers between the embedding and the output head. One batch at a time: forward, then backward."""

    def __init__(self, inner: Any, where: torch.device, learns: bool = True) -> None:
        """`inner`: the decoder of transformers, below its head, with PEFT's layers in it; learns: whether the adapters are
        trained, so that their dropout would matter. Raises Unknown."""
        config = inner.config.get_text_config()
        self._inner, self._where = inner, where
        for name in ("embed_tokens", "layers", "norm", "rotary_emb"):
            if not hasattr(inner, name):
                raise layers.Unknown(f"a model without {name}")
        self._dtype = inner.embed_tokens.weight.dtype
        self.memory = buffers.BufferPool(self._dtype, where)
        self.final = layers.Norm(inner.norm, self.memory, "final norm")
        by_type = "layer_type" in inspect.signature(inner.rotary_emb.forward).parameters
        self.layers = [
            layers.of(number, module, config, self.memory, by_type, learns)
            for number, module in enumerate(inner.layers)
        ]
        self._first = next((layer.number for layer in self.layers if any(part.rank for part in layer.linears)), None)
        self._ropes = {layer.rope for layer in self.layers}
        self.checkpointing = False
        self.refresh()

    def refresh(self) -> None:
        """Copies the adapters' weights; to be called whenever they have changed."""
        with torch.no_grad():
            for layer in self.layers:
                for linear in layer.linears:
                    linear.refresh()

    def release(self) -> None:
        """Frees all buffers; after passes that ended with an error."""
        self.memory.clear()
        for name in ("_batch", "_attention", "_rotations", "_saved", "_last"):
            self.__dict__.pop(name, None)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """The input of the first layer: ids [T] -> [T, hidden]."""
        built: torch.Tensor = self._inner.embed_tokens(ids)
        return built

    # -- one batch --

    @torch.no_grad()
    def forward(self, batch: prefix_tree.Batch, *, save: bool, adapted: bool = True) -> torch.Tensor:
        """The normed states [n, hidden] that predict the batch's labels, one for each label."""
        self._begin(batch, save)
        x = self.embed(batch.ids)
        for layer in self.layers:
            slot = layer.number if save and not self.checkpointing else -1
            y, saved = self._layer_forward(layer, x, slot, adapted)
            if save:
                self._saved.append(x if self.checkpointing else saved)
            x = y
        states = torch.empty_like(x)
        self._last = (x, *self.final.forward(x, states))
        return states[self._label]

    def layer_outputs(
        self, batch: prefix_tree.Batch, inputs: Sequence[torch.Tensor], adapted: bool
    ) -> Iterator[torch.Tensor]:
        """Each layer's output for an input of its own [T, hidden]; the last one's for the states that predict a label."""
        self._begin(batch, save=False)
        for layer, x in zip(self.layers, inputs, strict=True):
            yield self._layer_forward(layer, x, -1, adapted)[0]

    def _begin(self, batch: prefix_tree.Batch, save: bool) -> None:
        self._batch = batch
        self._attention = attention.of(batch, self.memory)
        self._rotations = self.rotations(batch.positions)
        rows, self._label = batch.predicting, batch.label
        self._learned = len(rows)
        # Padded as the batch is: see sizes.ROUND. The gradient of the padding is zero.
        self._rows = torch.cat([rows, rows.new_zeros(-len(rows) % sizes.ROUND)])
        self._saved: list[Saved | torch.Tensor] = []
        self._save = save

    @torch.no_grad()
    def backward(self, upstream: torch.Tensor) -> None:
        """Adds to the gradients of the adapters; `upstream` [n, hidden] is the gradient of what `forward` returned."""
        if self._first is None:
            return
        summed = torch.zeros(len(self._rows), upstream.shape[1], dtype=torch.float32, device=upstream.device)
        summed.index_add_(0, self._label, upstream.float())
        x, unit, factor = self._last
        gradient = self.final.backward(summed.to(x.dtype), unit, factor).to(x.dtype)
        for layer in reversed(self.layers[self._first :]):
            saved = self._saved.pop()
            if not isinstance(saved, Saved):
                saved = self._layer_forward(layer, saved, -1, True)[1]
            gradient = self._layer_backward(layer, saved, gradient)
        self._saved.clear()

    # -- one layer --

    def _layer_forward(
        self, layer: layers.Layer, x: torch.Tensor, slot: int, adapted: bool
    ) -> tuple[torch.Tensor, Saved]:
        take, size = self.memory.take, len(x)
        group = layer.heads // layer.kv_heads
        q = take(("q", slot), layer.kv_heads, size + 1, group * layer.width)
        k = take(("k", slot), layer.kv_heads, size + 1, layer.width)
        v = take(("v", slot), layer.kv_heads, size + 1, layer.width)
        normed = layer.query_norm is not None
        unnormed = take(("unnormed", slot), size, (layer.heads + layer.kv_heads) * layer.width) if normed else None
        for rows in self._blocks(size):
            inputs = take("inputs", rows.stop - rows.start, layer.qkv.width)
            layer.before_attention.forward(x[rows], inputs[:, : layer.qkv.inputs])
            flat = layer.qkv.forward(inputs, take("qkv", len(inputs), layer.qkv.outputs), adapted)
            self._rotate(layer, flat, rows, q, k, v, unnormed)
        for part in (q, k, v):
            part[:, size].zero_()
        mixed = take(("mixed", slot), size, layer.out.width)
        probabilities = self._attention.forward(q, k, v, layer.kind, slot, mixed[:, : layer.out.inputs])

        residual = x
        if layer is self.layers[-1]:
            residual, mixed = x[self._rows], mixed[self._rows]
            size = len(residual)
        middle = take(("middle", slot), size, x.shape[1])
        attended = take(("attended", slot), size, x.shape[1]) if layer.after_attention else None
        gates = take(("gates", slot), size, layer.up.outputs)
        projected = take(("projected", slot), size, x.shape[1]) if layer.after_mlp else None
        # The next layer's input: saved where the backward pass needs it, else one of two buffers in turn.
        y = take(("y", layer.number if self._save else layer.number % 2), size, x.shape[1])
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
        return y, Saved(x, q, k, v, probabilities, unnormed, mixed, attended, middle, gates, projected)

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
        """out[rows] = residual + norm(linear(inputs)); what comes before the norm is saved."""
        if norm is None or before_norm is None:
            linear.forward(inputs, out[rows], adapted)
        else:
            linear.forward(inputs, before_norm[rows], adapted)
            norm.forward(before_norm[rows], out[rows])
        out[rows].add_(residual)

    def _layer_backward(self, layer: layers.Layer, saved: Saved, gradient: torch.Tensor) -> torch.Tensor:
        take, size = self.memory.take, len(saved.middle)
        deepest = layer.number == self._first
        attention_learns = bool(layer.qkv.rank or layer.out.rank)
        grad_mixed = take("grad_mixed", size, layer.out.inputs)
        for rows in self._blocks(size):
            # feed-forward
            active = take("active", rows.stop - rows.start, layer.down.width)
            grad_output = _through(layer.after_mlp, saved.projected, gradient, rows)
            gates = saved.gates[rows]
            gate = take("gate", len(active), layer.down.inputs)
            elementwise.activate(layer.gelu, gates, gate, active[:, : layer.down.inputs])
            layer.down.fill(active)
            grad_inputs = layer.down.backward(grad_output, active)
            assert grad_inputs is not None
            elementwise.activate_backward(layer.gelu, gates, gate, grad_inputs)
            inputs = take("inputs", len(active), layer.up.width)
            unit, factor = layer.before_mlp.forward(saved.middle[rows], inputs[:, : layer.up.inputs])
            layer.up.fill(inputs)
            input_gradient = not deepest or attention_learns
            grad_inputs = layer.up.backward(gates, inputs, input_gradient)
            if grad_inputs is None:
                continue
            gradient[rows] += layer.before_mlp.backward(grad_inputs, unit, factor).to(gradient.dtype)
            # the attention's projection
            grad_output = _through(layer.after_attention, saved.attended, gradient, rows)
            grad_inputs = layer.out.backward(grad_output, saved.mixed[rows], not deepest or bool(layer.qkv.rank))
            if grad_inputs is not None:
                grad_mixed[rows] = grad_inputs
        if deepest and not layer.qkv.rank:
            return gradient
        return self._attention_backward(layer, saved, gradient, grad_mixed, deepest)

    def _attention_backward(
        self, layer: layers.Layer, saved: Saved, gradient: torch.Tensor, grad_mixed: torch.Tensor, deepest: bool
    ) -> torch.Tensor:
        take, size = self.memory.take, saved.q.shape[1] - 1
        if layer is self.layers[-1]:
            whole = torch.zeros(size, grad_mixed.shape[1], dtype=grad_mixed.dtype, device=grad_mixed.device)
            learned = self._rows[: self._learned]
            whole[learned] = grad_mixed[: self._learned]
            grad_mixed = whole
            wide = torch.zeros(size, gradient.shape[1], dtype=gradient.dtype, device=gradient.device)
            wide[learned] = gradient[: self._learned]
            gradient = wide
        upstream = take("upstream", *saved.q.shape)
        upstream[:, :size].copy_(grad_mixed.view(size, layer.kv_heads, -1).transpose(0, 1))
        upstream[:, size].zero_()
        grads = (take("dq", *saved.q.shape), take("dk", *saved.k.shape), take("dv", *saved.v.shape))
        self._attention.backward(saved.q, saved.k, saved.v, saved.probabilities, layer.kind, upstream, grads)
        for rows in self._blocks(size):
            flat = take("qkv", rows.stop - rows.start, layer.qkv.outputs)
            self._rotate_back(layer, flat, rows, grads, saved.unnormed)
            inputs = take("inputs", len(flat), layer.qkv.width)
            unit, factor = layer.before_attention.forward(saved.x[rows], inputs[:, : layer.qkv.inputs])
            layer.qkv.fill(inputs)
            grad_inputs = layer.qkv.backward(flat, inputs, not deepest)
            if grad_inputs is not None:
                gradient[rows] += layer.before_attention.backward(grad_inputs, unit, factor).to(gradient.dtype)
        return gradient

    # -- rotary embedding --

    def rotations(self, positions: torch.Tensor) -> dict[str | None, tuple[torch.Tensor, torch.Tensor]]:
        """Cosine and sine [T, 1, width / 2] of the positions [T], for each kind of rotary embedding that a layer uses."""
        sample = torch.empty(0, dtype=self._dtype, device=self._where)
        built = {}
        for name in self._ropes:
            cosine, sine = self._inner.rotary_emb(sample, positions[None], *((name,) if name else ()))
            half = cosine.shape[-1] // 2
            built[name] = cosine[0, :, None, :half].contiguous(), sine[0, :, None, :half].contiguous()
        return built

    def _rotate(
        self,
        layer: layers.Layer,
        flat: torch.Tensor,
        rows: slice,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        unnormed: torch.Tensor | None,
    ) -> None:
        """Puts a block's queries, keys and values [n, ...] into the layout of the attention: normed, rotated, by heads."""
        size, width = len(flat), layer.width
        rotated = (layer.heads + layer.kv_heads) * width
        both = flat[:, :rotated]
        if unnormed is not None:
            unnormed[rows] = both
            normed = self.memory.take("normed", size, rotated)
            for norm, part in self._normed_parts(layer, rotated):
                shape = (size, -1, width)
                norm.forward(both[:, part].view(shape), normed[:, part].view(shape))
            both = normed
        cosine, sine = (part[rows] for part in self._rotations[layer.rope])
        elementwise.rotate(
            both[:, : layer.heads * width], cosine, sine, q[:, rows].view(layer.kv_heads, size, -1, width)
        )
        elementwise.rotate(
            both[:, layer.heads * width :], cosine, sine, k[:, rows].view(layer.kv_heads, size, -1, width)
        )
        v[:, rows].copy_(flat[:, rotated:].view(size, layer.kv_heads, width).transpose(0, 1))

    def _rotate_back(
        self,
        layer: layers.Layer,
        flat: torch.Tensor,
        rows: slice,
        grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        unnormed: torch.Tensor | None,
    ) -> None:
        """Puts the gradients of a block's queries, keys and values together as that of the fused layer's output [n, ...]."""
        size, width = len(flat), layer.width
        queries, rotated = layer.heads * width, (layer.heads + layer.kv_heads) * width
        cosine, sine = (part[rows] for part in self._rotations[layer.rope])
        for grad, begin, end in ((grads[0], 0, queries), (grads[1], queries, rotated)):
            heads = grad[:, rows].view(layer.kv_heads, size, -1, width)
            elementwise.rotate_back(heads, cosine, sine, flat[:, begin:end].view(size, layer.kv_heads, -1, width))
        flat[:, rotated:].view(size, layer.kv_heads, width).copy_(grads[2][:, rows].transpose(0, 1))
        if unnormed is not None:
            for norm, part in self._normed_parts(layer, rotated):
                heads, gradients = unnormed[rows, part].view(size, -1, width), flat[:, part].view(size, -1, width)
                gradients.copy_(norm.backward(gradients, *norm.forward(heads, torch.empty_like(heads))))

    def _normed_parts(self, layer: layers.Layer, rotated: int) -> list[tuple[layers.Norm, slice]]:
        queries = layer.heads * layer.width
        parts = ((layer.query_norm, slice(0, queries)), (layer.key_norm, slice(queries, rotated)))
        return [(norm, part) for norm, part in parts if norm is not None]

    def _blocks(self, size: int) -> Iterator[slice]:
        step = sizes.ROWS if self._where.type == "cpu" else max(size, 1)
        for begin in range(0, size, step):
            yield slice(begin, min(begin + step, size))


def _through(
    norm: layers.Norm | None, before: torch.Tensor | None, gradient: torch.Tensor, rows: slice
) -> torch.Tensor:
    """The gradient before a norm; the gradient itself where the family has no such norm."""
    if norm is None or before is None:
        return gradient[rows]
    unit, factor = norm.forward(before[rows], torch.empty_like(before[rows]))
    return norm.backward(gradient[rows], unit, factor).to(gradient.dtype)


def of(inner: Any, where: torch.device, proves_form: bool = True) -> Decoder:
    """Our decoder for a model of transformers without its head, after comparing both. Raises Unknown where they differ, or
    whatever else goes wrong: transformers' own passes can train the model.

    proves_form: False where another process of the node compares the form."""
    setattr(inner, comparison.CACHE, None)  # it would keep the weights that are copied here
    try:
        if proves_form:
            _compare_form(inner, where)  # a function of its own, so that the copy is freed before the weights are fused
        built = Decoder(inner, where)
        comparison.precision(built, inner, where)
    except torch.OutOfMemoryError as problem:
        raise layers.Unknown(f"memory was short while they were compared: {comparison.described(problem)}") from problem
    except Exception as problem:
        raise layers.Unknown(comparison.described(problem)) from problem
    return built


def _compare_form(inner: Any, where: torch.device) -> None:
    """Raises Unknown when the passes differ."""
    small = comparison.miniature(inner)
    comparison.form(Decoder(small, comparison.CPU), small)
    if where.type == "cpu":
        return
    dtype = inner.embed_tokens.weight.dtype
    try:
        return compare_on_device(small, where, dtype)
    except torch.OutOfMemoryError as problem:
        log.warning(
            "memory is short for the comparison at start; one layer at a time", problem=errors.describe(problem)
        )
    del small
    for number in comparison.representative(inner):
        compare_on_device(comparison.miniature(inner, [number]), where, dtype)


def compare_on_device(small: Any, where: torch.device, dtype: torch.dtype) -> None:
    """Moves a miniature there and compares the passes as training will run them. Raises Unknown when they differ."""
    comparison.move(small, where, dtype)
    comparison.form(Decoder(small, where), small, where, comparison.ON_DEVICE[dtype])
