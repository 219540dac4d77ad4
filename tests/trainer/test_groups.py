"""dataset.groupBy: rows of one group stay together, and count as one in intervals and tests, where others would be misled."""

import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.trainer import tiny

from finetune_api import job, reasons, run
from finetune_trainer.data import dataset, rows
from finetune_trainer.evaluation import evidence, feasible, gates
from finetune_trainer.process import errors
from finetune_trainer.stages import preflight

World = Callable[..., run.Run]

LEVEL, TRIALS = 0.05, 500
TOLERATED = LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / TRIALS)
EVEN = [5] * 24
UNEVEN = [1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 6, 7, 8, 10, 12, 14, 18]


def numbers(sizes: list[int]) -> Any:
    return np.repeat(np.arange(len(sizes)), sizes)


def column(values: Any, sizes: list[int] | None, *, share: bool = True) -> evidence.Column:
    made = evidence.mean(values, share=share)
    if sizes is None:
        return made
    return evidence.Column(made.parts, made.of, made.defined, made.share, numbers(sizes))


def right(draw: np.random.Generator, sizes: list[int], rate: float, concentration: float) -> Any:
    """Whether each answer is right: groups differ in how hard they are, and rows of one group are alike. concentration near 0:
    a group is right or wrong as a whole."""
    easy = draw.beta(rate * concentration, (1 - rate) * concentration, len(sizes))
    return (draw.random(sum(sizes)) < np.repeat(easy, sizes)).astype(float)


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(evidence, "RESAMPLES", 400)
    evidence._draws.cache_clear()
    yield
    evidence._draws.cache_clear()


