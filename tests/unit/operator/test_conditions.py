"""Conditions, the phase that is made of them, and which of their flips are worth an event."""

import datetime

import pytest

from finetune_api import status
from finetune_api.reasons import Condition, Phase, Reason
from finetune_operator import conditions

NOW = datetime.datetime(2026, 5, 4, 12, 0, 0, 250_000, tzinfo=datetime.UTC)
LATER = NOW + datetime.timedelta(minutes=1)


def state(*found: tuple[Condition, str, Reason]) -> status.Status:
    made = status.Status()
    for kind, value, reason in found:
        made = conditions.put(made, kind, value, reason, "so it is", 1, NOW)
    return made


def true(*kinds: Condition) -> list[tuple[Condition, str, Reason]]:
    return [(kind, "True", Reason.SUCCEEDED) for kind in kinds]


def test_the_transition_time_moves_only_when_the_value_flips() -> None:
    first = state((Condition.READY, "False", Reason.WAITING))
    same = conditions.put(first, Condition.READY, "False", Reason.RUNNING, "other words", 2, LATER)
    flipped = conditions.put(same, Condition.READY, "True", Reason.SERVING, "good", 3, LATER)
    times = [conditions.get(s, Condition.READY).last_transition_time for s in (first, same, flipped)]
    assert times == [NOW.replace(microsecond=0), NOW.replace(microsecond=0), LATER.replace(microsecond=0)]
    assert [conditions.get(s, Condition.READY).observed_generation for s in (first, same, flipped)] == [1, 2, 3]


def test_conditions_stand_in_one_order_whatever_the_order_of_writing() -> None:
    one = state(*true(Condition.READY, Condition.ACCEPTED, Condition.TRAINED))
    assert [c.type for c in one.conditions] == ["Accepted", "Trained", "Ready"]


def test_a_message_is_cut_to_what_people_read() -> None:
    long = conditions.put(status.Status(), Condition.READY, "False", Reason.WAITING, "x" * 5000, 1, NOW)
    assert len(conditions.get(long, Condition.READY).message) == 1024


A, P, T, E, D = (
    Condition.ACCEPTED, Condition.PREFLIGHT_PASSED, Condition.TRAINED, Condition.EVALUATED, Condition.DEPLOYED,
)  # fmt: skip


@pytest.mark.parametrize(
    "found, phase",
    [
        ([], Phase.PENDING),
        ([(A, "False", Reason.BASE_MODEL_NOT_FOUND)], Phase.PENDING),
        (true(A), Phase.PREFLIGHT),
        ([*true(A), (P, "Unknown", Reason.UNSCHEDULABLE)], Phase.PREFLIGHT),
        (true(A, P), Phase.QUEUED),
        ([*true(A, P), (T, "Unknown", Reason.WAITING)], Phase.QUEUED),
        ([*true(A, P), (T, "Unknown", Reason.UNSCHEDULABLE)], Phase.QUEUED),
        ([*true(A, P), (T, "Unknown", Reason.RUNNING)], Phase.TRAINING),
        ([*true(A, P), (T, "Unknown", Reason.RETRYING)], Phase.TRAINING),
        (true(A, P, T), Phase.EVALUATING),
        (true(A, P, T, E), Phase.DEPLOYING),
        (true(A, P, T, E, D, Condition.READY), Phase.READY),
        (true(A, P, T, E, Condition.COMPLETE, Condition.READY), Phase.COMPLETE),
        ([*true(A), (Condition.FAILED, "True", Reason.DATASET_INVALID)], Phase.FAILED),
        ([(A, "False", Reason.INVALID_SPEC), (Condition.STALLED, "True", Reason.INVALID_SPEC)], Phase.FAILED),
        (true(A, P, Condition.SUSPENDED), Phase.SUSPENDED),
        ([*true(A), (Condition.SUSPENDED, "False", Reason.RESUMED)], Phase.PREFLIGHT),
    ],
)
def test_the_phase_is_a_function_of_the_conditions(found: list, phase: Phase) -> None:
    assert conditions.phase(state(*found)) == phase


