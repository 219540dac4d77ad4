"""Every verb ends in words and an exit code: a mistake is one line, a defect of ours says so, and nobody sees a traceback."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.cli import conftest
from tests.trainer import tiny

from finetune_cli import __main__, answer
from finetune_trainer.__main__ import STAGES
from finetune_trainer.__main__ import main as trainer
from finetune_trainer.process import errors, log, signals


def message(found: Any) -> str:
    [problem] = found["problems"]
    return " ".join(str(problem.get(key, "")) for key in ("file", "path", "message"))


# -- a defect of ours --


def broken(*_: Any) -> Any:
    return {}["the key"]


@pytest.mark.parametrize("verb", list(__main__.VERBS))
def test_an_internal_error_of_any_verb_is_a_defect_to_report(
    verb: answer.Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__main__.VERBS, verb, (broken, "breaks"))
    assert __main__.main([verb, "x"]) == answer.Exit.DEFECT
    err = capsys.readouterr().err
    assert all(part in err for part in ("KeyError", "test_ends.py:", "defect", errors.REPORT, errors.version()))
    assert "Traceback" not in err
    assert __main__.main([verb, "x", "--debug"]) == answer.Exit.DEFECT
    assert "Traceback" in capsys.readouterr().err
    assert __main__.main([verb, "x", "--output", "json"]) == answer.Exit.DEFECT
    assert json.loads(capsys.readouterr().out)["exitCode"] == answer.Exit.DEFECT


@pytest.mark.parametrize("stage", list(STAGES))
def test_an_internal_error_of_any_stage_is_a_defect_to_report(
    stage: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "install", lambda: None)
    monkeypatch.setattr(log, "configure", lambda: None)
    monkeypatch.setenv("FINETUNE_TERMINATION_PATH", str(tmp_path / "termination"))
    monkeypatch.setitem(STAGES, stage, (broken, "breaks"))
    (tmp_path / "base").mkdir()
    file = tiny.run_file(tmp_path)
    needed = {"verify": ["--endpoint", "x", "--canary", "x"], "fetch": ["--adapter", "x", "--sha256", "x"]}
    assert trainer([stage, "--run", str(file), *needed.get(stage, [])]) == 1
    found = json.loads((tmp_path / "termination").read_text())
    assert found["reason"] == "TrainerError"
    assert all(part in found["message"] for part in ("KeyError", "defect", errors.REPORT))


# -- files and folders --


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """What root may read, nobody may not."""
    before = os.geteuid()
    if not before:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_data_that_may_not_be_read_are_named(what: str, finetune) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder).chmod(0o755)
        file = pathlib.Path(folder, "data", "train.jsonl")
        file.parent.mkdir()
        file.write_text(tiny.jsonl(tiny.examples(4)))
        for pattern in (file, file.parent / "*.jsonl"):
            assert finetune("validate", pattern)[0] == 0
        (file if what == "file" else file.parent).chmod(0)
        for pattern in (file, file.parent / "*.jsonl"):
            with as_nobody():
                code, found = finetune("validate", pattern)
            assert code == answer.Exit.INVALID
            assert "Permission denied" in message(found)
            assert str(file.parent) in message(found)


@pytest.mark.parametrize(
    "word, expected",
    [
        ("n" * 300 + ".jsonl", "matches no file"),
        ("trian.jsonl", "did you mean"),
        ("data", "is a folder, not a file; write"),
        ("data/", "is a folder, not a file; write"),
        ("nowhere/train.jsonl", "is empty, or does not exist"),
    ],
)
def test_a_name_that_is_no_file_is_answered_with_what_is_there(
    word: str, expected: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, finetune
) -> None:
    (tmp_path / "data").mkdir()
    for file in ("train.jsonl", "data/train.jsonl"):
        (tmp_path / file).write_text(tiny.jsonl(tiny.examples(4)))
    monkeypatch.chdir(tmp_path)
    code, found = finetune("validate", word)
    assert code == answer.Exit.INVALID
    assert expected in message(found)
    if expected == "did you mean":
        assert f"{tmp_path}/train.jsonl" in message(found)


def test_a_typo_does_not_list_the_tree_below_it(tmp_path: pathlib.Path, finetune) -> None:
    for folder in range(60):
        (tmp_path / "a" / str(folder)).mkdir(parents=True)
        for file in range(200):
            (tmp_path / "a" / str(folder) / str(file)).touch()
    (tmp_path / "train.jsonl").write_text(tiny.jsonl(tiny.examples(4)))
    begun = time.monotonic()
    for word in ("trian.jsonl", "other/*.jsonl", "*.parquet"):
        assert finetune("validate", tmp_path / word)[0] == answer.Exit.INVALID
    assert finetune("validate", tmp_path / "*.jsonl")[0] == 0
    assert time.monotonic() - begun < 10


def test_an_output_below_a_file_is_named_before_anything_runs(job, finetune) -> None:
    file = job(storage={"output": "afile"})
    (file.parent / "afile").touch()
    code, _, err = ended(conftest.start("run", file))
    assert code == answer.Exit.INVALID
    assert "storage.output cannot be written" in err
    assert "afile is a file" in err


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, out + err


def test_a_work_folder_that_cannot_be_made_is_named(job, finetune) -> None:
    file = job()
    (file.parent / "afile").touch()
    code, found = finetune("run", file, "--work", file.parent / "afile" / "work")
    assert code == answer.Exit.INVALID
    assert "--work" in message(found)


# -- results --


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "is empty"),
        (b'{"evaluation": {"passed"', "cut off or damaged"),
        (b"\x7fELF\xed\x01", "cut off or damaged"),
        (b"[1, 2]", "expected an object, found a list"),
        (b'{"evaluation": 5}', "fields of its evaluation differ"),
        (b'{"evaluation": null}', "fields of its evaluation differ"),
        (b"[" * 100_000, "cut off or damaged"),
        (None, "has no results.json"),
    ],
)
def test_results_that_cannot_be_read_are_one_line(
    data: bytes | None, words: str, tmp_path: pathlib.Path, finetune
) -> None:
    if data is not None:
        (tmp_path / "results.json").write_bytes(data)
    code, found = finetune("report", tmp_path)
    assert code == answer.Exit.INVALID
    assert words in message(found)
    assert str(tmp_path) in message(found)


# -- terminals --


def test_a_terminal_without_utf_8_gets_every_line_and_valid_json(tmp_path: pathlib.Path) -> None:
    rows = [{"prompt": f"wie heißt {number}?", "completion": "„ö→“"} for number in range(30)]
    file = tmp_path / "ö.jsonl"
    file.write_text(tiny.jsonl(rows))
    for encoding in ("ascii", "utf-8"):
        code, out, _ = ended(conftest.start("validate", file, PYTHONIOENCODING=encoding, PYTHONUTF8="0"))
        assert (code, "constantAnswers" in out) == (0, True)
        code, out, _ = ended(conftest.start("validate", file, "--output", "json", PYTHONIOENCODING=encoding))
        assert json.loads(out)["findings"][0]["places"][0].startswith(f"{file}:1 (")


def test_a_reader_that_stops_early_is_no_error(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text(tiny.jsonl(tiny.examples(30)))
    command = [
        sys.executable,
        "-c",
        "import sys; from finetune_cli import __main__; sys.exit(__main__.main(sys.argv[1:]))",
    ]
    reader, writer = os.pipe()
    os.close(reader)
    path = os.pathsep.join(filter(None, sys.path))
    ended = subprocess.run(
        [*command, "validate", file],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_name_of_other_bytes_than_utf_8_is_answered_and_not_fatal(tmp_path: pathlib.Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.jsonl"
    pathlib.Path(os.fsdecode(name)).write_text(tiny.jsonl(tiny.examples(4)))
    code, out, _ = ended(conftest.start("validate", os.fsdecode(name), "--output", "json"))
    assert code in (answer.Exit.DONE, answer.Exit.INVALID)
    assert "Traceback" not in out
    assert json.loads(out)["exitCode"] == code
