"""The judge of a rollout: exact values of its tests, and simulated rollouts of equal and of worse revisions."""

import math
import random
from typing import Any

import pytest

from finetune_api import serving, status
from finetune_operator.decide import traffic

START = "2026-05-04T12:00:00Z"


def part(**counts: Any) -> serving.Traffic:
    names = {"namespace": "ml", "job": "desk", "name": "desk", "revision": "r", "since": START, "abandoned": 0}
    return serving.Traffic.model_validate(names | counts)


def histogram(*seconds: float) -> dict[str, Any]:
    counts = [0] * (len(serving.BOUNDS) + 1)
    for value in seconds:
        counts[next((i for i, bound in enumerate(serving.BOUNDS) if value <= bound), len(serving.BOUNDS))] += 1
    return {"counts": counts, "sum": sum(seconds)}


def side(**counts: Any) -> serving.Counts:
    return traffic.side([part(**counts)])


def measure(finding: status.Finding) -> str:
    return finding.seen.partition(":")[0]


def found(new: serving.Counts, old: serving.Counts) -> dict[str, float]:
    return {measure(one): one.p for one in traffic.findings(new, old)}


# -- exact values --


@pytest.mark.parametrize(
    ("bad", "of", "bad_before", "before", "p"),
    [
        (3, 4, 1, 4, 17 / 70),  # the lady tasting tea
        (4, 4, 0, 4, 1 / 70),
        (0, 10, 0, 10, 1.0),
        (10, 10, 10, 10, 1.0),
        (1, 1, 0, 999, 1 / 1000),
        (2, 5, 0, 5, 2 / 9),
    ],
)
def test_fishers_test_is_exact(bad: int, of: int, bad_before: int, before: int, p: float) -> None:
    assert traffic.fisher(bad, of, bad_before, before) == pytest.approx(p, rel=1e-9)


def test_fishers_test_equals_the_sum_over_all_tables() -> None:
    for _ in range(100):
        chance = random.Random(_)
        of, before = chance.randint(1, 40), chance.randint(1, 400)
        bad, bad_before = chance.randint(0, of), chance.randint(0, before)
        marked = bad + bad_before
        ways = sum(
            math.comb(marked, x) * math.comb(of + before - marked, of - x) for x in range(bad, min(of, marked) + 1)
        )
        exact = ways / math.comb(of + before, of)
        assert traffic.fisher(bad, of, bad_before, before) == pytest.approx(exact, rel=1e-9)


def test_fishers_test_of_millions_of_requests_is_finite() -> None:
    p = traffic.fisher(60_000, 1_000_000, 50_000, 1_000_000)
    assert 0 <= p < 1e-100
    assert 0.4 < traffic.fisher(50_000, 1_000_000, 50_000, 1_000_000) < 0.6


def test_the_rank_test_equals_its_formula_by_hand() -> None:
    """4 against 4 in two intervals, 3 and 1 in the longer: U = 3*3 + (1*3 + 3*1) / 2 = 12; ties 4 and 4."""
    new, old = [1.0, 3.0], [3.0, 1.0]
    variance = 16 / 12 * (9 - (60 + 60) / 56)
    expected = math.erfc((12 - 8 - 0.5) / math.sqrt(variance) / math.sqrt(2)) / 2
    assert traffic.ranks(new, old) == pytest.approx(expected)


def test_durations_that_are_all_in_one_interval_show_nothing() -> None:
    assert traffic.ranks([0.0, 50.0], [0.0, 50.0]) == 1.0


def test_a_histogram_is_slowed_down_without_loss() -> None:
    counts = [0.0] * len(traffic.EDGES)
    counts[8], counts[20] = 10.0, 3.0  # 0.75 to 1 s, and above the last bound
    moved = traffic.slowed(counts, traffic.IN_STEPS.margin)
    assert sum(moved) == pytest.approx(13.0)
    assert traffic.slowed(counts, 1.0) == pytest.approx(counts)
    assert 1.1 < traffic.median(moved) / traffic.median(counts) < 1.5  # the interval's width


def test_holms_adjustment_multiplies_the_smallest_by_the_number_of_tests() -> None:
    new = side(requests=40, errors=20, checked=20, invalid=10, cut=2)
    old = side(requests=400, errors=4, checked=396, invalid=4, cut=4)
    adjusted = traffic.findings(new, old)
    alone = {
        "errors": traffic.fisher(20, 40, 4, 400),
        "answers that do not fit outputSchema": traffic.fisher(10, 20, 4, 396),
    }
    assert [measure(one) for one in adjusted[:2]] == ["errors", "answers that do not fit outputSchema"]
    assert adjusted[0].p == pytest.approx(4 * alone["errors"], rel=1e-3)
    assert adjusted[1].p == pytest.approx(3 * alone["answers that do not fit outputSchema"], rel=1e-3)
    assert [one.p for one in adjusted] == sorted(one.p for one in adjusted)


def test_what_was_not_measured_is_no_test() -> None:
    assert set(found(side(requests=20), side(requests=20))) == {
        "errors",
        "empty answers",
        "answers cut at the limit of tokens",
    }
    assert found(side(), side(requests=9)) == {}


def test_a_certain_difference_below_one_percentage_point_is_not_relevant() -> None:
    new, old = side(requests=100_000, errors=900), side(requests=100_000, errors=100)
    assert traffic.fisher(900, 100_000, 100, 100_000) < 1e-100
    assert found(new, old)["errors"] == 1.0


