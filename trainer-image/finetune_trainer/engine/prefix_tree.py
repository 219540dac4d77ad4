"""A micro-batch without padding and without repetition: examples that begin with the same tokens share them.

Examples are sorted by their tokens; a common prefix of neighbours becomes one node, computed once, and each example continues
from it: a prefix tree (one for each first token), laid out flat, every node after its ancestors. With causal attention a node's
states do not depend on what follows it, so that losses and gradients are those of the examples one by one. A learned token at
a branch is a label of the shared state before it: several labels of one state are several terms of the loss, and none is
dropped.

What no learned token depends on (the last token of an example, and what comes after its last learned one) is left out.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from finetune_trainer.engine import prefixes, sizes

Array = np.ndarray[Any, np.dtype[Any]]

SLACK = 0.7
"""Nodes are attended together when the shortest has at least this share of the longest one's tokens."""


@dataclasses.dataclass(frozen=True)
class TokenRow:
    """A sequence of token ids [n], and learned [n]: whether a token is a target, predicted from those before it."""

    ids: Array
    learned: Array


@dataclasses.dataclass(frozen=True)
class Tile:
    """Neighbouring nodes with the same ancestors, attended together.

    Their tokens are begin:end of the flat batch; `seen` are the ranges of their ancestors' tokens.
    """

    begin: int
    end: int
    lengths: tuple[int, ...]
    seen: tuple[tuple[int, int], ...]

    @property
    def longest(self) -> int:
        """Tokens of the longest node, padding included."""
        return -(-max(self.lengths) // sizes.EVEN) * sizes.EVEN

    @property
    def before(self) -> int:
        """Tokens of the ancestors."""
        return sum(end - begin for begin, end in self.seen)


@dataclasses.dataclass(frozen=True)
class Batch:
    """A prefix tree, flat: token i attends to token j where j <= i < ends[j]."""

    ids: torch.Tensor
    """[T]"""
    positions: torch.Tensor
    """[T] of each token in its example."""
    ends: torch.Tensor
    """[T] for each token, the end of the part of the flat batch that descends from it."""
    tiles: tuple[Tile, ...]
    states: torch.Tensor
    """[n] the flat index of the state that predicts each label, ascending."""
    targets: torch.Tensor
    """[n] the label's token."""
    rows: torch.Tensor
    """[n] the example that each label belongs to."""
    predicting: torch.Tensor
    """[m] the states, each once: those of which the last layer's feed-forward part is needed."""
    label: torch.Tensor
    """[n] the index in `predicting` of each label's state."""

    @property
    def tokens(self) -> int:
        """Tokens that are computed."""
        return len(self.ids)

    def to(self, where: torch.device) -> "Batch":
        if where.type == "cpu":
            return self
        moved = {
            field.name: getattr(self, field.name).to(where, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(getattr(self, field.name), torch.Tensor)
        }
        return dataclasses.replace(self, **moved)


@dataclasses.dataclass
class _Node:
    depth: int
    """Position of its first token."""
    ids: Array
    seen: tuple[tuple[int, int], ...] = ()
    children: "list[_Node]" = dataclasses.field(default_factory=list)
    rows: list[int] = dataclasses.field(default_factory=list)
    """Examples that end here."""


def needed(row: TokenRow) -> int:
    """Tokens of an example that a learned token depends on."""
    learned = np.flatnonzero(row.learned[1:])
    return int(learned[-1]) + 1 if len(learned) else 0


def build(rows: Sequence[TokenRow], *, share: bool = True) -> Batch:
    """The prefix tree of some examples; with share=False nothing is shared."""
    cut = [row.ids[: needed(row)] for row in rows]
    order = sorted((index for index in range(len(rows)) if len(cut[index])), key=lambda index: prefixes.key(cut[index]))
    common = [prefixes.common(cut[one], cut[other]) if share else 0 for one, other in itertools.pairwise(order)]
    roots = _build(order, cut, common, 0, len(order), 0)
    return _flatten(roots, rows, cut)


def common(one: TokenRow, other: TokenRow) -> int:
    """Tokens that both rows begin with, of those that are computed."""
    return prefixes.common(one.ids[: needed(one)], other.ids[: needed(other)])


def _build(order: list[int], cut: list[Array], common: list[int], begin: int, end: int, depth: int) -> list[_Node]:
    """Nodes of the sorted examples begin:end, which share their first `depth` tokens. Long chains do not recurse deeply:
    a node's depth grows by prefixes.SHORTEST at least."""
    nodes: list[_Node] = []
    while begin < end:
        stop = begin + 1
        shared = len(cut[order[begin]])
        # The longest run of examples that is worth a node of its own: sorted, so that the common part only falls.
        best = (0, stop, shared)
        running = shared
        while stop < end and common[stop - 1] - depth >= prefixes.SHORTEST:
            running = min(running, common[stop - 1])
            stop += 1
            saved = (running - depth) * (stop - begin - 1)
            if saved > best[0]:
                best = (saved, stop, running)
        saved, stop, shared = best
        if saved < prefixes.SHORTEST * prefixes.SHORTEST:
            stop, shared = begin + 1, len(cut[order[begin]])
        node = _Node(depth, cut[order[begin]][depth:shared])
        node.rows = [index for index in order[begin:stop] if len(cut[index]) == shared]
        if stop - begin > 1:
            first = begin + len(node.rows)
            node.children = _build(order, cut, common, first, stop, shared)
        nodes.append(node)
        begin = stop
    return nodes


def _flatten(roots: list[_Node], rows: Sequence[TokenRow], cut: list[Array]) -> Batch:
    ids: list[Array] = []
    positions: list[Array] = []
    tiles: list[Tile] = []
    paths: dict[int, tuple[tuple[int, int], ...]] = {}
    """Of each example: the flat ranges of its tokens, in order."""
    spans: list[tuple[int, int, int]] = []
    """(begin, end, end of its descendants) of flat ranges."""
    size = 0

    def put(part: Array, depth: int) -> tuple[int, int]:
        nonlocal size
        ids.append(part)
        positions.append(np.arange(depth, depth + len(part)))
        size += len(part)
        return size - len(part), size

    def leaves(group: list[_Node], seen: tuple[tuple[int, int], ...]) -> None:
        for chunk in _together(group):
            begin = size
            for node in chunk:
                place = put(node.ids, node.depth)
                spans.append((*place, place[1]))
                for index in node.rows:
                    paths[index] = _joined(seen, place)
            tiles.append(Tile(begin, size, tuple(len(node.ids) for node in chunk), seen))

    def visit(siblings: list[_Node], seen: tuple[tuple[int, int], ...]) -> None:
        short = [node for node in siblings if not node.children and len(node.ids) <= sizes.PIECE]
        leaves(short, seen)
        for node in siblings:
            if not node.children and len(node.ids) <= sizes.PIECE:
                continue
            chain = []
            ancestors = seen
            for begin in range(0, len(node.ids), sizes.PIECE):
                place = put(node.ids[begin : begin + sizes.PIECE], node.depth + begin)
                tiles.append(Tile(*place, (place[1] - place[0],), ancestors))
                ancestors = _joined(ancestors, place)
                chain.append(place)
            for index in node.rows:
                paths[index] = ancestors
            visit(node.children, ancestors)
            spans.extend((*place, size) for place in chain)

    visit(roots, ())
    if filler := -size % sizes.ROUND:
        leaves([_Node(0, np.zeros(filler, dtype=np.int64))], ())
    ends = np.zeros(size, dtype=np.int64)
    for begin, end, over in spans:
        # A leaf's tokens are visible up to its end, an inner node's up to the end of its last descendant.
        ends[begin:end] = over
    states, targets, owners = _labels(rows, cut, paths)
    predicting, label = np.unique(states, return_inverse=True)
    return Batch(
        ids=torch.from_numpy(np.concatenate(ids).astype(np.int64)) if ids else torch.zeros(0, dtype=torch.int64),
        positions=torch.from_numpy(np.concatenate(positions)) if ids else torch.zeros(0, dtype=torch.int64),
        ends=torch.from_numpy(ends),
        tiles=tuple(tiles),
        states=torch.from_numpy(states),
        targets=torch.from_numpy(targets),
        rows=torch.from_numpy(owners),
        predicting=torch.from_numpy(predicting),
        label=torch.from_numpy(label),
    )


def _together(group: list[_Node]) -> list[list[_Node]]:
    """Sibling leaves of similar lengths, the longest first."""
    chunks: list[list[_Node]] = []
    for node in sorted(group, key=lambda node: -len(node.ids)):
        if not len(node.ids):
            continue
        last = chunks[-1] if chunks else None
        longest = len(last[0].ids) if last else 0
        if last and len(node.ids) >= SLACK * longest and longest * (len(last) + 1) <= sizes.TOGETHER:
            last.append(node)
        else:
            chunks.append([node])
    return chunks


def _joined(seen: tuple[tuple[int, int], ...], place: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Ranges and one more; adjacent ones are merged."""
    if seen and seen[-1][1] == place[0]:
        return (*seen[:-1], (seen[-1][0], place[1]))
    return (*seen, place)


def _labels(
    rows: Sequence[TokenRow], cut: list[Array], paths: dict[int, tuple[tuple[int, int], ...]]
) -> tuple[Array, Array, Array]:
    """(state, target, example) of every learned token, sorted by state."""
    labels = []
    for index, row in enumerate(rows):
        if index not in paths:
            continue
        flat = np.concatenate([np.arange(begin, end) for begin, end in paths[index]])
        at = np.flatnonzero(row.learned[1 : len(cut[index]) + 1])
        labels.append(np.stack([flat[at], row.ids[at + 1], np.full(len(at), index)]))
    if not labels:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    table = np.concatenate(labels, axis=1).astype(np.int64)
    table = table[:, np.lexsort((table[2], table[0]))]
    return table[0], table[1], table[2]
