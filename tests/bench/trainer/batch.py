"""The examples of one cell: which the steps see, in what order. Pure but for the product's own plan, which it asks."""

import dataclasses

from tests.bench.trainer import course, lengths, recipe, workloads

from finetune_api import job
from finetune_trainer.training import batches


@dataclasses.dataclass(frozen=True)
class Batches:
    """The training examples of a run of so many steps, each example seen once."""

    rows: list[workloads.Chat]
    """In the order of the product's data file."""
    steps: list[list[int]]
    """The rows of each optimizer step: those that the product's seeded shuffle draws."""
    counts: list[lengths.Count]
    """Of each row."""

    def ordered(self) -> list[workloads.Chat]:
        """For a peer that reads in order: step after step, within each the longest first, so that it pads little."""
        return [
            self.rows[index]
            for step in self.steps
            for index in sorted(step, key=lambda index: -self.counts[index].tokens)
        ]

    def tokens(self) -> list[int]:
        return [sum(self.counts[index].tokens for index in step) for step in self.steps]

    def mean(self) -> float:
        """Tokens of an example of the workload."""
        counted = self.tokens()[course.WARM_UP :]
        return sum(counted) / (len(counted) * recipe.BATCH)

    def labelled(self) -> list[int]:
        return [sum(self.counts[index].labelled for index in step) for step in self.steps]


def make(workload: workloads.Workload, counted: int, counter: lengths.Counter) -> Batches:
    """Batches of the steps that are not counted, and of `counted` steps after them."""
    total = course.UNCOUNTED + counted
    steps = order(total)
    small = workloads.chats(workloads.WARM_UP, course.WARM_UP * recipe.BATCH, recipe.SEED, counter.text)
    large = workloads.chats(workload, (total - course.WARM_UP) * recipe.BATCH, recipe.SEED, counter.text)
    rows: list[workloads.Chat] = [[]] * (total * recipe.BATCH)
    for chosen in steps:
        source = small if small else large
        for index in chosen:
            rows[index] = source.pop()
    return Batches(rows, steps, [counter.chat(row) for row in rows])


def order(steps: int) -> list[list[int]]:
    """The rows that the product draws for each step of one pass over the data."""
    count = steps * recipe.BATCH
    plan = batches.plan(count, job.Training(batch_size=recipe.BATCH, seed=recipe.SEED, max_steps=steps))
    return [plan.step(number) for number in range(steps)]
