"""The evaluation's benchmark itself: what it asks, how it measures, what it writes. No timing is asserted."""

import argparse
import pathlib

import pytest
from tests.bench.evaluation import __main__, report, side, workloads
from tests.bench.trainer import machine
from tests.trainer import tiny


def test_questions_share_what_they_promise() -> None:
    def encode(turns: workloads.Turns) -> list[int]:
        return list("\n".join(turn["content"] for turn in turns).encode())

    for workload in workloads.ALL:
        asked = workloads.prompts(workload, 96, encode)
        assert len(set(map(tuple, asked))) == 96
        assert workloads.shared(asked) >= len(workload.system)
    assert workloads.shared(workloads.prompts(workloads.BY_NAME["shared-prefix"], 96, encode)) > 1000


def test_an_answer_ends_with_its_first_stop_token() -> None:
    assert side._cut([5, 6, 2, 2], {2}) == [5, 6, 2]
    assert side._cut([5, 6], {2}) == [5, 6]


@pytest.mark.slow
def test_sides_give_the_same_answers_and_the_page_is_of_them(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.make_tiny_model(tmp_path / "base")
    monkeypatch.setattr(machine, "rate", lambda: 1.0)
    sides = [side.OURS, side.BATCHED]
    options = argparse.Namespace(workload=["short"], side=sides, repetitions=1, prompts=3, limit=4, adapter=True)
    found = __main__.measure(options, tmp_path / "base", tmp_path / "out")
    assert [(run.side, run.prompts) for run in found.runs] == [(one, 3) for one in sides]
    assert all(run.tokens > 0 and run.seconds > 0 for run in found.runs)
    assert report.read(tmp_path / "out") == found
    assert __main__.again(tmp_path / "out", check=True) == 0
    page = tmp_path / "out" / report.PAGE
    page.write_text(page.read_text().replace("| short |", "| long |"))
    assert __main__.again(tmp_path / "out", check=True) == 1


def test_the_ratio_is_of_runs_of_one_repetition() -> None:
    here = machine.Machine("a processor", 2, 2**34, [], "Linux", "3", 1.0)
    found = report.Results(here, {}, "make it", 8, {"short": report.Asked(2, 0, 3, 4)})
    for repetition, (mine, theirs) in enumerate([(1.0, 1.2), (2.0, 2.6), (1.0, 9.0)]):
        found.runs.append(report.Run("short", side.OURS, repetition, 2, 10, mine, 2**20))
        found.runs.append(report.Run("short", side.BATCHED, repetition, 2, 10, theirs, 2**20))
    assert report.ratio(found, "short", side.BATCHED) == 1.3
    assert "short: 1.30x instead of 1.5x" in report.page(found)
