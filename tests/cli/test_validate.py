"""`finetune validate`: planted errors are found, with file and line."""

import json
import pathlib
from typing import Any

import pytest
from tests.trainer import tiny

from finetune_cli import __main__, answer, validate


def rows() -> list[dict[str, Any]]:
    """20 good rows, and one of each mistake from line 21 on."""
    question, reply = {"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": '{"ok": true}'}
    key = "AKIA" + "Q3EGRI7LSH2MNBPX"
    return [
        *tiny.examples(20),
        {"messages": []},
        {"messages": [reply, question]},
        {"messages": [question, reply | {"content": " "}]},
        tiny.examples(1)[0],
        {"messages": [question | {"content": f"the key is {key}"}, reply]},
    ]


@pytest.fixture
def bad(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "bad data.jsonl"
    file.write_text(tiny.jsonl(rows()) + '{"messages": [\n')
    return file


def places(found: dict[str, Any]) -> dict[str, str]:
    return {one["rule"]: one["places"][0] for one in found["findings"]}


def test_planted_errors_are_found_at_their_lines(bad: pathlib.Path, finetune) -> None:
    code, found = finetune("validate", bad)
    assert code == found["exitCode"] == answer.Exit.INVALID
    seen = places(found)
    lines = {"schema": 21, "roleOrder": 22, "emptyAnswers": 23, "duplicates": 24, "secrets": 25, "unreadable": 26}
    assert {rule: seen[rule].startswith(f"{bad}:{line}") for rule, line in lines.items()} == dict.fromkeys(lines, True)
    assert found["counts"]["examples"] == 21
    assert "AKIA" not in json.dumps(found), "a finding names the place, never the secret"


def test_good_data_pass_and_the_rules_that_need_a_model_are_named(tmp_path: pathlib.Path, finetune) -> None:
    (tmp_path / "a.jsonl").write_text(tiny.jsonl(tiny.examples(30)))
    (tmp_path / "b.jsonl").write_text(tiny.jsonl(tiny.examples(10, start=30)))
    code, found = finetune("validate", tmp_path / "*.jsonl")
    assert (code, found["findings"], found["counts"]["examples"]) == (0, [], 40)
    assert "tokens" not in found["counts"]
    assert all(rule in found["notes"][0] for rule in validate.TOKENS)


def test_pairs_are_good_data_of_another_kind_of_job(tmp_path: pathlib.Path, finetune) -> None:
    pairs = [{"prompt": f"Is {n} late?", "chosen": f"{n} is on time.", "rejected": f"No idea: {n}."} for n in range(20)]
    (tmp_path / "pairs.jsonl").write_text(tiny.jsonl(pairs))
    code, found = finetune("validate", tmp_path / "pairs.jsonl")
    assert (code, found["notes"][1:]) == (0, [validate.PAIRS])


def test_tools_and_calls_are_checked_without_a_model(tmp_path: pathlib.Path, finetune) -> None:
    rows = tiny.calling(30)
    rows[4]["messages"][1]["tool_calls"] = [tiny.call("gift")]
    rows[5]["messages"][1]["tool_calls"] = [tiny.call("refund", item="all")]
    (tmp_path / "a.jsonl").write_text(tiny.jsonl(rows))
    code, found = finetune("validate", tmp_path / "a.jsonl")
    assert code == answer.Exit.INVALID
    seen = places(found)
    assert seen["toolCalls"].startswith(f"{tmp_path / 'a.jsonl'}:5: messages[1] calls 'gift'")
    assert seen["toolArguments"].startswith(f"{tmp_path / 'a.jsonl'}:6")
    assert "template" not in seen


def test_policies_and_formats_are_those_of_the_job(bad: pathlib.Path, finetune) -> None:
    drop = [
        word
        for rule in ("schema", "roleOrder", "emptyAnswers", "unreadable", "secrets")
        for word in ("--checks", f"{rule}=Drop")
    ]
    code, found = finetune("validate", bad, *drop)
    assert code == 0
    assert sum(one["dropped"] for one in found["findings"]) == 6
    code, found = finetune("validate", bad, "--format", "Text", *drop)
    assert {one["rule"] for one in found["findings"]} == {"schema", "unreadable"}


def test_prompts_of_the_test_files_that_are_trained_on_are_leaks(tmp_path: pathlib.Path, finetune) -> None:
    (tmp_path / "train.jsonl").write_text(tiny.jsonl(tiny.examples(30)))
    (tmp_path / "test.jsonl").write_text(tiny.jsonl(tiny.examples(4, start=28)))
    code, found = finetune("validate", tmp_path / "train.jsonl", "--held-out", tmp_path / "test.jsonl")
    assert code == answer.Exit.INVALID
    assert "leakage" in places(found)
    assert found["counts"]["testExamples"] == 4


def test_with_a_model_tokens_are_looked_at_too(tmp_path: pathlib.Path, base: pathlib.Path, finetune) -> None:
    (tmp_path / "train.jsonl").write_text(tiny.jsonl(tiny.examples(30)))
    code, found = finetune("validate", tmp_path / "train.jsonl", "--model", base)
    assert code == 0
    assert found["counts"]["tokens"] > found["counts"]["trainableTokens"] > 0
    assert found["notes"] == []
    code, found = finetune("validate", tmp_path / "train.jsonl", "--model", base, "--max-sequence-length", 16)
    assert {"untrainable"} <= set(places(found))


@pytest.mark.parametrize(
    "words, problem",
    [
        (["nowhere.jsonl"], "matches no file"),
        (["notes.txt"], "matches no file"),
        (["pool.yaml"], "`finetune advise` checks a FineTuneJob"),
        (["x.jsonl", "--checks", "spelling=Fail"], "unknown rule 'spelling'"),
        (["x.jsonl", "--checks", "schema=Warn"], "schema cannot be 'Warn'; write Drop, Fail"),
        ([f"{number}.jsonl" for number in range(65)], "quote the pattern"),
        (["x.jsonl", "--model", "nowhere"], "nowhere does not exist"),
        (["http://example.com/x.jsonl"], "not a file, a pattern or an s3:// URI"),
        (["x.jsonl", "--max-sequence-length", "0"], "--max-sequence-length 0: must be greater than or equal to 16"),
    ],
)
def test_an_unreadable_file_is_reported_with_what_to_do(
    words: list[str], problem: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, finetune
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jsonl").write_text(tiny.jsonl(tiny.examples(4)))
    code, found = finetune("validate", *words)
    assert code == answer.Exit.INVALID
    assert problem in found["problems"][0]["message"]
    assert "file://" not in found["problems"][0]["message"]


def test_problems_go_to_stderr_and_findings_to_stdout(bad: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["validate", "nowhere.jsonl"]) == answer.Exit.INVALID
    out, err = capsys.readouterr()
    assert (out, "matches no file" in err) == ("", True)
    assert __main__.main(["validate", str(bad)]) == answer.Exit.INVALID
    out, err = capsys.readouterr()
    assert f"{bad}:25 (an AWS access key)" in out
    assert err == ""
