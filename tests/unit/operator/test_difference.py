"""The merge patch between two statuses."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as some

from finetune_operator import reconcile
from flow import fakecluster


@pytest.mark.parametrize(
    "old, new, patch",
    [
        ({}, {}, {}),
        ({"a": 1}, {"a": 1}, {}),
        ({"a": 1}, {"a": 2}, {"a": 2}),
        ({}, {"a": 1}, {"a": 1}),
        ({"a": 1}, {}, {"a": None}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, {"a": {"c": None}}),
        ({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}, {"a": {"c": 2}}),
        ({"a": {"b": 1}}, {}, {"a": None}),
        ({"a": {"b": 1}}, {"a": 1}, {"a": 1}),
        ({"a": 1}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": [1, 2]}, {"a": [1]}, {"a": [1]}),
        ({"a": [{"b": 1}]}, {"a": [{"b": 1}]}, {}),
        ({"a": 1}, {"a": 1.0}, {}),
        ({"a": {}}, {"a": {}}, {}),
        ({"a": {"b": 1}}, {"a": {}}, {"a": {"b": None}}),
    ],
)
def test_a_patch_names_what_changed_and_nulls_what_went(old: dict, new: dict, patch: dict) -> None:
    assert reconcile.difference(old, new) == patch


VALUES = some.recursive(
    some.booleans() | some.integers(0, 3) | some.text("ab", max_size=2) | some.lists(some.integers(0, 3), max_size=2),
    lambda inner: some.dictionaries(some.sampled_from("abc"), inner, max_size=3),
    max_leaves=10,
)
STATUSES = some.dictionaries(some.sampled_from("abcd"), VALUES, max_size=4)


@given(STATUSES, STATUSES)
def test_a_patch_leads_from_old_to_new(old: dict, new: dict) -> None:
    patch = reconcile.difference(old, new)
    assert fakecluster.merge(copy.deepcopy(old), patch) == new
    assert bool(patch) == (old != new)
