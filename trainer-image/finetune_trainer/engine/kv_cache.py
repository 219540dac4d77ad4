"""The keys and values of rows that are being written, and the attention over them: used by `decoding`, layer by layer.

The keys and values of a prefix that all rows share are stored once. The queries of all rows meet them in one matrix product, so
that a step reads the prefix once and not once for each row; each row attends to its own tokens alone. Both scores lie
side by side in one softmax, so that the result is that of ordinary attention.

Memory is reserved in advance and reused: the last row moves into the place of one that leaves.
"""

import dataclasses

import torch

from finetune_trainer.engine import attention_types, buffers

EVEN = 32
"""Tokens are reserved, and read, in multiples of this: on a CPU each new shape of a matrix product costs generated code."""

FEW = 16
"""Queries of one row and key-value head up to which keys times queries is the faster order of the product on a CPU."""


def even(count: int, step: int | None = None) -> int:
    """The next multiple of a step, or of EVEN."""
    step = step or EVEN
    return -(-count // step) * step


@dataclasses.dataclass(frozen=True)
class Plan:
    """A forward pass over the next `tokens` tokens of the rows from number `begin` on: what attention needs in every layer."""

    begin: int
    rows: int
    tokens: int
    own: torch.Tensor
    """[rows, tokens] the place of each token among its row's own."""
    reach: int
    """Own positions that are read; those that a token may not attend to are masked."""
    slots: torch.Tensor
    """[rows · tokens · kv] where keys and values go, in a layer's flat storage."""
    masks: dict[int | None, tuple[torch.Tensor, torch.Tensor | None]]
    """By window: minus infinity where a token does not attend, [rows, tokens, reach] of its own and [rows, tokens, prefix] of the
    prefix; None: it attends to all of the prefix."""


class Cache:
    """`own` [layers, 2, places, kv, room, width]: keys and values of each row's own tokens; `shared` [layers, 2, kv, tokens,
    width]: of the prefix of all rows."""

    def __init__(self, layers: int, heads: int, width: int, memory: buffers.BufferPool) -> None:
        """heads: key-value heads."""
        self._memory = memory
        self.own = torch.zeros(layers, 2, 0, heads, 0, width, dtype=memory.dtype, device=memory.where)
        self.shared = torch.zeros(layers, 2, heads, 0, width, dtype=memory.dtype, device=memory.where)
        self.lengths: list[int] = []
        """Own tokens of each row."""

    @property
    def bytes(self) -> int:
        """Bytes of one position of one row."""
        layers, both, _, heads, _, width = self.own.shape
        return layers * both * heads * width * self.own.element_size()

    @property
    def prefix(self) -> int:
        return self.shared.shape[3]

    @property
    def places(self) -> int:
        return self.own.shape[2]

    @property
    def room(self) -> int:
        return self.own.shape[4]

    # -- rows come and go --

    def fit(self, places: int, room: int) -> None:
        """Reserves memory for `places` rows of `room` tokens; the rows' content stays."""
        if places <= self.places and room <= self.room:
            return
        rows, old = len(self.lengths), self.own
        longest = max(self.lengths, default=0)
        room = max(room, self.room)
        self.own = old.new_zeros(*old.shape[:2], places, old.shape[3], room, old.shape[5])
        self.own[:, :, :rows, :, :longest] = old[:, :, :rows, :, :longest]

    def share(self) -> None:
        """Makes the only row the prefix of all later ones."""
        self.shared = self.own[:, :, 0, :, : self.lengths[0]].clone()
        self.lengths = []

    def repeat(self, begin: int, sources: list[int]) -> None:
        """Makes the rows from number `begin` on copies of the rows `sources`, which are among them."""
        longest, end = max(self.lengths[begin:]), begin + len(sources)
        self.own[:, :, begin:end, :, :longest] = self.own[:, :, sources, :, :longest]
        self.lengths = self.lengths[:begin] + [self.lengths[source] for source in sources]

    def keep(self, rows: list[int]) -> list[int]:
        """Drops all but these rows; returns for each of them, in their new order, the number that it had."""
        staying = set(rows)
        order = list(range(len(rows)))
        gaps = [place for place in order if place not in staying]
        movers = [row for row in rows if row >= len(rows)]
        if gaps:
            longest = max(self.lengths[row] for row in movers)
            self.own[:, :, gaps, :, :longest] = self.own[:, :, movers, :, :longest]
        for gap, mover in zip(gaps, movers, strict=True):
            order[gap] = mover
        self.lengths = [self.lengths[row] for row in order]
        return order

    # -- one pass --

    def plan(self, begin: int, starts: list[int], tokens: int, windows: set[int | None]) -> Plan:
        """The next `tokens` tokens of the rows from number `begin` on, which have `starts` own tokens."""
        where, heads, room = self.own.device, self.own.shape[3], self.room
        own = torch.tensor(starts, device=where)[:, None] + torch.arange(tokens, device=where)
        rows = torch.arange(begin, begin + len(starts), device=where)[:, None, None]
        slots = (rows * heads + torch.arange(heads, device=where)) * room + own[:, :, None]
        reach = min(even(max(starts) + tokens), room)
        masks = {window: self._masks(own, reach, max(starts) + tokens, window) for window in windows}
        return Plan(begin, len(starts), tokens, own, reach, slots.view(-1), masks)

    def _masks(
        self, own: torch.Tensor, reach: int, longest: int, window: int | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        places = torch.arange(reach, device=own.device)
        hidden = places > own[:, :, None]
        outside = None
        if window is not None and self.prefix + longest > window:
            hidden |= own[:, :, None] - places >= window
            if self.prefix:
                outside = own[:, :, None] + self.prefix - torch.arange(self.prefix, device=own.device) >= window
        return self._infinite(hidden), None if outside is None else self._infinite(outside)

    def _infinite(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.own.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))

    def write(self, layer: int, plan: Plan, k: torch.Tensor, v: torch.Tensor) -> None:
        """Stores keys and values [rows · tokens · kv, width]."""
        for part, values in enumerate((k, v)):
            self.own[layer, part].view(-1, k.shape[1]).index_copy_(0, plan.slots, values)

    def attend(self, layer: int, plan: Plan, q: torch.Tensor, kind: attention_types.Kind, out: torch.Tensor) -> None:
        """Queries [rows · tokens, heads, width] -> mixed values `out` [rows · tokens, heads · width]."""
        heads, width = self.own.shape[3], self.own.shape[5]
        rows, tokens, prefix, reach = plan.rows, plan.tokens, self.prefix, plan.reach
        here = slice(plan.begin, plan.begin + rows)
        keys, values = (self.own[layer, part, here].flatten(0, 1)[:, :reach] for part in (0, 1))
        q = q.view(rows, tokens, heads, -1, width)
        own_queries = q.transpose(1, 2).reshape(rows * heads, -1, width)
        # [rows, heads, tokens, group, reach], and [heads, rows, tokens, group, prefix + reach]
        scores = self._products(own_queries, keys, kind.scale).view(rows, heads, tokens, -1, reach)
        all_scores = self._memory.take("cache scores", heads, rows, tokens, q.shape[3], prefix + reach)
        own = all_scores[..., prefix:]
        own.copy_(scores.transpose(0, 1))
        if prefix:
            all_queries = q.permute(2, 0, 1, 3, 4).reshape(heads, -1, width)
            flat = all_scores.view(heads, -1, prefix + reach)[:, :, :prefix]
            flat.baddbmm_(all_queries, self.shared[layer, 0].transpose(1, 2), beta=0, alpha=kind.scale)
        if kind.softcap is not None:
            all_scores.div_(kind.softcap).tanh_().mul_(kind.softcap)
        mask, outside = plan.masks[kind.window]
        own.add_(mask[None, :, :, None])
        if outside is not None:
            all_scores[..., :prefix].add_(outside[None, :, :, None])
        probabilities = self._memory.take("cache probabilities", *all_scores.shape)
        torch.ops.aten._softmax.out(all_scores, -1, False, out=probabilities)
        part = self._memory.take("cache shares", rows, heads, tokens, q.shape[3], reach)
        part.copy_(probabilities[..., prefix:].transpose(0, 1))
        mixed = torch.bmm(part.view(rows * heads, -1, reach), values).view(rows, heads, tokens, -1, width)
        target = out.view(rows, tokens, heads, -1, width)
        if not prefix:
            target.copy_(mixed.transpose(1, 2))
            return
        part = probabilities.view(heads, -1, prefix + reach)[:, :, :prefix]
        from_prefix = torch.bmm(part, self.shared[layer, 1]).view(heads, rows, tokens, -1, width)
        torch.add(mixed.transpose(1, 2), from_prefix.permute(1, 2, 0, 3, 4), out=target)

    def _products(self, queries: torch.Tensor, keys: torch.Tensor, scale: float) -> torch.Tensor:
        """[n, queries, keys], scaled."""
        count, many, reach = len(queries), queries.shape[1], keys.shape[1]
        if many < FEW:
            out = self._memory.take("cache products", count, reach, many)
            return out.baddbmm_(keys, queries.transpose(1, 2), beta=0, alpha=scale).transpose(1, 2)
        out = self._memory.take("cache products", count, many, reach)
        return out.baddbmm_(queries, keys.transpose(1, 2), beta=0, alpha=scale)
