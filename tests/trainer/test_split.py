import itertools
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.data import dataset, split


def made(keys: list[list[int]]) -> split.Prompts:
    builder = split.Builder()
    for one in keys:
        builder.add(one)
    return builder.finish()


def prompts(count: int, copies: int = 1) -> list[list[int]]:
    return [[dataset.digest(["prompt", number])] for number in range(count) for _ in range(copies)]


def assign(keys: list[list[int]], validation: float | None, test: float | None, seed: int) -> list[int]:
    found: list[int] = split.assign(made(keys), validation, test, seed).tolist()
    return found


def test_the_split_has_the_asked_shares() -> None:
    places = assign(prompts(320), 0.05, 0.1, seed=42)
    assert [places.count(place) for place in range(3)] == [272, 16, 32]


def test_examples_of_one_prompt_stay_together() -> None:
    places = assign(prompts(50, copies=4), 0.1, 0.1, seed=1)
    assert all(len(set(places[index : index + 4])) == 1 for index in range(0, 200, 4))


def test_the_split_depends_on_prompts_and_seed_not_on_order() -> None:
    found = prompts(100)
    places = assign(found, 0.1, 0.1, seed=3)
    assert places == assign(found[::-1], 0.1, 0.1, seed=3)[::-1]
    assert places != assign(found, 0.1, 0.1, seed=4)


def test_a_chat_that_contains_another_is_on_the_same_side_of_the_split() -> None:
    turns = [dataset.Message("user", "Hi"), dataset.Message("assistant", "Hello")]
    more = [dataset.Message("user", "And?"), dataset.Message("assistant", "Bye")]
    found = [list(dataset.Example("x", tuple(chat)).keys()) for chat in (turns, turns + more)]
    groups = split.group(made(found + prompts(5)))
    assert len(set(groups.tolist())) == 6
    assert groups[0] == groups[1]


def test_tiny_data_keeps_examples_to_train_on() -> None:
    assert assign([], 0.05, 0.1, seed=0) == []
    assert assign(prompts(3), 0.05, 0.1, seed=0) == [0, 0, 0]
    places = assign(prompts(12), 0.05, 0.1, seed=0)
    assert [places.count(place) for place in range(3)] == [10, 1, 1]
    assert assign(prompts(40), None, None, seed=0) == [0] * 40


KEYS = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=4), min_size=1, max_size=30)


def chains(keys: list[list[int]]) -> list[int]:
    """The groups as the definition says, slowly: joined until nothing joins."""
    leads = [one[-1] for one in keys]
    asked = set(leads)
    while True:
        before = list(leads)
        for (one, mine), (other, theirs) in itertools.product(enumerate(keys), repeat=2):
            if mine[-1] in theirs or set(mine) & set(theirs) & asked:
                leads[one] = leads[other] = min(leads[one], leads[other])
        if leads == before:
            return leads


@given(KEYS)
def test_groups_are_those_of_the_definition(keys: list[list[int]]) -> None:
    assert split.group(made(keys)).tolist() == chains(keys)


@given(KEYS, st.lists(st.integers(0, 29), max_size=10), st.lists(st.integers(0, 12), max_size=4))
def test_rows_can_be_taken_out_of_the_columns(keys: list[list[int]], rows: list[int], asked: list[int]) -> None:
    rows = sorted({row for row in rows if row < len(keys)})
    chosen = np.array(rows, dtype=np.int64)
    taken = made(keys).take(chosen)
    expected = [keys[row] for row in rows]
    assert taken.last.tolist() == [one[-1] for one in expected]
    assert taken.flat.tolist() == [key for one in expected for key in one]
    assert taken.ends.tolist() == list(itertools.accumulate(map(len, expected)))
    found = made(keys).any_in(chosen, np.array(asked, dtype=np.uint64)).tolist()
    assert found == [bool(set(one) & set(asked)) for one in expected]


@given(KEYS, st.sampled_from([None, 0.1, 0.5]), st.sampled_from([None, 0.2]), st.integers(0, 2**31 - 1))
def test_no_group_is_on_two_sides(
    keys: list[list[int]], validation: float | None, test: float | None, seed: int
) -> None:
    places = assign(keys, validation, test, seed)
    where: dict[int, int] = {}
    for lead, place in zip(chains(keys), places, strict=True):
        assert where.setdefault(lead, place) == place


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30), st.randoms())
def test_rows_of_one_group_or_one_prompt_are_joined_by_chains_and_in_any_order(
    rows: list[tuple[int, int]], random: Any
) -> None:
    one, other = (np.array(column, dtype=np.uint64) for column in zip(*rows, strict=True))
    found = split.joined(one, other)
    linked = [{place} for place in range(len(rows))]
    for first, second in itertools.combinations(range(len(rows)), 2):
        if rows[first][0] == rows[second][0] or rows[first][1] == rows[second][1]:
            union = linked[first] | linked[second]
            for place in union:
                linked[place] = union
    assert all((found[a] == found[b]) == (b in linked[a]) for a, b in itertools.combinations(range(len(rows)), 2))
    order = list(range(len(rows)))
    random.shuffle(order)
    assert split.joined(one[order], other[order]).tolist() == found[order].tolist()


def test_groups_keep_their_rows_together_whatever_their_prompts() -> None:
    together = np.array([dataset.digest(["group", number % 40]) for number in range(200)], dtype=np.uint64)
    places = split.assign(made(prompts(200)), 0.1, 0.1, 1, together)
    assert all(len(set(places[group::40].tolist())) == 1 for group in range(40))
    assert [int((places == place).sum()) for place in range(3)] == [160, 20, 20]
    few = split.assign(made(prompts(200)), 0.1, 0.1, 1, together % np.uint64(3))
    assert set(few.tolist()) == {0}, "three groups are not enough to hold one out"
