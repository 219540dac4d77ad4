"""Attention over a prefix tree: every token sees its ancestors and, within its own node, what is before it.

On a CPU it is plain matrix products, tile by tile: one for all of a tile's queries against each range of ancestors, which
needs no mask, and one batched over its nodes for their own tokens. (torch's fused kernel is made for long rows: in bfloat16
its backward pass takes several times as long on a CPU.) On a GPU FlexAttention does the same from `Batch.ends`.

Layouts, with g query heads to each of the key-value heads: queries [kv, T + 1, g · width], keys and values [kv, T + 1, width];
row T is zero: padding points to it.
"""

import dataclasses
import functools
from typing import Any

import torch

from finetune_trainer.engine import buffers, flex_attention, prefix_tree
from finetune_trainer.engine.attention_types import Attention, Kind


@dataclasses.dataclass(frozen=True)
class Padding:
    """Where the tokens of a tile lie in the flat batch and in the padded tile; computed once for all layers."""

    tile: prefix_tree.Tile
    rows: torch.Tensor
    """[nodes · longest] of the padded tile: indices of the flat batch, T for padding."""
    unpadded: torch.Tensor
    """[tokens] where each token of the tile lies in the padded one."""


def paddings(batch: prefix_tree.Batch) -> list[Padding]:
    paddings = []
    for tile in batch.tiles:
        lengths = torch.tensor(tile.lengths)
        starts = tile.begin + lengths.cumsum(0) - lengths
        offset = torch.arange(tile.longest)
        inside = offset[None] < lengths[:, None]
        rows = torch.where(inside, starts[:, None] + offset[None], batch.tokens).reshape(-1)
        paddings.append(Padding(tile, rows, inside.reshape(-1).nonzero()[:, 0]))
    return paddings


def of(batch: prefix_tree.Batch, memory: buffers.BufferPool) -> Attention:
    """Tiles on a CPU, FlexAttention on a GPU."""
    return Tiles(batch, memory) if memory.where.type == "cpu" else flex_attention.FlexAttention(batch)