@pytest.mark.parametrize(
    "before, after, notified",
    [
        ([], true(A), []),
        ([(A, "False", Reason.BASE_MODEL_NOT_FOUND)], true(A), ["Accepted"]),
        ([], true(P), ["PreflightPassed"]),
        ([(T, "Unknown", Reason.WAITING)], [(T, "Unknown", Reason.RUNNING)], []),
        ([(T, "Unknown", Reason.UNSCHEDULABLE)], [(T, "Unknown", Reason.RUNNING)], ["Trained"]),
        ([(T, "Unknown", Reason.UNSCHEDULABLE)], [(T, "Unknown", Reason.WAITING)], []),
        ([], [(D, "False", Reason.DISABLED)], []),
        ([(Condition.READY, "False", Reason.RUNNING)], true(Condition.COMPLETE, Condition.READY), ["Complete"]),
        ([(Condition.READY, "False", Reason.RUNNING)], true(D, Condition.READY), ["Deployed"]),
        (true(A), true(A), []),
        ([(T, "Unknown", Reason.WAITING)], [(T, "Unknown", Reason.UNSCHEDULABLE)], ["Trained"]),
        ([(T, "Unknown", Reason.UNSCHEDULABLE)], [(T, "Unknown", Reason.UNSCHEDULABLE)], []),
        ([], [(Condition.READY, "False", Reason.WAITING)], []),
        (
            [(Condition.READY, "False", Reason.WAITING)],
            [(Condition.READY, "False", Reason.RUNNING)],
            [],
        ),
        ([(Condition.READY, "False", Reason.WAITING)], true(Condition.READY), ["Ready"]),
        (true(Condition.READY), [(Condition.READY, "False", Reason.SERVING)], ["Ready"]),
        ([], [(Condition.RECONCILING, "True", Reason.WAITING)], []),
        ([], [(Condition.STALLED, "True", Reason.DATASET_INVALID)], []),
        (true(T), [], []),
    ],
)
def test_a_change_of_a_condition_gets_one_event(before: list, after: list, notified: list[str]) -> None:
    assert [c.type for c in conditions.flips(state(*before), state(*after))] == notified


def test_a_failure_gets_one_event_and_none_for_its_stage() -> None:
    after = state((E, "False", Reason.EVALUATION_BELOW_GATE), (Condition.FAILED, "True", Reason.EVALUATION_BELOW_GATE))
    assert [c.type for c in conditions.flips(status.Status(), after)] == ["Failed"]


def test_waiting_for_a_pod_is_no_news_and_what_stands_in_its_way_is() -> None:
    waits, hindered = state((T, "Unknown", Reason.WAITING)), state((T, "Unknown", Reason.UNSCHEDULABLE))
    assert conditions.flips(status.Status(), waits) == []
    assert [c.reason for c in conditions.flips(waits, hindered)] == [Reason.UNSCHEDULABLE]


def test_a_new_message_for_the_same_reason_gets_no_event() -> None:
    old = state((T, "Unknown", Reason.UNSCHEDULABLE))
    new = conditions.put(old, T, "Unknown", Reason.UNSCHEDULABLE, "4 nodes now", 1, LATER)
    assert conditions.flips(old, new) == []


@pytest.mark.parametrize(
    "kind, value, reason, bad",
    [
        (T, "Unknown", Reason.UNSCHEDULABLE, True),
        (T, "Unknown", Reason.RETRYING, True),
        (T, "Unknown", Reason.WAITING, False),
        (T, "Unknown", Reason.RUNNING, False),
        (D, "Unknown", Reason.STARTING, False),
        (D, "False", Reason.DISABLED, False),
        (E, "False", Reason.EVALUATION_BELOW_GATE, True),
        (Condition.FAILED, "True", Reason.EVALUATION_BELOW_GATE, True),
        (Condition.SUSPENDED, "True", Reason.SUSPENDED, False),
        (Condition.SUSPENDED, "False", Reason.RESUMED, False),
        (Condition.READY, "True", Reason.SERVING, False),
        (D, "True", Reason.ROLLED_BACK, True),
    ],
)
def test_problems_are_warnings_and_progress_is_not(kind: Condition, value: str, reason: Reason, bad: bool) -> None:
    assert conditions.is_bad(conditions.get(state((kind, value, reason)), kind)) is bad
