"""The figures of `make gateway-check` say what the controller's log says, and the page shows what was wrong."""

import datetime
from typing import Any

import pytest

from bench.routed import jobs, report, shares

BEGUN = datetime.datetime(2026, 11, 30, 10, tzinfo=datetime.UTC).timestamp()
PODS = {"10.0.0.1": "old", "10.0.0.2": "new"}


def entries(*parts: tuple[float, str, int]) -> list[dict[str, Any]]:
    """(seconds after the beginning, address, answers), as in Traefik's log."""
    return [
        {
            "StartUTC": datetime.datetime.fromtimestamp(BEGUN + at, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f789Z"),
            "ServiceAddr": f"{address}:8000",
        }
        for at, address, count in parts
        for _ in range(count)
    ]


def seen(*parts: tuple[float, str, int]) -> list[shares.Share]:
    changes = [(BEGUN, {"old": 100}), (BEGUN + 50, {"old": 80, "new": 20})]
    return shares.shares(changes, BEGUN + 100, entries(*parts), PODS)


def test_answers_count_for_the_weights_of_their_time_but_for_the_first_seconds() -> None:
    before, step = seen((10, "10.0.0.1", 30), (51, "10.0.0.1", 9), (60, "10.0.0.1", 80), (70, "10.0.0.2", 20))
    assert (before.answers, before.chance) == ({"old": 30}, 1)
    assert step.answers == {"old": 80, "new": 20}
    assert step.chance == pytest.approx(1)
    assert [one.seconds for one in (before, step)] == [50, 50]


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ([(60.0, "10.0.0.1", 160), (70.0, "10.0.0.2", 40)], True),
        ([(60.0, "10.0.0.1", 100), (70.0, "10.0.0.2", 100)], False),
        ([(60.0, "10.0.0.1", 200)], False),
        ([(60.0, "10.0.0.1", 160), (70.0, "10.0.0.2", 40), (70.0, "10.0.0.9", 1)], False),
        ([], False),
    ],
    ids=["by the weights", "others", "one release alone", "another server's answer", "no answer"],
)
def test_shares_are_wrong_where_chance_does_not_explain_them(parts: list[tuple[float, str, int]], found: bool) -> None:
    assert report.share("good", seen(*parts)[1]).passed is found


def share(**weights: int) -> shares.Share:
    return shares.Share(weights, 10, dict.fromkeys(weights, 5), 1)


def test_a_rollout_goes_through_its_steps_and_one_that_is_rolled_back_returns() -> None:
    steps = [step["weight"] for step in jobs.STEPS]
    there = [share(old=100), *(share(old=100 - int(step), new=int(step)) for step in steps), share(new=100)]
    back = [*there[:-1], share(old=100)]
    assert report.weights("good", there, steps).passed
    assert not report.weights("good", back, steps).passed
    assert not report.weights("good", [there[0], *there[2:]], steps).passed
    assert report.weights("bad", back, None).passed
    assert not report.weights("bad", there, None).passed


def test_a_stream_comes_in_parts() -> None:
    assert report.streamed([0.1, 0.2, 0.3, 0.4]).passed
    assert not report.streamed([0.4, 0.4, 0.4, 0.4]).passed
    assert report.streamed([]) == report.Finding("a streamed answer there", "0 events", False)


def test_a_comparison_is_shown_with_its_likelihood() -> None:
    found = report.look("good", 2, {"step": 1, "requests": 35, "findings": [{"p": 0.3, "seen": "errors: 1 of 35"}]})
    assert found.seen == "step 1, 35 requests of the new revision: errors: 1 of 35 (p = 0.3)"


def test_the_page_marks_what_was_wrong() -> None:
    page = report.page([report.Finding("requests", "500", True), report.Finding("shares", "a | b", False)])
    assert "| requests | 500 | yes |" in page
    assert "| shares | a \\| b | **no** |" in page
    assert "Traefik v3." in page
