"""The reference and the JSON Schema are those of the code, and every answer is of that schema."""

import json
import pathlib

import jsonschema
import pytest
from tests.cli import test_report
from tests.trainer import tiny

from finetune_api import exits
from finetune_cli import answer
from generate import cli, page

SCHEMA = json.loads((page.FOLDER / "cli.schema.json").read_text())


def test_the_committed_files_are_current() -> None:
    assert {path.name: path.read_text() == text for path, text in cli.files().items()} == {
        "cli.md": True,
        "cli.schema.json": True,
    }


def test_an_exit_code_that_the_trainer_has_means_the_same() -> None:
    ours, theirs = {code.name: code.value for code in answer.Exit}, {code.name: code.value for code in exits.Exit}
    assert {name: ours[name] for name in theirs} == theirs
    assert set(ours.values()) - set(theirs.values()) == {1, answer.Exit.GATES, answer.Exit.DEFECT}


@pytest.mark.slow
def test_answers_of_every_verb_are_of_the_schema(job, finetune, tmp_path: pathlib.Path) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    file = job([*tiny.examples(60), *tiny.examples(1)])
    revision = tmp_path / "results" / "r1" / "evaluation" / "e1"
    revision.mkdir(parents=True)
    (revision / "results.json").write_text(json.dumps(test_report.made(passed=True).wire()))
    answers = [
        finetune("validate", file.parent / "data" / "train.jsonl"),
        finetune("validate", "nowhere.jsonl"),
        finetune("advise", file),
        finetune("estimate", file, "--assume-longest"),
        finetune("report", tmp_path / "results"),
        finetune("advise", tmp_path / "nowhere.yaml"),
    ]
    for code, found in answers:
        jsonschema.validate(found, SCHEMA)
        assert found["exitCode"] == code


@pytest.mark.parametrize("name", ["Problem", "Finding", "Counts", "Job", "StageResult", "Estimate"])
def test_every_part_of_an_answer_is_described(name: str) -> None:
    assert SCHEMA["$defs"][name]["description"]