class Tiles:
    """Plain matrix products, tile by tile."""

    def __init__(self, batch: prefix_tree.Batch, memory: buffers.BufferPool) -> None:
        self._batch, self._memory = batch, memory
        self._paddings = paddings(batch)
        self._masks: dict[tuple[int, int | None], torch.Tensor] = {}
        self._positions = batch.positions.tolist() if batch.tokens else []

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kind: Kind, slot: Any, out: torch.Tensor
    ) -> list[torch.Tensor]:
        """Returns the attention probabilities of each tile."""
        kv, width = k.shape[0], k.shape[2]
        saved = []
        sizes = [
            kv * len(tile.lengths) * tile.longest * (q.shape[2] // width) * (tile.before + tile.longest)
            for tile in self._batch.tiles
        ]
        room = iter(torch.split(self._memory.take(("probabilities", slot), sum(sizes)), sizes))
        for number, padding in enumerate(self._paddings):
            tile = padding.tile
            nodes, longest, before = len(tile.lengths), tile.longest, tile.before
            queries = self._padded(q, padding, "queries").view(kv, -1, width)
            keys = self._padded(k, padding, "keys").view(kv * nodes, longest, width)
            values = self._padded(v, padding, "values").view(kv * nodes, longest, width)
            scores = self._scores(queries, keys, k, padding, kind, "scores")
            if kind.softcap is not None:
                scores.div_(kind.softcap).tanh_().mul_(kind.softcap)
            self._hide(scores, number, kind)
            probabilities = next(room).view(scores.shape)
            torch.ops.aten._softmax.out(scores, -1, False, out=probabilities)
            mixed = self._memory.take("mixed", *queries.shape)
            own = probabilities.view(kv * nodes, -1, before + longest)[:, :, before:]
            torch.bmm(own, values, out=mixed.view(kv * nodes, -1, width))
            offset = 0
            for begin, end in tile.seen:
                for head in range(kv):
                    mixed[head].addmm_(probabilities[head, :, offset : offset + end - begin], v[head, begin:end])
                offset += end - begin
            self._put(mixed.view(kv, nodes * longest, -1), padding, out)
            saved.append(probabilities)
        return saved

    def backward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        saved: list[torch.Tensor],
        kind: Kind,
        upstream: torch.Tensor,
        grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> None:
        kv, width = k.shape[0], k.shape[2]
        dq, dk, dv = grads
        # Ancestors come first: a tile writes the gradients of its own keys before its descendants add to them.
        for number, padding in enumerate(self._paddings):
            tile = padding.tile
            nodes, longest, before = len(tile.lengths), tile.longest, tile.before
            probabilities = saved[number]
            queries = self._padded(q, padding, "queries").view(kv, -1, width)
            keys = self._padded(k, padding, "keys").view(kv * nodes, longest, width)
            values = self._padded(v, padding, "values").view(kv * nodes, longest, width)
            grad_mixed = self._padded(upstream, padding, "grad_mixed").view(kv, -1, width)
            by_node = (kv * nodes, -1, before + longest)
            own_queries, own_grad_mixed = queries.view(kv * nodes, -1, width), grad_mixed.view(kv * nodes, -1, width)

            grad_scores = self._memory.take("grad_scores", *probabilities.shape)
            torch.bmm(own_grad_mixed, values.transpose(1, 2), out=grad_scores.view(by_node)[:, :, before:])
            offset = 0
            for begin, end in tile.seen:
                here = slice(offset, offset + end - begin)
                for head in range(kv):
                    torch.mm(grad_mixed[head], v[head, begin:end].t(), out=grad_scores[head, :, here])
                    dv[head, begin:end].addmm_(probabilities[head, :, here].t(), grad_mixed[head])
                offset += end - begin
            own = self._own(probabilities, by_node, before)
            self._write(torch.bmm(own.transpose(1, 2), own_grad_mixed), padding, dv, nodes)

            # dS = P (dP - sum P dP): torch's own softmax backward, in place of the scores' gradient
            torch.ops.aten._softmax_backward_data.out(
                grad_scores, probabilities, -1, grad_scores.dtype, grad_input=grad_scores
            )
            if kind.softcap is not None:
                scores = self._scores(queries, keys, k, padding, kind, "scores").div_(kind.softcap).tanh_()
                grad_scores.mul_(scores.square_().neg_().add_(1))
            queries.mul_(kind.scale)  # cheaper than scaling the scores' gradient, which is larger

            grad_queries = self._memory.take("grad_queries", *queries.shape)
            own = self._own(grad_scores, by_node, before)
            torch.bmm(own, keys, out=grad_queries.view(kv * nodes, -1, width))
            offset = 0
            for begin, end in tile.seen:
                here = slice(offset, offset + end - begin)
                for head in range(kv):
                    grad_queries[head].addmm_(grad_scores[head, :, here], k[head, begin:end])
                    dk[head, begin:end].addmm_(grad_scores[head, :, here].t(), queries[head])
                offset += end - begin
            self._write(torch.bmm(own.transpose(1, 2), own_queries), padding, dk, nodes)
            self._write(grad_queries.mul_(kind.scale).view(kv * nodes, longest, -1), padding, dq, nodes)

    def _own(self, scores: torch.Tensor, by_node: tuple[int, ...], before: int) -> torch.Tensor:
        """The scores of the nodes' own keys, contiguous: a matrix product would copy them, transposed and slowly."""
        part = scores.view(by_node)[:, :, before:]
        return self._memory.take("own", *part.shape).copy_(part) if before else part

    def _scores(
        self, queries: torch.Tensor, keys: torch.Tensor, k: torch.Tensor, padding: Padding, kind: Kind, name: str
    ) -> torch.Tensor:
        """[kv, rows, before + longest]: scaled products with the ancestors' keys, then with the node's own."""
        tile, kv, width = padding.tile, k.shape[0], k.shape[2]
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
        tile = self._paddings[number].tile
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

    def _padded(self, flat: torch.Tensor, padding: Padding, name: str) -> torch.Tensor:
        """[kv, nodes · longest, n] of the tile's tokens."""
        out = self._memory.take(name, flat.shape[0], len(padding.rows), flat.shape[2])
        torch.index_select(flat, 1, padding.rows, out=out)
        return out

    def _write(self, padded: torch.Tensor, padding: Padding, flat: torch.Tensor, nodes: int) -> None:
        """Writes a padded tile [kv · nodes, longest, n] to the flat rows of its tokens."""
        part = padded.view(flat.shape[0], nodes * padding.tile.longest, -1)
        flat[:, padding.tile.begin : padding.tile.end] = part.index_select(1, padding.unpadded)

    def _put(self, mixed: torch.Tensor, padding: Padding, out: torch.Tensor) -> None:
        """Writes [kv, nodes · longest, g · width] into the tile's rows of [T, kv · g · width]."""
        mixed = mixed.index_select(1, padding.unpadded)
        rows = out[padding.tile.begin : padding.tile.end]
        rows.view(rows.shape[0], mixed.shape[0], -1).copy_(mixed.transpose(0, 1))


@functools.lru_cache(maxsize=256)
def _causal(length: int, dtype: torch.dtype, where: torch.device) -> torch.Tensor:
    """[length, length]: 0 where a position sees another, minus infinity elsewhere."""
    return torch.full((length, length), float("-inf"), dtype=dtype, device=where).triu_(1)
