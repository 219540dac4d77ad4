import csv
import gzip
import io
import json
import pathlib
import tracemalloc
from typing import Any

import pytest
from tests.trainer import tiny

from finetune_api import job, reasons
from finetune_trainer.data import dataset, rows
from finetune_trainer.process import errors
from finetune_trainer.store import storage

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def load(path: pathlib.Path, kind: job.Format = job.Format.AUTO) -> list[dataset.Example | rows.Bad]:
    return list(dataset.parse(rows.read(storage.Storage(), f"file://{path}"), kind))


def only(found: list[dataset.Example | rows.Bad]) -> list[dataset.Example]:
    return [one for one in found if isinstance(one, dataset.Example)]


def problems(found: list[dataset.Example | rows.Bad]) -> list[str]:
    return [f"{one.source.rpartition('/')[2]}: {one.problem}" for one in found if isinstance(one, rows.Bad)]


@pytest.mark.parametrize(
    "row, prompt, answer",
    [
        (CHAT, "Hi", "Hello"),
        ({"prompt": "2+2=", "completion": "4"}, "2+2=", "4"),
        ({"instruction": "Add", "input": "2 2", "output": "4"}, "Add\n\n2 2", "4"),
        ({"instruction": "Say hi", "input": "", "output": "hi", "id": 7}, "Say hi", "hi"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, CHAT["messages"][1]]},
            "Hi",
            "Hello",
        ),
    ],
)
def test_each_format_is_detected_by_its_fields(row: Any, prompt: str, answer: str) -> None:
    found = dataset.example(row, dataset.detect(row), "x:1")
    assert found.prompt[-1].content == prompt
    assert found.answer == answer


def test_plain_text_has_no_answer() -> None:
    found = dataset.example({"text": "Once"}, dataset.detect({"text": "Once"}), "x:1")
    assert (found.text, found.answer, found.messages) == ("Once", None, ())


def test_turns_of_weight_zero_and_conversational_prompts_are_context() -> None:
    chat = [*CHAT["messages"], *CHAT["messages"]]
    weighted = [chat[0], chat[1] | {"weight": 0}, *chat[2:]]
    found = dataset.example({"messages": weighted}, job.Format.CHAT, "x:1")
    assert [turn.learned for turn in found.messages if turn.role == "assistant"] == [False, True]
    both = {"prompt": chat[:3], "completion": chat[3:]}
    found = dataset.example(both, dataset.detect(both), "x:1")
    assert [turn.learned for turn in found.messages if turn.role == "assistant"] == [False, True]


ASK = {"role": "user", "content": "Is it late?"}
GOOD, BAD = {"role": "assistant", "content": "Yes, by 2 days."}, {"role": "assistant", "content": "No idea."}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Is it late?", "chosen": "Yes, by 2 days.", "rejected": "No idea."},
        {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [ASK], "chosen": "Yes, by 2 days.", "rejected": "No idea."},
        {"prompt": "Is it late?", "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"prompt": None, "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"prompt": [ASK], "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"prompt": "Is it late?", "chosen": [ASK, GOOD], "rejected": [ASK, BAD], "messages": [ASK, GOOD]},
    ],
)
def test_a_preference_pair_is_a_prompt_and_two_answers_in_every_form(row: Any) -> None:
    found = dataset.example(row, dataset.detect(row), "x:1")
    assert [(turn.role, turn.content) for turn in found.prompt] == [("user", "Is it late?")]
    assert (found.answer, found.rejected) == ("Yes, by 2 days.", "No idea.")
    chosen, rejected = found.sides()
    assert (chosen.answer, rejected.answer) == (found.answer, found.rejected)
    assert chosen.prompt == rejected.prompt == found.prompt
    assert chosen.rejected is None


def test_whole_chats_share_all_turns_but_the_last() -> None:
    start = [{"role": "system", "content": "Be kind."}, ASK, BAD, {"role": "user", "content": "Look again."}]
    found = dataset.example({"chosen": [*start, GOOD], "rejected": [*start, BAD]}, job.Format.PREFERENCE, "x:1")
    assert [turn.role for turn in found.prompt] == ["system", "user", "assistant", "user"]
    assert [turn.learned for turn in found.messages if turn.role == "assistant"] == [False, True]


