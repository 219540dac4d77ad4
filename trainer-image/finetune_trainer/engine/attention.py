"""Attention over a forest: every token sees its ancestors and, within its own node, what is before it.

On a CPU it is plain matrix products, tile by tile: one for all of a tile's queries against each range of ancestors, which
needs no mask, and one batched over its nodes for what they see of themselves. (torch's fused kernel is made for long rows: its
backward pass in bfloat16 costs a CPU several times as much.) On a GPU FlexAttention does the same from `Batch.ends`.

Layouts, with g query heads to each of the key-value heads: queries [kv, T + 1, g · width], keys and values [kv, T + 1, width];
row T is zero and stands for padding.
"""

import dataclasses
import functools
from typing import Any

import torch

from finetune_trainer.engine import buffers, flex_attention, prefix_tree
from finetune_trainer.engine.attention_types import Attention, Kind


@dataclasses.dataclass(frozen=True)
class Place:
    """What tiles need of the flat batch, worked out once for all layers."""

    tile: prefix_tree.Tile
    rows: torch.Tensor
    """[nodes · longest] of the padded tile: indices of the flat batch, T for padding."""
    back: torch.Tensor
    """[tokens] where each token of the tile lies in the padded one."""


def places(batch: prefix_tree.Batch) -> list[Place]:
    found = []
    for tile in batch.tiles:
        lengths = torch.tensor(tile.lengths)
        starts = tile.begin + lengths.cumsum(0) - lengths
        offset = torch.arange(tile.longest)
        inside = offset[None] < lengths[:, None]
        rows = torch.where(inside, starts[:, None] + offset[None], batch.tokens).reshape(-1)
        found.append(Place(tile, rows, inside.reshape(-1).nonzero()[:, 0]))
    return found


def of(batch: prefix_tree.Batch, memory: buffers.BufferPool) -> Attention:
    """Tiles on a CPU, FlexAttention on a GPU."""
    return Tiles(batch, memory) if memory.where.type == "cpu" else flex_attention.Flexible(batch)