def test_a_revision_within_the_margin_of_time_is_as_good_and_one_of_twice_the_time_is_not() -> None:
    old = side(requests=500, seconds=histogram(*[1 + i / 500 for i in range(500)]))
    as_good = side(requests=500, seconds=histogram(*[1.1 * (1 + i / 500) for i in range(500)]))
    slow = side(requests=500, seconds=histogram(*[2 * (1 + i / 500) for i in range(500)]))
    assert found(as_good, old)["time of an answer"] > 0.5
    assert found(slow, old)["time of an answer"] < 1e-6


def test_counts_of_several_pods_are_added_and_impossible_ones_are_bounded() -> None:
    both = traffic.side([part(requests=3, errors=1), part(requests=5, errors=9, empty=7, checked=99, invalid=99)])
    assert (both.requests, both.errors, both.empty, both.checked, both.invalid) == (8, 8, 0, 8, 8)
    many = traffic.side([part(requests=8, errors=3, abandoned=9, cut=4)])
    assert (many.abandoned, many.cut, many.answers) == (5, 0, 0)
    assert traffic.side([part(requests=-4, seconds={"counts": [-1, 2]})]).seconds.counts[:2] == [0, 2]
    assert traffic.side([]) == traffic.side([part()])


@pytest.mark.parametrize("rules", [traffic.IN_STEPS, traffic.BY_ENGINE, traffic.AFTERWARDS])
def test_a_revision_so_slow_that_clients_give_up_is_worse(rules: traffic.Rules) -> None:
    new, old = side(requests=10, abandoned=10), side(requests=90, abandoned=1)
    assert traffic.due(new.requests, 0)
    (first, *_) = traffic.findings(new, old, rules)
    assert first.seen == "requests that clients gave up: 100.0% of 10, former 1.1% of 90"
    assert first.p < 1e-6


def test_what_gateways_of_a_former_version_did_not_count_is_not_compared() -> None:
    """After an upgrade; nor are errors, of which they count fewer, unless the same pods counted those of both revisions."""
    new, before = side(requests=100, abandoned=6, errors=30), side(requests=1000, abandoned=None)
    assert traffic.findings(new, before, traffic.AFTERWARDS) == []
    mixed = traffic.side([part(requests=500, abandoned=None), part(requests=500, abandoned=1)])
    assert traffic.findings(new, mixed, traffic.AFTERWARDS) == []
    assert "errors" in found(new, before)
    assert "requests that clients gave up" not in found(new, before)
    both = traffic.findings(side(requests=100, abandoned=None, errors=30), before, traffic.AFTERWARDS)
    assert [one.seen.split(":")[0] for one in both] == ["errors"], "by gateways of one version"
    former = traffic.total([part(requests=9, abandoned=None)])
    assert former is not None
    assert "abandoned" not in former.wire()
    assert serving.Traffic.model_validate(former.wire() | {"errors": 2}).answers == 7


# -- looks --


def test_the_levels_of_all_looks_add_up_to_the_level() -> None:
    assert sum(traffic.level(look) for look in range(1, 10_000)) == pytest.approx(traffic.LEVEL, rel=1e-3)


def test_looks_are_further_and_further_apart() -> None:
    looked, looks = 0, []
    for requests in range(1000):
        if traffic.due(requests, looked):
            looked = requests
            looks.append(requests)
    assert looks == [10, 15, 23, 35, 53, 80, 120, 180, 270, 405, 608, 912]


# -- simulated rollouts --


def rolled_back(seed: int, new: tuple[float, float], old: tuple[float, float], steps: int = 3) -> int:
    """The requests after which the new revision was rolled back; 0: never. A side: the share of errors, and of cut answers;
    of each step 400 requests, of which the new revision gets a fifth at first, then half."""
    chance, looks, before = random.Random(seed), 0, 0
    for step in range(steps):
        counts = [[0, 0, 0], [0, 0, 0]]
        times: list[list[float]] = [[], []]
        looked = 0
        for _ in range(400):
            which = int(chance.random() < (0.2, 0.5, 0.5)[step])
            errors, cut = (old, new)[which]
            counts[which][0] += 1
            counts[which][1] += chance.random() < errors
            counts[which][2] += chance.random() < cut
            times[which].append(chance.lognormvariate(0, 0.7))
            if traffic.due(counts[1][0], looked):
                looks, looked = looks + 1, counts[1][0]
                sides = [
                    side(requests=n, errors=e, cut=min(c, n - e), seconds=histogram(*t), first_token=histogram(*t))
                    for (n, e, c), t in zip(counts, times, strict=True)
                ]
                if traffic.worse(traffic.findings(sides[1], sides[0]), traffic.level(looks)):
                    return before + counts[1][0]
        before += counts[1][0]
    return 0


@pytest.mark.slow
def test_an_equal_revision_is_rolled_back_in_fewer_rollouts_than_the_level_says() -> None:
    rollouts = 100
    back = sum(rolled_back(seed, new=(0.1, 0.2), old=(0.1, 0.2)) > 0 for seed in range(rollouts))
    assert back / rollouts <= traffic.LEVEL


@pytest.mark.slow
def test_a_clearly_worse_revision_is_found_within_the_first_step() -> None:
    found = [rolled_back(seed, new=(0.5, 0.2), old=(0.02, 0.2)) for seed in range(40)]
    assert all(0 < requests <= 53 for requests in found)


def test_a_revision_that_only_fails_is_found_after_ten_requests() -> None:
    assert rolled_back(1, new=(1.0, 0.0), old=(0.0, 0.0)) == 10