@pytest.mark.parametrize(
    "row, words",
    [
        ({"chosen": "Yes", "rejected": "No"}, "texts without a prompt"),
        ({"prompt": "x", "chosen": "Yes"}, "the field 'rejected' is missing"),
        ({"prompt": "x", "chosen": "Yes", "rejected": [BAD]}, "must be of the same kind"),
        ({"prompt": "x", "chosen": "Yes", "rejected": " "}, "'rejected' is empty"),
        ({"prompt": "x", "chosen": "Yes", "rejected": "Yes"}, "the same answer"),
        ({"prompt": "x", "chosen": 1, "rejected": "Yes"}, "'chosen' must be a list of {role, content}, found a number"),
        (
            {"chosen": [ASK, GOOD, ASK, GOOD], "rejected": [ASK, BAD]},
            "'chosen' must be one answer of the assistant, found",
        ),
        ({"chosen": [ASK], "rejected": [ASK]}, "do not begin with a common turn"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "add the field 'prompt'"),
        ({"prompt": [ASK, GOOD], "chosen": [GOOD], "rejected": [BAD]}, "they alternate"),
        ({"prompt": "Other", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}, "not one of the turns"),
        ({"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD], "tools": [{}]}, "tools are not supported"),
    ],
)
def test_an_invalid_preference_pair_is_explained(row: Any, words: str) -> None:
    with pytest.raises(dataset.Wrong) as caught:
        dataset.example(row, job.Format.PREFERENCE, "x:1")
    assert words in str(caught.value)


def parquet(values: list[Any]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), buffer)
    return buffer.getvalue()


def table(values: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(values[0]))
    writer.writeheader()
    writer.writerows(values)
    return text.getvalue().encode()


PAIRS = [{"prompt": f'Ünï {n},\n"q"', "completion": str(n)} for n in range(5)]


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_every_kind_of_file_holds_the_same_examples(tmp_path: pathlib.Path, kind: str, compression: str) -> None:
    import zstandard

    plain = {
        "jsonl": "\n".join(map(json.dumps, PAIRS)).encode(),
        "json": json.dumps(PAIRS, indent=2).encode(),
        "csv": table(PAIRS),
        "parquet": parquet(PAIRS),
    }[kind]
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[compression]
    path = tmp_path / f"data.{kind}{compression}"
    path.write_bytes(pack(plain))
    found = load(path)
    assert problems(found) == []
    assert [(one.prompt[0].content, one.answer) for one in only(found)] == [
        (pair["prompt"], pair["completion"]) for pair in PAIRS
    ]


def test_chats_fit_into_csv_and_parquet(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.csv").write_bytes(table([{"messages": json.dumps(CHAT["messages"])}]))
    (tmp_path / "b.parquet").write_bytes(parquet([CHAT]))
    for path in tmp_path.iterdir():
        assert [one.answer for one in only(load(path))] == ["Hello"]


def test_json_may_be_one_object_after_the_other(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(CHAT) + "\n" + json.dumps(CHAT, indent=1))
    found = load(tmp_path / "a.json")
    assert [one.source.rpartition(":")[2] for one in only(found)] == ["1", "2"]


def test_errors_name_file_and_line(tmp_path: pathlib.Path) -> None:
    lines = [json.dumps(row) for row in tiny.examples(20)]
    lines[16] = '{"messages": [{"role": "user", "content": "Hi"'
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    found = load(tmp_path / "train.jsonl")
    assert problems(found) == ["train.jsonl:17: not valid JSON: Expecting ',' delimiter at column 47"]
    assert len(only(found)) == 19


@pytest.mark.parametrize(
    "line, words",
    [
        (b"[1]", "expected a JSON object, found a list"),
        (b'{"messages": []}', "'messages' must be a list of {role, content}, found an empty list"),
        (b'{"prompt": "x"}', "the field 'messages' is missing (found: prompt)"),
        (b'{"messages": [{"role": "user", "content": "x"}]}', "ends with the assistant's answer"),
        (b'{"messages": [{"role": "assistant", "content": "x"}]}', "no turn of the user"),
        (
            b'{"messages": [{"role": "user", "content": 3}, {"role": "assistant", "content": "x"}]}',
            "must be text, found a number",
        ),
        (b'{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "  "}]}', "is empty"),
        (b'{"messages": [{"role": "bot", "content": "x"}, {"role": "assistant", "content": "x"}]}', "the role 'bot'"),
        (
            b'{"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}, '
            b'{"role": "assistant", "content": "x"}]}',
            "turn 2 of the chat has the role user, expected assistant",
        ),
        (b'{"messages": "\xff"}', "not UTF-8: byte 0xff"),
    ],
)
def test_each_kind_of_broken_row_is_explained(tmp_path: pathlib.Path, line: bytes, words: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(json.dumps(CHAT).encode() + b"\n\n" + line)
    (problem,) = problems(load(tmp_path / "a.jsonl"))
    assert problem.startswith("a.jsonl:3: ")
    assert words in problem


@pytest.mark.parametrize(
    "name, data, words",
    [
        ("a.json", b'[{"text": "a"},\n {"text": "b"', "a.json:2: not valid JSON"),
        ("a.json", b'[{"text": "a"}', "a.json:1: not valid JSON: the array is not closed"),
        ("a.csv", b'text\n"a', "not valid CSV"),
        ("a.csv", b"text\na,b", "a.csv:2: the header names 1 columns"),
        ("a.parquet", b"PAR1 nonsense", "not valid Parquet"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 9, mtime=0)[:-10], "damaged"),
        ("a.jsonl.gz", b"plain", "not valid JSON"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfdplain", "damaged"),
    ],
)
def test_damaged_files_are_findings_and_no_crash(tmp_path: pathlib.Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    found = problems(load(tmp_path / name))
    assert found
    assert words in found[-1]


def test_files_are_found_by_pattern_each_once_without_marks(tmp_path: pathlib.Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "_SUCCESS", ".hidden.jsonl"):
        (tmp_path / name).write_text("x")
    found = rows.find(storage.Storage(), [f"file://{tmp_path}/*", f"file://{tmp_path}/a.jsonl"])
    assert [entry.uri.rsplit("/", 1)[1] for entry in found] == ["a.jsonl", "b.jsonl"]


def test_a_pattern_without_a_match_says_what_is_there(tmp_path: pathlib.Path) -> None:
    (tmp_path / "train.json").write_text("x")
    for pattern, words in (("train.jsonl", "did you mean"), ("*.csv", "contains")):
        with pytest.raises(errors.Failure, match=rf"{words} file://.*/train\.json\b") as caught:
            rows.find(storage.Storage(), [f"file://{tmp_path}/{pattern}"])
        assert caught.value.reason is reasons.Reason.DATASET_NOT_FOUND
    with pytest.raises(errors.Failure, match=r"must end with \.jsonl"):
        rows.kind("s3://b/train.txt")


def test_rows_are_streamed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "big.json"
    with path.open("w") as file:
        file.write("[")
        for number in range(20_000):
            file.write((", " if number else "") + json.dumps({"text": f"{number} " + "word " * 100}))
        file.write("]")
    tracemalloc.start()
    count = sum(1 for _ in dataset.parse(rows.read(storage.Storage(), f"file://{path}"), job.Format.AUTO))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert path.stat().st_size > 10e6
    assert peak < 8e6


def test_frozen_examples_come_back_as_they_were(tmp_path: pathlib.Path) -> None:
    chat = [*CHAT["messages"], CHAT["messages"][0], {"role": "assistant", "content": "ö\n", "weight": 0}]
    originals = [
        dataset.example({"messages": chat}, job.Format.CHAT, "s:1"),
        dataset.Example("s:2", text="Text"),
        dataset.example({"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}, job.Format.PREFERENCE, "s:3"),
    ]
    (tmp_path / "f").write_text("".join(one.line() for one in originals), encoding="utf-8")
    assert dataset.frozen(tmp_path / "f") == originals
