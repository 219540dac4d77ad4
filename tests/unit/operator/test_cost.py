"""The cost of a job as an integral over time: nothing twice, nothing left out."""

import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from finetune_operator import settings
from finetune_operator.decide import cost
from finetune_operator.observe import label, projections
from flow import world

T = datetime.datetime(2026, 5, 4, 12, 0, 0, tzinfo=datetime.UTC)
CHART = settings.Settings.model_validate(
    world.SETTINGS
    | {"currency": "EUR", "gpuTypes": {"l4": {"pricePerHour": 0.8}, "h100": {"pricePerHour": 4}, "old": {}}}
)


def at(seconds: float) -> datetime.datetime:
    return T + datetime.timedelta(seconds=seconds)


def pod(placed: float | None, ended: float | None = None, gpus: int = 1, kind: str = "l4") -> projections.Pod:
    labels = {label.STAGE: "train", label.GPUS: str(gpus), label.GPU_TYPE: kind}
    raw: dict[str, Any] = {"metadata": {"name": "p", "namespace": "ml", "labels": labels}, "status": {}}
    if placed is not None:
        raw["status"] = {"phase": "Running", "startTime": at(placed).isoformat()}
    if ended is not None:
        end = {"exitCode": 0, "finishedAt": at(ended).isoformat()}
        raw["status"] |= {
            "phase": "Succeeded",
            "containerStatuses": [{"name": "finetune", "state": {"terminated": end}}],
        }
    return projections.pod(raw)


@pytest.mark.parametrize(
    "since, until, expected",
    [
        (None, 50, 0),  # not placed yet
        (None, 400, 300),
        (None, 5000, 900),  # it ended at 1000
        (400, 700, 300),
        (50, 150, 50),
        (1000, 5000, 0),  # counted already
        (700, 5000, 300),
    ],
)
def test_what_a_pod_held_between_two_times(since: float | None, until: float, expected: float) -> None:
    assert cost.held(pod(100, 1000), None if since is None else at(since), at(until)) == expected
    assert cost.held(pod(100, 1000, gpus=8), None if since is None else at(since), at(until)) == 8 * expected


def test_a_pod_without_a_node_or_without_a_gpu_holds_nothing() -> None:
    assert cost.held(pod(None), None, at(9999)) == 0
    assert cost.held(pod(0, gpus=0), None, at(9999)) == 0


def test_hours_and_price_are_added_up_over_gpu_types() -> None:
    found = cost.counted(None, [pod(0, 3600, 2, "l4"), pod(0, 1800, 1, "h100")], at(3600), CHART)
    assert (found.gpu_hours, found.amount, found.currency) == ("2.500000", "3.600000", "EUR")
    assert found.counted_until == at(3600)


def test_a_gpu_without_a_price_is_counted_and_not_priced() -> None:
    found = cost.counted(None, [pod(0, 3600, 1, "old")], at(3600), CHART)
    assert (found.gpu_hours, found.amount, found.currency) == ("1.000000", None, None)
    both = cost.counted(found, [pod(3600, 7200, 1, "l4")], at(7200), CHART)
    assert (both.gpu_hours, both.amount, both.currency) == ("2.000000", "0.800000", "EUR")


def test_a_price_that_changes_counts_from_then_on() -> None:
    first = cost.counted(None, [pod(0)], at(3600), CHART)
    dearer = CHART.model_copy(update={"gpu_types": {"l4": settings.GpuType(price_per_hour=2)}})
    assert cost.counted(first, [pod(0)], at(7200), dearer).amount == "2.800000"


@given(some.lists(some.integers(0, 4000), min_size=1, max_size=12))
def test_it_does_not_matter_when_it_is_counted(times: list[int]) -> None:
    pods = [pod(0, 3600, 2), pod(600), pod(1200, 1300, 4, "h100")]
    found = None
    for time in sorted(times):
        found = cost.counted(found, pods, at(time), CHART)
    last = max(times)
    assert found is not None
    once = cost.counted(None, pods, at(last), CHART)
    assert float(found.gpu_hours) == pytest.approx(float(once.gpu_hours), abs=1e-5)
    assert float(found.amount or 0) == pytest.approx(float(once.amount or 0), abs=1e-5)


def test_a_pod_that_was_evicted_before_it_ran_ended_when_its_condition_changed() -> None:
    raw = {
        "metadata": {"name": "p", "labels": {label.STAGE: "train", label.GPUS: "1"}},
        "status": {
            "phase": "Failed",
            "startTime": at(0).isoformat(),
            "conditions": [{"type": "DisruptionTarget", "status": "True", "lastTransitionTime": at(30).isoformat()}],
        },
    }
    assert cost.held(projections.pod(raw), None, at(9999)) == 30
