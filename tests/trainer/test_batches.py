import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api import job
from finetune_trainer.planning import epoch_count
from finetune_trainer.training import batches, loop


def training(**fields: float) -> job.Training:
    return job.Training.model_validate(fields)


def test_every_epoch_sees_every_example_once_in_another_order() -> None:
    plan = batches.plan(10, training(batch_size=4, seed=1, epochs=3))
    seen = [index for step in range(plan.steps) for index in plan.step(step)]
    assert len(seen) == 30
    epochs = [seen[begin : begin + 10] for begin in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_depends_on_the_seed_alone() -> None:
    def order(seed: int) -> list[list[int]]:
        plan = batches.plan(50, training(batch_size=8, seed=seed, epochs=2))
        return [plan.step(step) for step in range(plan.steps)]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_steps_and_parts_of_epochs_are_exact() -> None:
    assert batches.plan(10, training(batch_size=4, seed=0, epochs=1.5)).steps == 4
    plan = batches.plan(10, training(batch_size=4, seed=0, max_steps=7))
    assert plan.steps == 7
    assert all(len(plan.step(step)) == 4 for step in range(7))
    assert plan.epoch(7) == 2.8
    assert batches.plan(3, training(batch_size=16, seed=0, epochs=1)).step(0) != []


@pytest.mark.parametrize(
    "examples, epochs", [(4, 25), (12, 8), (33, 3), (34, 3), (300, 3), (8333, 3), (9000, 2), (30_000, 1)]
)
def test_the_epochs_follow_the_number_of_examples(examples: int, epochs: int) -> None:
    assert epoch_count.epochs_for(examples) == epochs


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40),
    budget=st.integers(1, 1000),
)
def test_micro_batches_keep_every_example_and_the_budget(lengths: list[int], budget: int) -> None:
    found = batches.micro(range(len(lengths)), lengths, budget)
    assert collections.Counter(index for part in found for index in part) == collections.Counter(range(len(lengths)))
    for part in found:
        assert len(part) == 1 or max(lengths[index] for index in part) * len(part) <= budget


def test_the_learning_rate_rises_and_falls_to_a_tenth() -> None:
    shares = [loop.schedule(step, 100) for step in range(100)]
    assert shares[0] == 0.2
    assert shares[4] == 1.0
    assert shares[99] == pytest.approx(0.1)
    assert shares[4:] == sorted(shares[4:], reverse=True)
    assert loop.schedule(0, 1) == 1.0