class Tiles:
    """Plain matrix products, tile by tile."""

    def __init__(self, batch: prefix_tree.Batch, memory: buffers.BufferPool) -> None:
        self._batch, self._memory = batch, memory
        self._places = places(batch)
        self._masks: dict[tuple[int, int | None], torch.Tensor] = {}
        self._positions = batch.positions.tolist() if batch.tokens else []

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kind: Kind, keep: Any, out: torch.Tensor
    ) -> list[torch.Tensor]:
        """Returns each tile's probabilities."""
        kv, width = k.shape[0], k.shape[2]
        kept = []
        sizes = [
            kv * len(tile.lengths) * tile.longest * (q.shape[2] // width) * (tile.before + tile.longest)
            for tile in self._batch.tiles
        ]
        room = iter(torch.split(self._memory.take(("probabilities", keep), sum(sizes)), sizes))
        for number, place in enumerate(self._places):
            tile = place.tile
            nodes, longest, before = len(tile.lengths), tile.longest, tile.before
            queries = self._padded(q, place, "queries").view(kv, -1, width)
            keys = self._padded(k, place, "keys").view(kv * nodes, longest, width)
            values = self._padded(v, place, "values").view(kv * nodes, longest, width)
            scores = self._scores(queries, keys, k, place, kind, "scores")
            if kind.softcap is not None:
                scores.div_(kind.softcap).tanh_().mul_(kind.softcap)
            self._hide(scores, number, kind)
            chances = next(room).view(scores.shape)
            torch.ops.aten._softmax.out(scores, -1, False, out=chances)
            mixed = self._memory.take("mixed", *queries.shape)
            own = chances.view(kv * nodes, -1, before + longest)[:, :, before:]
            torch.bmm(own, values, out=mixed.view(kv * nodes, -1, width))
            offset = 0
            for begin, end in tile.seen:
                for head in range(kv):
                    mixed[head].addmm_(chances[head, :, offset : offset + end - begin], v[head, begin:end])
                offset += end - begin
            self._put(mixed.view(kv, nodes * longest, -1), place, out)
            kept.append(chances)
        return kept

    def backward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        kept: list[torch.Tensor],
        kind: Kind,
        upstream: torch.Tensor,
        grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> None:
        kv, width = k.shape[0], k.shape[2]
        dq, dk, dv = grads
        # Ancestors come first: what is written for a tile's own keys is there before its descendants add to it.
        for number, place in enumerate(self._places):
            tile = place.tile
            nodes, longest, before = len(tile.lengths), tile.longest, tile.before
            chances = kept[number]
            queries = self._padded(q, place, "queries").view(kv, -1, width)
            keys = self._padded(k, place, "keys").view(kv * nodes, longest, width)
            values = self._padded(v, place, "values").view(kv * nodes, longest, width)
            above = self._padded(upstream, place, "above").view(kv, -1, width)
            nodewise = (kv * nodes, -1, before + longest)
            own_queries, own_above = queries.view(kv * nodes, -1, width), above.view(kv * nodes, -1, width)

            slopes = self._memory.take("slopes", *chances.shape)
            torch.bmm(own_above, values.transpose(1, 2), out=slopes.view(nodewise)[:, :, before:])
            offset = 0
            for begin, end in tile.seen:
                here = slice(offset, offset + end - begin)
                for head in range(kv):
                    torch.mm(above[head], v[head, begin:end].t(), out=slopes[head, :, here])
                    dv[head, begin:end].addmm_(chances[head, :, here].t(), above[head])
                offset += end - begin
            own = self._own(chances, nodewise, before)
            self._write(torch.bmm(own.transpose(1, 2), own_above), place, dv, nodes)

            # dS = P (dP - sum P dP): torch's own softmax backward, in place of the scores' gradient
            torch.ops.aten._softmax_backward_data.out(slopes, chances, -1, slopes.dtype, grad_input=slopes)
            if kind.softcap is not None:
                scores = self._scores(queries, keys, k, place, kind, "scores").div_(kind.softcap).tanh_()
                slopes.mul_(scores.square_().neg_().add_(1))
            queries.mul_(kind.scale)  # instead of the scores' gradient, which is larger

            below = self._memory.take("below", *queries.shape)
            own = self._own(slopes, nodewise, before)
            torch.bmm(own, keys, out=below.view(kv * nodes, -1, width))
            offset = 0
            for begin, end in tile.seen:
                here = slice(offset, offset + end - begin)
                for head in range(kv):
                    below[head].addmm_(slopes[head, :, here], k[head, begin:end])
                    dk[head, begin:end].addmm_(slopes[head, :, here].t(), queries[head])
                offset += end - begin
            self._write(torch.bmm(own.transpose(1, 2), own_queries), place, dk, nodes)
            self._write(below.mul_(kind.scale).view(kv * nodes, longest, -1), place, dq, nodes)

    def _own(self, scores: torch.Tensor, nodewise: tuple[int, ...], before: int) -> torch.Tensor:
        """What the nodes' own keys have of scores, in one piece: a product would copy it, transposed and slowly."""
        part = scores.view(nodewise)[:, :, before:]
        return self._memory.take("own", *part.shape).copy_(part) if before else part

    def _scores(
        self, queries: torch.Tensor, keys: torch.Tensor, k: torch.Tensor, place: Place, kind: Kind, name: str
    ) -> torch.Tensor:
        """[kv, rows, before + longest]: scaled products with the ancestors' keys, then with the node's own."""
        tile, kv, width = place.tile, k.shape[0], k.shape[2]
        nodes, before = len(tile.lengths), tile.before
        scores = self._memory.take(name, kv, queries.shape[1], before + tile.longest)
        own = scores.view(kv * nodes, -1, before + tile.longest)[:, :, before:]
        own.baddbmm_(queries.view(kv * nodes, -1, width), keys.transpose(1, 2), beta=0, alpha=kind.scale)
        offset = 0
        for begin, end in tile.seen:
            part = scores[:, :, offset : offset + end - begin]
            part.baddbmm_(queries, k[:, begin:end].transpose(1, 2), beta=0, alpha=kind.scale)
            offset += end - begin
        return scores

    def _hide(self, scores: torch.Tensor, number: int, kind: Kind) -> None:
        """Minus infinity where a token sees nothing."""
        tile = self._places[number].tile
        kv, before, longest = scores.shape[0], tile.before, tile.longest
        reach = self._positions[tile.begin] + longest
        if kind.window is None or reach <= kind.window:
            own = scores.view(kv * len(tile.lengths), longest, -1, before + longest)[:, :, :, before:]
            own.add_(_causal(longest, scores.dtype, scores.device)[:, None])
            return
        mask = self._masks.get((number, kind.window))
        if mask is None:
            seen = [self._batch.positions[begin:end] for begin, end in tile.seen]
            first = self._positions[tile.begin]
            own_positions = torch.arange(first, first + longest)
            distance = own_positions[:, None] - torch.cat([*seen, own_positions])[None]
            hidden = (distance < 0) | (distance >= kind.window)
            mask = torch.zeros(hidden.shape, dtype=scores.dtype).masked_fill_(hidden, float("-inf"))
            self._masks[number, kind.window] = mask
        scores.view(kv * len(tile.lengths), longest, -1, before + longest).add_(mask[:, None])

    def _padded(self, flat: torch.Tensor, place: Place, name: str) -> torch.Tensor:
        """[kv, nodes · longest, n] of the tile's tokens."""
        out = self._memory.take(name, flat.shape[0], len(place.rows), flat.shape[2])
        torch.index_select(flat, 1, place.rows, out=out)
        return out

    def _write(self, padded: torch.Tensor, place: Place, flat: torch.Tensor, nodes: int) -> None:
        """Writes a padded tile [kv · nodes, longest, n] to the flat rows of its tokens."""
        part = padded.view(flat.shape[0], nodes * place.tile.longest, -1)
        flat[:, place.tile.begin : place.tile.end] = part.index_select(1, place.back)

    def _put(self, mixed: torch.Tensor, place: Place, out: torch.Tensor) -> None:
        """Writes [kv, nodes · longest, g · width] into the tile's rows of [T, kv · g · width]."""
        mixed = mixed.index_select(1, place.back)
        rows = out[place.tile.begin : place.tile.end]
        rows.view(rows.shape[0], mixed.shape[0], -1).copy_(mixed.transpose(0, 1))


@functools.lru_cache(maxsize=256)
def _causal(length: int, dtype: torch.dtype, where: torch.device) -> torch.Tensor:
    """[length, length]: 0 where a position sees another, minus infinity elsewhere."""
    return torch.full((length, length), float("-inf"), dtype=dtype, device=where).triu_(1)