@pytest.mark.parametrize("concentration", [0.02, 1.0, 10.0])
@pytest.mark.parametrize("sizes", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_a_model_below_the_minimum_seldom_passes_however_alike_the_rows_of_a_group_are(
    sizes: list[int], concentration: float
) -> None:
    draw = np.random.default_rng(1)
    found = [right(draw, sizes, 0.8, concentration) for _ in range(TRIALS)]
    passed = [evidence.p_value_at_least(column(one, sizes), 0.8) <= LEVEL for one in found]
    assert np.mean(passed) <= TOLERATED
    if concentration <= 1:
        alone = [evidence.p_value_at_least(column(one, None), 0.8) <= LEVEL for one in found]
        assert np.mean(alone) > 2 * LEVEL, "counting rows lets it pass far too often"


@pytest.mark.parametrize("margin", [0.0, 0.1])
@pytest.mark.parametrize("sizes", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_a_model_that_is_not_better_seldom_passes_however_alike_the_rows_of_a_group_are(
    sizes: list[int], margin: float
) -> None:
    """On each group one model is right, or the other, or both; the first by the margin more often."""
    draw = np.random.default_rng(2)
    passed, alone = [], []
    for _ in range(TRIALS):
        kind = np.repeat(draw.choice(3, len(sizes), p=[0.3 + margin / 2, 0.3 - margin / 2, 0.4]), sizes)
        one, other = (kind != 1).astype(float), (kind != 0).astype(float)
        for found, which in ((passed, sizes), (alone, None)):
            made = evidence.compare(column(one, which), column(other, which), margin=margin)
            found.append(made.p_value <= LEVEL)
    assert np.mean(passed) <= TOLERATED
    assert np.mean(alone) > 2 * LEVEL


def test_nor_does_one_by_a_metric_that_is_no_share() -> None:
    draw = np.random.default_rng(3)
    passed, alone = [], []
    for _ in range(TRIALS):
        other = draw.beta(2, 2, sum(EVEN))
        one = other + np.repeat(draw.normal(0, 0.2, len(EVEN)), EVEN) + draw.normal(0, 0.05, sum(EVEN))
        for found, which in ((passed, EVEN), (alone, None)):
            made = evidence.compare(column(one, which, share=False), column(other, which, share=False))
            found.append(made.p_value <= LEVEL)
    assert np.mean(passed) <= TOLERATED
    assert np.mean(alone) > 2 * LEVEL


@pytest.mark.parametrize("concentration", [0.02, 1.0])
def test_the_interval_of_a_share_contains_it(concentration: float) -> None:
    draw = np.random.default_rng(4)
    inside = 0
    for _ in range(TRIALS):
        low, high = evidence.interval(column(right(draw, EVEN, 0.7, concentration), EVEN)) or (0, 0)
        inside += low <= 0.7 <= high
    assert inside / TRIALS >= 0.92


def test_a_model_that_is_better_passes() -> None:
    draw = np.random.default_rng(5)
    passed = []
    for _ in range(100):
        other = right(draw, EVEN, 0.5, 2)
        one = np.maximum(other, right(draw, EVEN, 0.6, 2))
        passed.append(evidence.compare(column(one, EVEN), column(other, EVEN)).p_value <= LEVEL)
    assert np.mean(passed) > 0.95


def test_groups_of_one_row_change_no_bound_and_no_interval() -> None:
    values = [1.0] * 17 + [0.0] * 3
    grouped, plain = column(values, [1] * 20), column(values, None)
    assert evidence.interval(grouped) == pytest.approx(evidence.interval(plain))
    for bound in (0.6, 0.8):
        assert evidence.p_value_at_least(grouped, bound) == pytest.approx(evidence.p_value_at_least(plain, bound))
        assert evidence.p_value_at_most(grouped, bound) == pytest.approx(evidence.p_value_at_most(plain, bound))


def test_large_groups_count_less_than_their_number() -> None:
    assert evidence.effective(numbers([5] * 8)) == pytest.approx(8)
    assert evidence.effective(numbers([30, 1, 1, 1])) == pytest.approx(33**2 / 903)
    assert evidence.clusters([None, None]) is None
    assert len(set(evidence.clusters(["a", None, "a", None]).tolist())) == 3, "a row without a group counts for itself"


def test_judged_pairs_of_one_group_count_as_one() -> None:
    alone, grouped = evidence.WinLoss(20, 0, 5), evidence.WinLoss(20, 0, 5, independent=0.2)
    assert alone.p_value_better < 0.01
    assert grouped.p_value_better == evidence.WinLoss(4, 0, 1).p_value_better > 0.1
    assert grouped.rate == alone.rate
    assert grouped.p_value_at_least(0.6) == evidence.WinLoss(4, 0, 1).p_value_at_least(0.6)


def test_the_gates_text_says_the_number_of_groups_and_few_groups_do_not_pass() -> None:
    values: gates.Values = {job.Contender.TUNED: {job.Metric.EXACT_MATCH: column([1.0] * 40, [10] * 4)}}
    (found,) = gates.check([job.Gate(metric="ExactMatch", minimum=0.8)], values)
    assert not found.passed
    assert "n 40 in 4 groups" in found.observed
    assert "too few" in found.observed


# --- The data ---


def parsed(value: Any, group_by: str) -> dataset.Example | rows.Bad:
    row = {"prompt": "a?", "completion": "b", **value}
    (found,) = dataset.parse(iter([rows.Row("x.jsonl:7", row)]), job.Format.AUTO, group_by)
    return found


@pytest.mark.parametrize(
    "value, group_by, group",
    [
        ({"customer": "acme"}, "customer", "acme"),
        ({"customer": 17}, "customer", "17"),
        ({"metadata": {"customer": "acme"}}, "metadata.customer", "acme"),
        ({"metadata.customer": "acme"}, "metadata.customer", "acme"),
    ],
)
def test_a_rows_group_is_text_or_a_number_at_the_top_or_below(value: Any, group_by: str, group: str) -> None:
    found = parsed(value, group_by)
    assert isinstance(found, dataset.Example)
    assert (found.group, found.unused) == (group, frozenset())
    assert dataset.from_record(json.loads(found.line())).group == group


@pytest.mark.parametrize(
    "value, seen",
    [
        ({}, "is missing"),
        ({"customer": None}, "is missing"),
        ({"customer": " "}, "is empty"),
        ({"customer": float("nan")}, "is empty"),
        ({"customer": ["a"]}, "is a list"),
        ({"customer": True}, "is true or false"),
    ],
)
def test_a_row_without_a_group_is_named_with_its_place(value: Any, seen: str) -> None:
    found = parsed(value, "customer")
    assert isinstance(found, rows.Bad)
    assert found.source == "x.jsonl:7"
    assert f"'customer' {seen}" in found.problem
    assert "dataset.groupBy" in found.problem


def customers(count: int, each: int, first: int = 0) -> list[dict[str, Any]]:
    asked = tiny.examples(count * each + first)[first:]
    return [{**row, "customer": f"c{first}-{index // each}"} for index, row in enumerate(asked)]


def frozen(spec: run.Run, name: str) -> list[dataset.Example]:
    return dataset.frozen(pathlib.Path(spec.layout.data.removeprefix("file://")) / f"{name}.jsonl")


def test_preflight_keeps_groups_on_one_side_and_counts_them(world: World) -> None:
    gate = {"metric": "ExactMatch", "minimum": 0.3, "confidence": 0.8}
    dataset_ = {"groupBy": "customer", "validation": {"fraction": 0.1}, "test": {"fraction": 0.2}}
    spec = world(customers(20, 5), dataset=dataset_, evaluation={"gates": [gate]})
    assert preflight.preflight(spec).preflight is not None
    sides = {name: {one.group for one in frozen(spec, name)} for name in dataset.SPLITS}
    assert [len(groups) for groups in sides.values()] == [14, 2, 4]
    assert not sides["train"] & sides["test"]
    assert not sides["train"] & sides["validation"]
    (text,) = feasible.short(spec.evaluation, frozen(spec, "test"))
    assert "with 4 groups" in text


def test_preflight_names_rows_without_a_group(world: World) -> None:
    rows_ = customers(20, 3)
    del rows_[4]["customer"]
    with pytest.raises(errors.Failure) as caught:
        preflight.preflight(world(rows_, dataset={"groupBy": "customer"}))
    assert caught.value.reason is reasons.Reason.DATASET_INVALID
    assert all(word in caught.value.message for word in (":5:", "'customer' is missing", "dataset.groupBy"))


def test_a_group_of_a_test_file_that_was_trained_on_is_leakage(world: World, tmp_path: pathlib.Path) -> None:
    held_out = customers(4, 3, first=90)
    held_out[0]["customer"] = "c0-1"
    (tmp_path / "test.jsonl").write_text(tiny.jsonl(held_out))
    rules: dict[str, Any] = {"groupBy": "customer", "test": {"uris": [f"file://{tmp_path}/test.jsonl"]}}
    with pytest.raises(errors.Failure, match=r"leakage: 1 of 12 .*group of dataset.groupBy"):
        preflight.preflight(world(customers(20, 3), dataset=rules))
    spec = world(customers(20, 3), dataset={**rules, "checks": {"leakage": "Drop"}})
    assert preflight.preflight(spec).preflight is not None
    assert "c0-1" not in {one.group for one in frozen(spec, "train")}
    assert "c0-1" in {one.group for one in frozen(spec, "test")}
