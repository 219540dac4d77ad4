"""The benchmark of judgement itself: its tasks, and what a row says. Nothing is trained."""

import dataclasses
import json
import pathlib
from typing import Any

import pytest
from tests.bench.judgement import __main__, report, tasks

from finetune_cli import jobs


@pytest.mark.parametrize("task", tasks.TASKS, ids=lambda task: task.name)
def test_a_task_is_a_job_with_enough_different_rows(task: tasks.Task, tmp_path: pathlib.Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    file = tasks.write(task, 320, str(model), tmp_path / task.name, 1.0)
    wanted = jobs.read(file)
    assert [gate.over for gate in wanted.spec.evaluation.gates or []] == [None, "BestBaseline"]
    rows = [json.loads(line) for line in (tmp_path / task.name / "data.jsonl").read_text().splitlines()]
    assert len({row["messages"][-2]["content"] for row in rows}) >= 300
    if task.name.startswith("intents"):
        labels = int(task.name.removeprefix("intents"))
        assert 0.9 * labels <= len({row["messages"][-1]["content"] for row in rows}) <= labels


def answer(tuned: float, gain: float, p_value: float, passed: bool) -> dict[str, Any]:
    values = {"Base": 0.1, "Retrieved": tuned - gain, "Tuned": tuned}
    over = {"gain": gain, "low": gain - 0.1, "high": gain + 0.1, "pValue": p_value, "examples": 40}
    return {
        "passed": passed,
        "bestBaseline": "Retrieved",
        "verdict": "Recommended",
        "contenders": [
            {"metric": "ExactMatch", "contender": who, "value": value, "examples": 40} for who, value in values.items()
        ],
        "comparisons": [{"metric": "ExactMatch", "over": "Retrieved", **over}],
        "gates": [{"requirement": "ExactMatch better than the best baseline", "observed": "as seen", "passed": passed}],
        "stages": [{"stage": "train", "seconds": 60.0}],
        "tokens": [{"contender": "Retrieved", "prompt": 600.0}, {"contender": "Tuned", "prompt": 30.0}],
    }


@pytest.mark.parametrize(
    "given, won, honest",
    [
        (answer(0.9, 0.2, 0.001, True), True, True),
        (answer(0.9, 0.02, 0.4, False), False, True),
        (answer(0.9, 0.02, 0.4, True), False, False),
        ({"message": "no training is needed", "baseline": {"sufficient": "RAG"}}, False, True),
    ],
    ids=["won", "not won, and it says so", "not won, and it serves", "ended before"],
)
def test_a_row_shows_a_product_that_praises_what_has_not_won(
    given: dict[str, Any], won: bool, honest: bool, tmp_path: pathlib.Path
) -> None:
    row = report.of(given, tasks.BY_NAME["intents10"], 100, 1.0, "make bench-judgement", "a machine")
    assert (row.won, row.honest) == (won, honest)
    report.write({row.task: row}, tmp_path)
    again = report.read(tmp_path)
    assert again == {row.task: row}
    assert __main__.check(again, tmp_path) == 0
    (tmp_path / report.PAGE).write_text("something else")
    assert __main__.check(again, tmp_path) == 1
    assert ("has not won" in report.page([row])) is not honest


def test_a_row_of_a_larger_job_stays() -> None:
    small, large = (
        report.of(answer(0.9, 0.2, 0.001, True), tasks.BY_NAME["style"], rows, 3.0, "make", "a machine")
        for rows in (80, 600)
    )
    assert report.with_row({"style": large}, small) == {"style": large}
    assert report.with_row({"style": small}, large) == {"style": large}
    again = dataclasses.replace(small, says="again")
    assert report.with_row({"style": small}, again) == {"style": again}
