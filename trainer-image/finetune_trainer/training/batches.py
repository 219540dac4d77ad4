"""Which examples each optimizer step sees, and how a step is cut into micro-batches. Pure and seeded.

Only the order of examples within each epoch is random, drawn from the seed and the epoch's number. Within a step, examples are
sorted by their tokens, so that common prefixes are next to each other, and cut by a budget of tokens, which changes neither the
step's loss nor its gradient. So sharing prefixes never decides what is learned together, and the step number alone is the
position of a run: there is nothing else to resume.
"""

import dataclasses
import math
import random
from collections.abc import Sequence

from finetune_api import job
from finetune_trainer.engine import prefix_tree, prefixes
from finetune_trainer.planning import epoch_count


@dataclasses.dataclass(frozen=True)
class Plan:
    """The steps of a run."""

    examples: int
    batch_size: int
    seed: int
    steps: int
    total: int
    """Examples of all steps together, counted once per epoch."""

    def step(self, number: int) -> list[int]:
        """The examples of one step, counted from 0."""
        begin, end = number * self.batch_size, min((number + 1) * self.batch_size, self.total)
        chosen: list[int] = []
        while begin < end:
            epoch, offset = divmod(begin, self.examples)
            piece = self._order(epoch)[offset : offset + end - begin]
            chosen += piece
            begin += len(piece)
        return chosen

    def epoch(self, number: int) -> float:
        """Epochs after this many steps."""
        return min(number * self.batch_size, self.total) / self.examples

    def _order(self, epoch: int) -> list[int]:
        order = list(range(self.examples))
        random.Random(f"{self.seed}:{epoch}").shuffle(order)  # noqa: S311
        return order


def plan(examples: int, training: job.Training) -> Plan:
    """The steps of a training: as many as its examples, epochs and batch size make. Numbers from `examples` on are general
    examples of training.replay."""
    total = epoch_count.total_examples(examples, training)
    mixed = examples + epoch_count.replayed(examples, training)
    return Plan(mixed, training.batch_size, training.seed, math.ceil(total / training.batch_size), total)


def micro(chosen: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """A step's examples in micro-batches of at most `budget` tokens, padding included; an example is never cut.

    Sorted by length, so that there is little padding; the longest come first, so that memory runs out early or not at all.
    """
    order = sorted(chosen, key=lambda index: (-lengths[index], index))
    micro_batches: list[list[int]] = []
    for index in order:
        if micro_batches and lengths[micro_batches[-1][0]] * (len(micro_batches[-1]) + 1) <= budget:
            micro_batches[-1].append(index)
        else:
            micro_batches.append([index])
    return micro_batches


def cut(units: Sequence[Sequence[prefix_tree.TokenRow]], budget: int, *, share: bool = True) -> list[list[int]]:
    """A step's examples in micro-batches of at most `budget` tokens without padding; share: common prefixes counted once.

    A unit is the rows of one example, which stay together. Units are in the order of their tokens.
    """
    micro_batches: list[list[int]] = []
    room = 0
    last: prefix_tree.TokenRow | None = None
    for index in ordered(units):
        rows = units[index]
        own = [
            prefix_tree.needed(row) - (prefix_tree.common(rows[at - 1], row) if at and share else 0)
            for at, row in enumerate(rows)
        ]
        common = prefix_tree.common(last, rows[0]) if last is not None and share else 0
        if micro_batches and sum(own) - common <= room:
            micro_batches[-1].append(index)
            room -= sum(own) - common
        else:
            micro_batches.append([index])
            room = budget - sum(own)
        last = rows[0]
    return micro_batches


def ordered(units: Sequence[Sequence[prefix_tree.TokenRow]]) -> list[int]:
    """The units in the order of their first rows' tokens."""
    return sorted(range(len(units)), key=lambda index: (prefixes.key(units[index][0].ids), index))


def share_of(units: Sequence[Sequence[prefix_tree.TokenRow]], rank: int, size: int) -> list[int]:
    """The units of one process of several: neighbours in the order of their tokens, about the same number of tokens for each
    process."""
    order = ordered(units)
    if size == 1:
        return order
    costs = [sum(len(row.ids) for row in units[index]) for index in order]
    total, before, micro_batches = sum(costs), 0, []
    for index, cost in zip(order, costs, strict=True):
        if min(size - 1, int((before + cost / 2) * size / total)) == rank:
            micro_batches.append(index)
        before += cost
    return micro_batches
