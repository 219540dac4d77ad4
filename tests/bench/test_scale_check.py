"""The findings of `make scale-check` say what was seen, and its autoscaler is that of the examples."""

import pytest
import yaml

from bench.scale import adapter, aggregated, keda, report, watch

SCALERS: list[tuple[aggregated.Autoscaler, str]] = [(adapter, "hpa.yaml"), (keda, "keda.yaml")]


def seen(*looks: tuple[float, int], **changes: object) -> list[tuple[float, watch.Look]]:
    """(seconds, replicas); each change of replicas is an edit."""
    found, generation = list[tuple[float, watch.Look]](), 1
    for at, count in looks:
        generation += bool(found) and found[-1][1].wanted != count
        look = {"wanted": count, "servers": count, "ready": count, "generation": generation, "asleep": False}
        found.append((1e9 + at, watch.Look(**look | {"active": "True (ValidMetricFound)"} | changes)))  # type: ignore[arg-type]
    return found


def test_the_course_has_each_change_of_replicas() -> None:
    assert report.course(seen((0, 1), (5, 1), (9, 2), (130, 3))) == "1 → 2 (after 9 s) → 3 (after 130 s)"


@pytest.mark.parametrize(
    ("looks", "passed"),
    [
        ([(0.0, 1), (9.0, 2), (130.0, 3)], True),
        ([(0.0, 1), (9.0, 3)], False),
        ([(0.0, 1), (9.0, 2), (30.0, 3)], False),
        ([(0.0, 1), (9.0, 2), (130.0, 3), (140.0, 2)], False),
        ([(0.0, 1)], False),
    ],
    ids=["one after the other", "two at once", "too soon", "back again", "not at all"],
)
def test_servers_are_added_one_by_one_with_pauses(looks: list[tuple[float, int]], passed: bool) -> None:
    assert report.scaled("clients", seen(*looks), (1, 2, 3), 100).passed is passed


def test_servers_are_removed_in_any_steps_but_never_added() -> None:
    assert report.lowered("", seen((0, 3), (84, 2), (90, 1)), 3, 1).passed
    for looks in ([(0, 3), (84, 2)], [(0, 3), (84, 2), (90, 3), (99, 1)], [(0, 2), (90, 1)]):
        assert not report.lowered("", seen(*looks), 3, 1).passed
    assert not report.lowered("", seen((0, 3), (90, 1), servers=3), 3, 1).passed


def test_an_edit_or_a_deployment_that_does_not_follow_is_no_peace() -> None:
    assert report.steady("", seen((0, 3), (50, 3)), 60).passed
    assert not report.steady("", seen((0, 3), (50, 2)), 60).passed
    assert not report.steady("", seen((0, 3), (50, 3), servers=2), 60).passed


def test_who_wrote_the_replicas_is_counted() -> None:
    assert report.untouched(3, {"KEDA": 0}, 3).passed
    assert not report.untouched(3, {"KEDA": 1}, 3).passed
    assert not report.untouched(2, {"KEDA": 1}, 3).passed
    assert not report.untouched(4, {"KEDA": 0}, 3).passed


def test_a_pool_sleeps_without_servers_while_its_autoscaler_is_not_active() -> None:
    away = {"asleep": True, "servers": 0, "active": "False (FailedGetPodsMetric)"}
    assert report.asleep(seen((0, 1), **away), 120).passed
    for change in ({"servers": 1}, {"asleep": False}, {"active": "True (ValidMetricFound)"}):
        assert not report.asleep(seen((0, 1), **away | change), 120).passed


def test_the_page_marks_what_was_wrong() -> None:
    page = report.page(
        [report.Finding("load", "a | b", False)], {"Kubernetes": "v1", "Prometheus": "v2"}, "make it", "About."
    )
    assert "| load | a \\| b | **no** |" in page
    assert "Kubernetes v1, Prometheus v2; " in page
    assert "Written by `make it`." in page


def test_the_autoscaler_is_the_examples_or_has_a_tenth_of_its_times() -> None:
    for scaler, file in SCALERS:
        wanted = yaml.safe_load((aggregated.EXAMPLES / file).read_text())
        assert scaler.autoscaler(1, "http://prometheus-operated.monitoring.svc:9090") == wanted
        short = str(scaler.autoscaler(0.1, "http://127.0.0.1:1"))
        assert "'stabilizationWindowSeconds': 90" in short
        assert "'periodSeconds': 12" in short
        assert "monitoring.svc" not in short


def test_the_hpa_that_is_watched_is_the_examples_or_the_one_that_keda_makes() -> None:
    for scaler, _ in SCALERS:
        made = scaler.autoscaler(1, "")
        assert {"ScaledObject": "keda-hpa-"}.get(made["kind"], "") + made["metadata"]["name"] == scaler.HPA


def test_the_version_is_the_locked_one() -> None:
    assert adapter.version().startswith("v0.")
    assert keda.version().startswith("v2.")
