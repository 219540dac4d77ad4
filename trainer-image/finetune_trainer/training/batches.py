"""Which examples each optimizer step sees, and how a step is cut into micro-batches. Pure and seeded.

What is random is the order of examples within each epoch, drawn from the seed and the epoch's number; steps follow one
another in that order. What is not: within a step, examples are sorted by their tokens, so that those which begin alike meet,
and cut by a budget of tokens, which changes neither the step's loss nor its gradient. So sharing prefixes never decides what
is learned together, and the position of a run is its step alone: nothing else is to be resumed.
"""

import dataclasses
import math
import random
from collections.abc import Sequence

from finetune_trainer.engine import prefix_tree
from finetune_trainer.planning import epoch_count


@dataclasses.dataclass(frozen=True)
class Plan:
    """The steps of a run."""

    examples: int
    batch_size: int
    seed: int
    steps: int
    seen: int
    """Examples that all steps together see; those of each epoch once."""

    def step(self, number: int) -> list[int]:
        """The examples of one step, counted from 0."""
        begin, end = number * self.batch_size, min((number + 1) * self.batch_size, self.seen)
        chosen: list[int] = []
        while begin < end:
            epoch, offset = divmod(begin, self.examples)
            piece = self._order(epoch)[offset : offset + end - begin]
            chosen += piece
            begin += len(piece)
        return chosen

    def epoch(self, number: int) -> float:
        """Passes over the data after so many steps."""
        return min(number * self.batch_size, self.seen) / self.examples

    def _order(self, epoch: int) -> list[int]:
        order = list(range(self.examples))
        random.Random(f"{self.seed}:{epoch}").shuffle(order)  # noqa: S311
        return order


def plan(examples: int, *, batch_size: int, seed: int, epochs: float | None, max_steps: int | None) -> Plan:
    """The steps for a number of epochs, or of steps, or by `epoch_count.epochs_for` where both are absent."""
    if max_steps is not None:
        return Plan(examples, batch_size, seed, max_steps, max_steps * batch_size)
    seen = max(1, round((epochs or epoch_count.epochs_for(examples)) * examples))
    return Plan(examples, batch_size, seed, math.ceil(seen / batch_size), seen)


def micro(chosen: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """A step's examples in micro-batches of at most `budget` tokens, padding counted; one example is never cut.

    Sorted by length, so that little is padded; the longest come first, so that memory runs out early or not at all.
    """
    order = sorted(chosen, key=lambda index: (-lengths[index], index))
    found: list[list[int]] = []
    for index in order:
        if found and lengths[found[-1][0]] * (len(found[-1]) + 1) <= budget:
            found[-1].append(index)
        else:
            found.append([index])
    return found


def cut(units: Sequence[Sequence[prefix_tree.Row]], budget: int) -> list[list[int]]:
    """A step's examples in micro-batches of at most `budget` tokens, those of shared prefixes counted once.

    A unit is the rows of one example, which stay together. Neighbours in the order of their tokens come together.
    """
    found: list[list[int]] = []
    room = 0
    last: prefix_tree.Row | None = None
    for index in ordered(units):
        rows = units[index]
        fresh = [
            prefix_tree.needed(row) - (prefix_tree.common(rows[at - 1], row) if at else 0)
            for at, row in enumerate(rows)
        ]
        shared = prefix_tree.common(last, rows[0]) if last is not None else 0
        if found and sum(fresh) - shared <= room:
            found[-1].append(index)
            room -= sum(fresh) - shared
        else:
            found.append([index])
            room = budget - sum(fresh)
        last = rows[0]
    return found


def ordered(units: Sequence[Sequence[prefix_tree.Row]]) -> list[int]:
    """The units in the order of their first rows' tokens."""
    return sorted(range(len(units)), key=lambda index: (prefix_tree.key(units[index][0].ids), index))


def portion(units: Sequence[Sequence[prefix_tree.Row]], rank: int, size: int) -> list[int]:
    """The units of one process of several: neighbours in the order of their tokens, about as many tokens for each."""
    order = ordered(units)
    if size == 1:
        return order
    costs = [sum(len(row.ids) for row in units[index]) for index in order]
    total, before, found = sum(costs), 0, []
    for index, cost in zip(order, costs, strict=True):
        if min(size - 1, int((before + cost / 2) * size / total)) == rank:
            found.append(index)
        before += cost
    return found
