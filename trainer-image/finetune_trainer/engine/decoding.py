"""The decoder's forward pass over rows that grow token by token: the evaluation's hot loop.

The layers and their adapters are those of `decoder`, which trains; keys and values stay in a `kv_cache`. `of` returns the
one for a model of transformers, after comparing both (`comparison`); None for an unknown family.
"""

import dataclasses
from typing import Any

import torch

from finetune_trainer.engine import comparison, decoder, elementwise, kv_cache, layers
from finetune_trainer.process import log, machine

TOGETHER = {"cpu": 1280, "cuda": 8192}
"""Tokens of a pass that reads prompts."""

PIECE = 256
"""Of these, tokens of one row: a longer prompt is read piece by piece, so that scores stay small."""

ROWS = {"cpu": 128, "cuda": 512}
"""Rows that are written at the same time, at most."""

STEP = 8
"""Rows of a step are padded to a multiple of this, so that matrix products have few shapes."""

SHARE = {"cpu": 8, "cuda": 2}
"""What the cache may take: one n-th of the process's memory, or of the GPU's free memory."""


class Decoding:
    """Rows, each with a number; a row that leaves is replaced by the last one. No gradients."""

    def __init__(self, inner: decoder.Decoder, where: torch.device) -> None:
        """Raises Unknown."""
        first = inner.layers[0]
        if any((layer.kv_heads, layer.width) != (first.kv_heads, first.width) for layer in inner.layers):
            raise layers.Unknown("layers of different widths")
        self._inner, self._where, self._memory = inner, where, inner.memory
        self._windows = {layer.kind.window for layer in inner.layers}
        self._adapted, self._scale = True, 1.0
        self._cache = self._empty()

    @property
    def decoder(self) -> decoder.Decoder:
        """The same layers, for whole sequences at once."""
        return self._inner

    def _empty(self) -> kv_cache.Cache:
        first = self._inner.layers[0]
        return kv_cache.Cache(len(self._inner.layers), first.kv_heads, first.width, self._memory)

    @torch.no_grad()
    def begin(self, prefix: list[int], adapted: bool, scale: float = 1.0) -> None:
        """Forgets all rows; `prefix` is what all the next ones begin with. scale: the share of the usual rows, tokens and
        memory that is taken at once."""
        self._inner.refresh()
        self._adapted, self._scale = adapted, scale
        self._cache = self._empty()
        self._positions = self._budget() // self._cache.bytes
        if prefix:
            self._read([prefix])
            self._cache.share()
            shared = self._cache.shared
            self._cache = self._empty()
            self._cache.shared = shared

    def end(self) -> None:
        """Frees the memory of all rows."""
        self._cache = self._empty()

    def _budget(self) -> int:
        """Bytes that the cache may take."""
        if self._where.type == "cuda":
            return int(self._scale * torch.cuda.mem_get_info(self._where)[0]) // SHARE["cuda"]
        return int(self._scale * machine.memory()) // SHARE["cpu"]

    def places(self, length: int) -> int:
        """Rows that fit when the longest has `length` own tokens: at least one."""
        room = max(kv_cache.even(length), self._cache.room)
        return max(1, min(int(self._scale * ROWS[self._where.type]), (self._positions - self._cache.prefix) // room))

    @property
    def longest(self) -> int:
        """Own tokens of the longest row."""
        return max(self._cache.lengths, default=0)

    @property
    def room(self) -> int:
        """Own tokens of a row for which memory is reserved."""
        return self._cache.room

    @torch.no_grad()
    def enter(self, rows: list[list[int]], room: int) -> torch.Tensor:
        """Adds rows, given by their own tokens, with memory for `room` tokens of each.

        Returns the states [n, hidden] that predict what follows. Rows that are equal are read once.
        """
        numbers = {tuple(row): number for number, row in reversed(list(enumerate(rows)))}
        firsts = sorted(numbers.values(), key=lambda number: -len(rows[number]))
        begin = len(self._cache.lengths)
        self._cache.fit(kv_cache.even(begin + len(rows), STEP), kv_cache.even(room))
        states = self._read([rows[number] for number in firsts])
        at = {tuple(rows[number]): place for place, number in enumerate(firsts)}
        order = [at[tuple(row)] for row in rows]
        # Copies, in the order of `rows`; where no row is repeated and all are in order there is nothing to copy.
        if order != list(range(len(rows))):
            self._cache.repeat(begin, [begin + place for place in order])
        return states[torch.tensor(order, device=self._where)]

    @torch.no_grad()
    def step(self, tokens: list[int], room: int) -> torch.Tensor:
        """Each row's next token; returns the states that predict what follows. room: see `enter`."""
        cache = self._cache
        filled = kv_cache.even(len(tokens), STEP)
        cache.fit(filled, kv_cache.even(max(room, self.longest + 1)))
        padding = filled - len(tokens)
        ids = torch.tensor(tokens + [0] * padding, device=self._where)
        plan = cache.plan(0, cache.lengths + [0] * padding, 1, self._windows)
        states = self._pass(ids, plan, None)[: len(tokens)]
        cache.lengths = [length + 1 for length in cache.lengths]
        return states

    def keep(self, rows: list[int]) -> list[int]:
        """Drops all but these rows; returns for each of them, in their new order, the number that it had."""
        return self._cache.keep(rows)

    # -- passes --

    def _read(self, rows: list[list[int]]) -> torch.Tensor:
        """Adds rows, longest first; the states of their last tokens."""
        cache = self._cache
        cache.fit(kv_cache.even(len(cache.lengths) + len(rows), STEP), kv_cache.even(len(rows[0])))
        built = []
        while rows:
            piece = min(kv_cache.even(len(rows[0]), 16), PIECE)
            count = max(1, int(self._scale * TOGETHER[self._where.type]) // piece)
            built.append(self._read_together(rows[:count], piece))
            rows = rows[count:]
        return torch.cat(built)

    def _read_together(self, rows: list[list[int]], piece: int) -> torch.Tensor:
        cache, begin = self._cache, len(self._cache.lengths)
        states = None
        for offset in range(0, len(rows[0]), piece):
            active = [row for row in rows if len(row) > offset]
            size = min(piece, kv_cache.even(len(rows[0]) - offset, 16))
            ids = [(row[offset : offset + size] + [0] * size)[:size] for row in active]
            plan = cache.plan(begin, [offset] * len(active), size, self._windows)
            ends = [number * size + min(len(row) - offset, size) - 1 for number, row in enumerate(active)]
            flat = torch.tensor(ids, device=self._where).view(-1)
            last = self._pass(flat, plan, torch.tensor(ends, device=self._where))
            states = last if states is None else torch.cat([last, states[len(active) :]])
        cache.lengths += map(len, rows)
        assert states is not None
        return states

    def _pass(self, ids: torch.Tensor, plan: kv_cache.Plan, last: torch.Tensor | None) -> torch.Tensor:
        """The normed states [n, hidden] of the flat ids, or of those at `last`."""
        inner = self._inner
        x = inner.embed(ids)
        rotations = inner.rotations((plan.own + self._cache.prefix).view(-1))
        for layer in inner.layers:
            mixed = self._attention(layer, x, plan, rotations[layer.rope])
            if layer is inner.layers[-1] and last is not None:
                x, mixed = x[last], mixed[last]
            x = self._rest(layer, x, mixed)
        states = torch.empty_like(x)
        inner.final.forward(x, states)
        return states

    def _attention(
        self, layer: layers.Layer, x: torch.Tensor, plan: kv_cache.Plan, rotation: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """The input of the layer's output projection."""
        take, size, width = self._memory.take, len(x), layer.width
        here, rotated = layer.heads * width, (layer.heads + layer.kv_heads) * width
        inputs = take("inputs", size, layer.qkv.width)
        layer.before_attention.forward(x, inputs[:, : layer.qkv.inputs])
        flat = layer.qkv.forward(inputs, take("qkv", size, layer.qkv.outputs), self._adapted)
        parts = []
        for begin, end, norm in ((0, here, layer.query_norm), (here, rotated, layer.key_norm)):
            part = flat[:, begin:end]
            if norm is not None:
                heads = part.view(size, -1, width)
                normed = take("normed", size, heads.shape[1], width)
                norm.forward(heads, normed)
                part = normed.view(size, -1)
            out = take(("rotated", begin), 1, size, (end - begin) // width, width)
            elementwise.rotate(part, *rotation, out)
            parts.append(out[0])
        q, k = parts
        self._cache.write(layer.number, plan, k.view(-1, width), flat[:, rotated:].reshape(-1, width))
        mixed = take("mixed rows", size, layer.out.width)
        self._cache.attend(layer.number, plan, q, layer.kind, mixed[:, : layer.out.inputs])
        return mixed

    def _rest(self, layer: layers.Layer, x: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """The layer's output, from its input and the attention's output."""
        take, size = self._memory.take, len(x)
        middle = take("middle rows", *x.shape)
        self._add_projection(layer.out, layer.after_attention, mixed, x, middle)
        inputs = take("inputs", size, layer.up.width)
        layer.before_mlp.forward(middle, inputs[:, : layer.up.inputs])
        gates = layer.up.forward(inputs, take("gates", size, layer.up.outputs), self._adapted)
        active = take("active", size, layer.down.width)
        gate = take("gate", size, layer.down.inputs)
        elementwise.activate(layer.gelu, gates, gate, active[:, : layer.down.inputs])
        y = take(("rows", layer.number % 2), *x.shape)
        self._add_projection(layer.down, layer.after_mlp, active, middle, y)
        return y

    def _add_projection(
        self, linear: Any, norm: layers.Norm | None, inputs: torch.Tensor, residual: torch.Tensor, out: torch.Tensor
    ) -> None:
        """out = residual + norm(linear(inputs))"""
        linear.forward(inputs, out, self._adapted)
        if norm is not None:
            norm.forward(out, out)
        out.add_(residual)


# -- built for a model of transformers --


@dataclasses.dataclass(frozen=True)
class _Cached:
    """Stored on the model itself: building it again would copy all of its weights each time."""

    linears: list[torch.nn.Linear]
    weights: list[int]
    decoding: Decoding | None
    lent: decoder.Decoder | None = None
    """What `decoding` is still to be built on."""


def lend(inner: Any, ours: decoder.Decoder) -> None:
    """From now on the decoder that trains this model generates its answers too: a second one would hold all weights twice."""
    _store(inner, None, ours)


def withdraw(inner: Any) -> None:
    """From now on transformers generates this model's answers: what was lent has failed, and another one would hold all weights
    twice."""
    _store(inner, None)


def _store(inner: Any, decoding: Decoding | None, lent: decoder.Decoder | None = None) -> None:
    linears = _linears(inner)
    setattr(inner, comparison.CACHE, _Cached(linears, [one.weight.data_ptr() for one in linears], decoding, lent))


def _linears(inner: Any) -> list[torch.nn.Linear]:
    return [module for module in inner.modules() if isinstance(module, torch.nn.Linear)]


@torch.no_grad()
def of(inner: Any, where: torch.device) -> Decoding | None:
    """For a model of transformers without its head; None where its family is unknown."""
    cache: _Cached | None = getattr(inner, comparison.CACHE, None)
    if cache is not None and not _same(cache, _linears(inner)):
        cache = None
        setattr(inner, comparison.CACHE, None)
    if cache is not None and cache.lent is None:
        return cache.decoding
    built = _build(inner, where, cache.lent if cache is not None else None)
    _store(inner, built)
    return built


def _same(cache: _Cached, linears: list[torch.nn.Linear]) -> bool:
    """Whether the model's layers and their storage are still the same: no adapter was added, no other engine built."""
    return len(cache.linears) == len(linears) and all(
        one is other and other.weight.data_ptr() == place
        for one, other, place in zip(cache.linears, linears, cache.weights, strict=True)
    )


def _build(inner: Any, where: torch.device, lent: decoder.Decoder | None) -> Decoding | None:
    try:
        _compare_form(inner)  # a function of its own, so that the copy is freed before the weights are fused
        built = Decoding(lent or decoder.Decoder(inner, where, learns=False), where)
        if lent is None:
            comparison.precision(built.decoder, inner, where)
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:  # whatever it is, transformers can generate the answers
        log.warning(
            "the fast engine does not support this model; transformers generates the answers, more slowly",
            differs=comparison.described(problem),
        )
        return None
    return built


def _compare_form(inner: Any) -> None:
    """Runs rows with a common prefix through both, token by token past the window. Raises Unknown when the states differ."""
    small = comparison.miniature(inner)
    ours = Decoding(decoder.Decoder(small, comparison.CPU, learns=False), comparison.CPU)
    prefix, tails = list(range(1, 13)), [list(range(20, 33)), list(range(40, 53))]
    ours.begin(prefix, adapted=True)
    states = [ours.enter([tail[:-6] for tail in tails], 32)]
    states += [ours.step([tail[place] for tail in tails], 32) for place in range(-6, 0)]
    ours.end()
    for row, tail in enumerate(tails):
        expected = small(input_ids=torch.tensor([prefix + tail]), use_cache=False).last_hidden_state[0, -7:]
        comparison.equal("states", torch.stack([part[row] for part in states]), expected, comparison.EXACT)
