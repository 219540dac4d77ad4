"""The page of the chaos rounds adds up runs, hides nothing, and is checked."""

import json
from pathlib import Path
from typing import Any

import pytest

from chaos import report

MACHINE = {"model": "a CPU", "cores": "2 cores"}


def run(name: str, **more: str) -> dict[str, Any]:
    fields = {"run": name, "seed": 7, "asked": 2, "size": 4, "machine": MACHINE, "kubernetes": "v1.36.3"}
    return {"is": "run", **fields, **more}


def struck(name: str, number: int, fault: str = "etcd", violations: tuple[str, ...] = ()) -> dict[str, Any]:
    fields = {"seed": f"7-{number}", "words": "SIGKILL", "at": 1.0, "seconds": 2.0, "jobs": {"plain-1": "Training"}}
    return {"is": "round", "run": name, "round": number, "fault": fault, **fields, "violations": list(violations)}


def life(name: str, violations: tuple[str, ...] = ()) -> dict[str, Any]:
    fields = {"job": "plain-1", "kind": "plain", "seconds": 30.0, "jobs": 3}
    return {"is": "job", "run": name, **fields, "violations": list(violations)}


def end(name: str, *left: str) -> dict[str, Any]:
    return {"is": "end", "run": name, "minutes": 3.0, "left": list(left)}


def test_several_runs_add_up() -> None:
    lines = [
        run("a"),
        struck("a", 1),
        struck("a", 2, "S3"),
        life("a"),
        end("a"),
        run("b"),
        struck("b", 1),
        life("b"),
        end("b"),
    ]
    page = report.page(lines)
    assert "**3 rounds**, in 2 runs" in page
    assert "| etcd | 2 | 2 | 2 | 2 | 0 |" in page
    assert "| all | 3 | 3 | | | 0 |" in page
    assert "| plain | Trains, checkpoints, is evaluated | 2 | 1.5 | 3.0 | 0 |" in page
    assert "No invariant was violated." in page


def test_an_interrupted_run_counts_its_completed_part_and_reports_it() -> None:
    assert "| a | 7 | none | 1 | stopped |" in report.page([run("a"), struck("a", 1)])


def test_runs_under_an_admission_policy_are_counted_apart() -> None:
    wrong = ("plain-1: it ended as without the fault: end is 'Failed'",)
    clean = [run("a"), struck("a", 1), life("a"), end("a")]
    mirrored = [run("b", policy="mirror"), struck("b", 1), struck("b", 2, violations=wrong), life("b", wrong), end("b")]
    page = report.page([*clean, *mirrored])
    rows = {line.split(" | ")[0]: line.split(" | ")[2:] for line in page.splitlines() if line.startswith("| ")}
    assert rows["| none"] == ["1", "1", "0", "0 |"]
    assert rows["| mirror"] == ["2", "1", "**1**", "**1** |"]
    assert "| b | 7 | mirror | 2 | 3 |" in page


def test_what_went_wrong_stands_on_the_page_with_its_rounds_and_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ("plain-1: it ended as without the fault: end is 'Failed'",)
    lines = [run("a"), struck("a", 1, violations=wrong), life("a", wrong), end("a", "Pod x")]
    page = report.page(lines)
    assert "| etcd | 1 | 1 | 2 | 2 | **1** |" in page
    notified = "- a: plain-1: it ended as without the fault: end is 'Failed'. Cause: "
    shown = notified + "{}. Its rounds: round 1 (etcd: SIGKILL, seed 7-1)"
    assert shown.format("not known yet") in page
    monkeypatch.setitem(report.CAUSES, ("a", "plain-1"), "a loose cable")
    assert shown.format("a loose cable") in report.page(lines)
    assert "- a: an orphan: Pod x" in page
    assert "No invariant" not in page


@pytest.mark.parametrize("doctored", ["rounds", "page"])
def test_a_page_that_is_not_what_was_seen_is_found(tmp_path: Path, doctored: str) -> None:
    lines = [run("a"), struck("a", 1), life("a"), end("a")]
    (tmp_path / report.ROUNDS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    report.write(tmp_path)
    assert report.again(tmp_path, check=True) == 0
    if doctored == "page":
        path = tmp_path / report.PAGE
        path.write_text(path.read_text().replace("| etcd | 1", "| etcd | 200"))
    else:
        with (tmp_path / report.ROUNDS).open("a") as rounds:
            rounds.write(json.dumps(struck("a", 2)) + "\n")
    assert report.again(tmp_path, check=True) == 1
