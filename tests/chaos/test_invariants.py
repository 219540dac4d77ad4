"""The checker of the chaos rounds can fail: doctored stories, each with one thing wrong, and the rule that finds it."""

import dataclasses
import datetime
from typing import Any

import pytest

from chaos import history, invariants

NOON = datetime.datetime(2026, 5, 4, 12, 0, 0, tzinfo=datetime.UTC)
OUTCOME = history.Outcome("Complete: Succeeded", "r1", "ab" * 32, {"Tuned Loss": "1.5"}, {"Loss at most 50": True})


def later(seconds: float) -> datetime.datetime:
    return NOON + datetime.timedelta(seconds=seconds)


def job(uid: str, attempt: int = 1, stage: str = "train") -> history.Job:
    return history.Job(uid, f"{stage}-{attempt}", stage, "r1", attempt)


def pod(uid: str, begin: float, end: float | None, node: int = 0) -> history.Pod:
    return history.Pod(uid, f"job-of-{uid}", "train", node, later(begin), None if end is None else later(end))


def status(end: str = "", generation: int = 1, observed: int | None = None) -> history.Status:
    return history.Status(generation, generation if observed is None else observed, "Training", "r1", end)


def story(**changes: Any) -> history.Story:
    """A job that was struck once and went well all the same."""
    whole = history.Story(
        name="plain-1",
        expected=OUTCOME,
        outcome=OUTCOME,
        jobs=(job("a"), job("b", attempt=2), job("c", stage="evaluate")),
        created={"train-1": 1, "train-2": 1, "evaluate-1": 1},
        pods=(pod("a", 0, 10), pod("b", 12, 30)),
        statuses=(status(), status("Complete: Succeeded")),
        struck=("SIGKILL of train attempt 1",),
        killed=("SIGKILL of train attempt 1",),
    )
    return dataclasses.replace(whole, **changes)


def rules(**changes: Any) -> list[str]:
    return [violation.rule for violation in invariants.violations(story(**changes))]


def test_a_job_that_went_well_violates_nothing() -> None:
    assert invariants.violations(story()) == []


def test_two_training_jobs_of_one_attempt_are_found() -> None:
    found = invariants.violations(story(jobs=(job("a"), job("b")), created={}))
    assert [str(one) for one in found] == [
        "plain-1: one job for each attempt: 2 Jobs of train attempt 1 of revision r1: ['train-1', 'train-1']"
    ]


def test_a_job_that_was_created_twice_is_found_in_the_audit_log_though_no_watch_saw_the_first() -> None:
    assert rules(created={"train-1": 2}) == ["one job for each attempt"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("end", "Failed: TrainerError"),
        ("revision", "r2"),
        ("weights", "cd" * 32),
        ("metrics", {"Tuned Loss": "1.6"}),
        ("gates", {"Loss at most 50": False}),
        ("serves", "r0"),
    ],
)
def test_another_outcome_than_without_faults_is_found(field: str, value: Any) -> None:
    found = invariants.violations(story(outcome=dataclasses.replace(OUTCOME, **{field: value})))
    assert [one.rule for one in found] == ["it ended as without the fault"]
    assert str(value) in found[0].seen


def test_a_job_that_does_not_end_is_found() -> None:
    assert rules(outcome=None, statuses=(status(),)) == ["it ended as without the fault"]


@pytest.mark.parametrize("first_ended", [None, 13.0])
def test_two_pods_that_train_at_once_are_found(first_ended: float | None) -> None:
    assert rules(pods=(pod("b", 12, 30), pod("a", 0, first_ended))) == ["one pod trains at a time"]


def test_two_pods_of_one_attempt_on_two_nodes_may_train_at_once() -> None:
    assert rules(pods=(pod("a", 0, 10), pod("b", 1, 11, node=1))) == []


def test_an_attempt_that_no_strike_at_its_pods_explains_is_found() -> None:
    assert rules(struck=()) == ["attempts have causes"]
    assert rules(struck=(), resumed=1) == []


def test_a_failure_that_no_kill_explains_is_found() -> None:
    failed = dataclasses.replace(status(), failures=1, failure="exit code 1")
    statuses = (status(), failed, status("Complete: Succeeded"))
    assert rules(statuses=statuses) == []
    assert rules(statuses=statuses, struck=("evicted",), killed=()) == ["attempts have causes"]


def test_an_end_that_is_taken_back_is_found() -> None:
    assert rules(statuses=(status("Complete: Succeeded"), status())) == ["an end is final"]
    assert rules(statuses=(status("Failed: TrainerError"), status("Complete: Succeeded"))) == ["an end is final"]


def test_an_edit_may_take_an_end_back() -> None:
    ended = status("Complete: Succeeded")
    assert (
        rules(statuses=(ended, status("Complete: Succeeded", 2, 1), status("", 2), status("Complete: Succeeded", 2)))
        == []
    )


def test_lost_artifacts_and_orphans_are_found() -> None:
    assert rules(lost=("adapter/weights is gone",), left=("Pod a",)) == ["nothing is lost", "nothing is left"]


def test_a_status_of_the_api_server_becomes_a_fact() -> None:
    raw = {
        "metadata": {"generation": 3},
        "status": {
            "observedGeneration": 2,
            "phase": "Failed",
            "revision": "r1",
            "conditions": [{"type": "Failed", "status": "True", "reason": "EvaluationBelowGate"}],
        },
    }
    assert history.status(raw) == history.Status(3, 2, "Failed", "r1", "Failed: EvaluationBelowGate")
