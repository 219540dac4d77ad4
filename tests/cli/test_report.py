"""`finetune report`: results.json as tables, and its gates as the exit code."""

import json
import pathlib
import re
from typing import Any

import pytest

from finetune_api import job as contract
from finetune_api import results, status
from finetune_cli import __main__, answer


def made(*, passed: bool) -> results.Results:
    """What an evaluation would have found."""
    tuned, base = contract.Contender.TUNED, contract.Contender.BASE
    match = contract.Metric.EXACT_MATCH
    gate = status.GateResult(metric=match, requirement="ExactMatch at least 0.8", observed="0.9250", passed=passed)
    return results.Results(
        namespace="ml",
        name="tiny",
        revision="r1",
        base_model="tiny-base",
        served_model_name="tiny",
        rank=8,
        adapter="0" * 64,
        intent=contract.Intent(),
        evaluation=status.Evaluation(passed=passed, score="0.9250", examples=40, gates=[gate]),
        values=[
            results.Value(metric=match, contender=tuned, value=0.925, low=0.8, high=0.97, examples=40),
            results.Value(metric=match, contender=base, value=0.1, low=0.03, high=0.23, examples=40),
        ],
        comparisons=[
            results.Comparison(metric=match, over=base, gain=0.825, low=0.7, high=0.9, p_value=0.0001, examples=40)
        ],
        tokens=[
            results.Tokens(contender=tuned, prompt=20, answer=8),
            results.Tokens(contender=base, prompt=20, answer=16),
        ],
        seconds=1.0,
    )


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A revision's folder with an evaluation, a baseline and a report."""
    for name in ("evaluation/e1", "baseline/e1"):
        (tmp_path / "r1" / name).mkdir(parents=True)
    (tmp_path / "r1" / "baseline" / "e1" / "results.json").write_text("{}")
    (tmp_path / "r1" / "report.html").write_text("<!doctype html>")
    write(tmp_path, made(passed=True).wire())
    return tmp_path


def write(folder: pathlib.Path, document: dict[str, Any]) -> None:
    (folder / "r1" / "evaluation" / "e1" / "results.json").write_text(json.dumps(document))


@pytest.mark.parametrize("place", ["", "r1", "r1/evaluation", "r1/evaluation/e1/results.json"])
def test_any_folder_above_the_results_will_do(folder: pathlib.Path, place: str, finetune) -> None:
    code, found = finetune("report", folder / place)
    assert (code, found["passed"]) == (0, True)
    assert found["report"] == str(folder / "r1" / "report.html")
    assert [one["contender"] for one in found["contenders"]] == ["Tuned", "Base"]


def test_a_gate_that_failed_is_the_exit_code(folder: pathlib.Path, finetune) -> None:
    write(folder, made(passed=False).wire())
    code, found = finetune("report", folder)
    assert (code, found["passed"]) == (answer.Exit.GATES, False)
    assert found["message"] == "0 of 1 gates passed, on 40 test examples"


def test_the_tables_have_contenders_intervals_tokens_and_gates(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main(["report", str(folder)]) == 0
    printed = capsys.readouterr().out
    words = [
        "ExactMatch at least 0.8",
        "passed",
        "0.9250 0.800 to 0.970",
        "0.1000 0.030 to 0.230",
        "prompt tokens",
        "Tuned",
        "Base",
    ]
    assert [word for word in words if word not in printed] == []
    assert f"report: {folder}/r1/report.html" in printed


def test_structured_decoding_is_a_column_or_its_obstacle_a_line(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str], finetune
) -> None:
    found, problem = made(passed=True), 'Structured: answers cannot be held to evaluation.outputSchema: keys ["not"]'
    value = found.values[1].model_copy(update={"contender": contract.Contender.STRUCTURED, "value": 0.4321})
    write(folder, found.model_copy(update={"values": [*found.values, value]}).wire())
    assert __main__.main(["report", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"Metric +Base +Structured +Tuned", printed)
    assert "0.4321" in printed
    write(folder, found.model_copy(update={"left_out": [problem]}).wire())
    assert __main__.main(["report", str(folder)]) == 0
    assert f"left out: {problem}" in capsys.readouterr().out
    assert finetune("report", folder)[1]["leftOut"] == [problem]


def test_a_judges_preferences_are_one_line(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    rate, base = contract.Metric.JUDGE_WIN_RATE, contract.Contender.BASE
    won = results.Comparison(metric=rate, over=base, gain=0.4, low=0.3, high=0.45, p_value=0.0001, examples=40)
    write(folder, made(passed=True).model_copy(update={"comparisons": [won]}).wire())
    assert __main__.main(["report", str(folder)]) == 0
    assert "JudgeWinRate over Base: 0.9000 (0.800 to 0.950), 40 questions" in capsys.readouterr().out


def test_benchmarks_are_a_table_of_their_own(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str], finetune
) -> None:
    base, tuned = results.Score(value=0.43, low=0.37, high=0.5), results.Score(value=0.36)
    common = {"metric": "acc", "few_shot": 0, "examples": 200}
    listed = [
        results.Benchmark(
            task="boolq", base=base, tuned=tuned, gain=-0.07, low=-0.11, high=-0.03, p_value=0.001, **common
        ),
        results.Benchmark(task="wmt", filter="strict", base=results.Score(), tuned=tuned, **common),
    ]
    harness = results.Harness(release="0.4.13", chat_template=False, benchmarks=listed)
    write(folder, made(passed=True).model_copy(update={"harness": harness}).wire())
    assert __main__.main(["report", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"boolq +acc +0.4300 0.370 to 0.500 +0.3600 +-0.0700 -0.110 to -0.030 +0.001 +200", printed)
    assert re.search(r"wmt +acc \(strict\) +- +0.3600 +- +- +200", printed)
    assert finetune("report", folder)[1]["benchmarks"][0]["pValue"] == 0.001


def test_results_of_an_older_version_still_have_gates_and_metrics(folder: pathlib.Path, finetune) -> None:
    value = status.MetricValue(name=contract.Metric.EXACT_MATCH, contender=contract.Contender.TUNED, value="0.9250")
    evaluation = made(passed=True).evaluation.model_copy(update={"metrics": [value]})
    write(folder, {"evaluation": evaluation.wire(), "adapter": "0", "seconds": 1.0})
    code, found = finetune("report", folder)
    assert code == 0
    assert found["contenders"][0]["value"] == 0.925


@pytest.mark.parametrize("what", ["nothing", "another file"])
def test_a_folder_without_results_says_what_to_name(tmp_path: pathlib.Path, what: str, finetune) -> None:
    (tmp_path / "evaluation" / "e1").mkdir(parents=True)
    if what == "another file":
        (tmp_path / "evaluation" / "e1" / "results.json").write_text('{"evaluation": {"score": 1}}')
    code, found = finetune("report", tmp_path)
    assert code == answer.Exit.INVALID
    assert "results.json" in found["problems"][0]["message"] + found["problems"][0]["file"]


def test_a_job_that_was_not_run_is_reported(job, finetune) -> None:
    code, found = finetune("report", job())
    assert code == answer.Exit.INVALID
    assert "has no evaluation yet" in found["problems"][0]["message"]
