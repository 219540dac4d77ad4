"""Data files as people have them, through `finetune validate`: what is lost is named with its place, and nothing takes long."""

import gzip
import io
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from tests.trainer import tiny

from finetune_cli import answer

ROWS = [{"prompt": f"What is {n} plus one?", "completion": f"It is {n + 1}."} for n in range(400)]
LINES = tiny.jsonl(ROWS)
CALL = {"type": "function", "function": {"name": "find", "arguments": {"code": "a" * 60 + "!"}}}
CALLS = [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]


def turns(count: int) -> dict[str, Any]:
    return {"messages": [{"role": "user" if n % 2 == 0 else "assistant", "content": f"turn {n}"} for n in range(count)]}


def calling(parameters: dict[str, Any]) -> str:
    tools = [{"type": "function", "function": {"name": "find", "parameters": parameters}}]
    return tiny.jsonl([{"messages": CALLS, "tools": tools}])


def parquet(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name, data, place, words",
    [
        ("cut.jsonl.zst", zstandard.compress(LINES.encode())[:-200], "cut.jsonl.zst", "the compressed file is damaged"),
        ("cut.jsonl", gzip.compress(LINES.encode())[:-200], "cut.jsonl", "the compressed file is damaged"),
        ("a.jsonl", '{"prompt": "a", "completion": "b", "completion": "c"}', "a.jsonl:1", "'completion' occurs twice"),
        ("a.csv", "prompt,completion,completion\na,b,c\n", "a.csv:1", "'completion' occurs twice"),
        ("a.csv", 'prompt,completion\na,b\nc,"d\n', "a.csv:3", "is not closed"),
        ("a.jsonl", LINES + '{"prompt": "\\ud800", "completion": "b"}', "a.jsonl:401", "half of a character"),
        ("a.jsonl", '{"prompt": "a", "completion": ' + "1" * 5000 + "}", "a.jsonl:1", "5000 digits"),
        ("a.json", '// rows\n[{"prompt": "a", "completion": "b"}]', "a.json:1", "no comments"),
        ("a.jsonl", '{"prompt": "a", "completion": "b"},\n', "a.jsonl:1", "a comma after the object"),
        ("a.jsonl", '{"prompt": 1, "completion": "b"}\n', "a.jsonl:1", "found a number"),
        ("a.parquet", parquet(prompt=[b"a"], completion=["b"]), "a.parquet:1", "binary data"),
        ("a.jsonl", tiny.jsonl([{f"k{n}": n for n in range(20_000)}]), "a.jsonl:1", "and 19990 more"),
        ("a.jsonl", tiny.jsonl([turns(20_000)]), "a.jsonl:1", "20000 turns, at most 2000"),
    ],
)
def test_a_row_or_file_that_cannot_be_learned_whole_is_named(
    name: str,
    data: str | bytes,
    place: str,
    words: str,
    tmp_path: pathlib.Path,
    finetune: Callable[..., tuple[int, Any]],
) -> None:
    (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    begun = time.monotonic()
    policy = ["--checks", "unreadable=Drop"] if "damaged" in words else []
    code, found = finetune("validate", tmp_path / name, *policy)
    assert time.monotonic() - begun < 30
    assert code == answer.Exit.INVALID
    assert any(one.startswith(f"{tmp_path / place}: ") and words in one for one in found["findings"][0]["places"])


@pytest.mark.parametrize(
    "name, data",
    [
        ("a.jsonl", gzip.compress(LINES.encode())),
        ("a.csv", "prompt;completion\n" + "".join(f"what is {n}?;it is {n}\n" for n in range(30))),
        ("a.jsonl", LINES.replace("\n", "\r")),
        ("a.jsonl", json.dumps(ROWS)),
        (
            "a.parquet",
            parquet(
                prompt=[row["prompt"] for row in ROWS],
                completion=[row["completion"] for row in ROWS],
                at=pyarrow.array([2**58] * len(ROWS), pyarrow.timestamp("us")),
            ),
        ),
    ],
)
def test_a_file_of_another_form_is_read(name: str, data: str | bytes, tmp_path: pathlib.Path, finetune) -> None:
    (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    code, found = finetune("validate", tmp_path / name)
    assert code == 0
    assert found["counts"]["examples"] >= 30


@pytest.mark.parametrize(
    "parameters, words",
    [
        ({"$ref": "#"}, "refers to itself"),
        ({"properties": {"code": {"pattern": "^(a|aa)+$"}}}, "repetition"),
        ({"properties": {"code": {"pattern": "(a"}}}, "regex"),
    ],
)
def test_a_schema_that_cannot_be_used_is_named_where_it_is_needed(
    parameters: dict[str, Any], words: str, tmp_path: pathlib.Path, finetune
) -> None:
    (tmp_path / "a.jsonl").write_text(calling(parameters))
    begun = time.monotonic()
    _, found = finetune("validate", tmp_path / "a.jsonl")
    assert time.monotonic() - begun < 30
    [finding] = [one for one in found["findings"] if one["rule"] == "toolArguments"]
    assert finding["places"][0].startswith(f"{tmp_path}/a.jsonl:1")
    assert words in finding["places"][0]


def test_a_schema_of_answers_that_refers_to_itself_ends_the_job_with_the_field(job, finetune) -> None:
    gates = [{"metric": "JsonSchema", "minimum": 0.9}]
    code, found = finetune("advise", job(evaluation={"outputSchema": {"$ref": "#"}, "gates": gates}))
    assert (code, found["reason"]) == (answer.Exit.INVALID, "InvalidSpec")
    assert "evaluation.outputSchema" in found["problems"][0]["message"]
