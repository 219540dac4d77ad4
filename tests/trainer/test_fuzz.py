"""Every reader against files and rows that nobody thought of: no traceback, no hang, and the line is named.

An ordinary run takes seconds; FINETUNE_FUZZ=5000 sets the inputs of each format, whose counts are in
docs/guides/what-your-data-may-look-like.md.
"""

import csv
import gzip
import io
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Callable
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.trainer import tiny

from finetune_api import job
from finetune_trainer.data import dataset, rows, streams
from finetune_trainer.store import storage

INPUTS = int(os.environ.get("FINETUNE_FUZZ", "30"))
CALM = settings(
    max_examples=INPUTS,
    deadline=60_000,  # a hang, not a slow machine
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)

# --- Rows ---

HUGE = "HUGE"
"""Stands for an integer of thousands of digits, which Python cannot print."""

PLAIN = [
    "",
    " ",
    "Yes.",
    "a\nb",
    "\ud83d",
    "\u2028",
    "\x00",
    "[1]",
    "{",
    "true",
    HUGE,
    '{"name": "refund", "arguments": {}}',
]
NAMES = """
    role content from value messages conversations conversation prompt completion instruction input output text chosen rejected
    system history tools functions tool_calls function_call function name arguments id type weight train label images refusal
    reasoning_content tool_call_id mood question parameters
"""
words = st.sampled_from(PLAIN)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), words, st.text(max_size=8))
keys = st.sampled_from(NAMES.split())
roles = st.sampled_from(
    ["system", "developer", "user", "human", "assistant", "gpt", "tool", "observation", "function_call", "bot"]
)
parts = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "refusal", "image_url", None])}, optional={"text": scalars}
)
mixed = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=8,
)
calls = st.fixed_dictionaries(
    {},
    optional={
        "id": scalars,
        "type": scalars,
        "function": st.one_of(mixed, st.just({"name": "refund", "arguments": {}})),
    },
)
turns = st.fixed_dictionaries(
    {"role": roles, "content": st.one_of(words, scalars, st.lists(parts, max_size=2), mixed)},
    optional={"tool_calls": st.lists(calls, max_size=2), "weight": scalars, "mood": scalars, "function_call": mixed},
)
sharegpt = st.fixed_dictionaries({"from": roles, "value": st.one_of(words, mixed)}, optional={"weight": scalars})
chats = st.one_of(
    st.lists(st.one_of(turns, sharegpt, mixed), max_size=4),
    st.dictionaries(st.sampled_from(["role", "content"]), st.lists(st.one_of(roles, words), max_size=3), max_size=2),
    mixed,
)
lists_of_tools = st.one_of(mixed, st.just(tiny.TOOLS), st.just(json.dumps(tiny.TOOLS)), st.lists(calls, max_size=2))
texts = st.one_of(words, chats)
records = st.one_of(
    mixed,
    st.fixed_dictionaries({"messages": chats}, optional={"tools": lists_of_tools, "system": mixed, "label": scalars}),
    st.fixed_dictionaries(
        {"conversations": chats}, optional={"tools": lists_of_tools, "system": mixed, "images": mixed}
    ),
    st.fixed_dictionaries(
        {"prompt": st.one_of(words, chats), "completion": st.one_of(words, chats)}, optional={"label": scalars}
    ),
    st.fixed_dictionaries(
        {"instruction": words, "output": words}, optional={"input": mixed, "history": mixed, "system": mixed}
    ),
    st.fixed_dictionaries({"chosen": chats, "rejected": chats}, optional={"prompt": texts, "question": mixed}),
)


@CALM
@given(st.lists(records, min_size=1, max_size=3), st.sampled_from(job.Format))
def test_any_row_is_an_example_or_a_finding_with_its_place(values: list[Any], kind: job.Format) -> None:
    found = list(dataset.parse((rows.Row(f"x.jsonl:{n}", one) for n, one in enumerate(values, 1)), kind))
    assert [one.source for one in found] == [f"x.jsonl:{n}" for n in range(1, len(values) + 1)]
    for one in found:
        if isinstance(one, dataset.Example):
            assert dataset.from_record(json.loads(one.line())) == one
            assert list(one.keys())
        else:
            assert one.problem
            assert len(one.problem) < 2000


# --- Files ---


def as_json(value: Any) -> str:
    return json.dumps(value).replace(f'"{HUGE}"', "7" * 5000)


def as_csv(values: list[Any], separator: str) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=separator)
    writer.writerow(["prompt", "completion"])
    for one in values:
        writer.writerow([str(one)[:50], "b"])
    return buffer.getvalue().encode("utf-8", "surrogatepass")


def as_parquet(values: list[Any]) -> bytes:
    buffer = io.BytesIO()
    rows_ = [{"prompt": as_json(one)[:50], "n": n, "list": [{"role": "user", "x": n}]} for n, one in enumerate(values)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows_), buffer)
    return buffer.getvalue()


PACKS: list[Callable[[bytes], bytes]] = [
    bytes,
    lambda data: gzip.compress(data, mtime=0),
    zstandard.ZstdCompressor().compress,
]
WRITERS: dict[str, Callable[[list[Any]], bytes]] = {
    "jsonl": lambda values: "\n".join(map(as_json, values)).encode(),
    "json": lambda values: f"[{','.join(map(as_json, values))}]".encode(),
    "csv": lambda values: as_csv(values, ","),
    "semicolon.csv": lambda values: as_csv(values, ";"),
    "parquet": as_parquet,
}


PIECES = st.sampled_from([b"\xef\xbb\xbf", b"\r", b"\n", b'"', b"[", b"\xff"])
ENCODINGS = st.sampled_from(["utf-16", "utf-16-le", "utf-32", "latin-1"])


@st.composite
def damage(draw: st.DrawFn, data: bytes) -> bytes:
    """Some bytes changed, inserted or repeated, the end cut off, another encoding, or nothing at all."""
    copy = bytearray(data)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(copy) - 1)))
        how = draw(st.sampled_from(["change", "insert", "repeat", "cut"]))
        piece = draw(st.one_of(st.binary(min_size=1, max_size=3), PIECES))
        if how == "change":
            copy[at : at + len(piece)] = piece
        elif how == "insert":
            copy[at:at] = piece
        elif how == "repeat":
            copy += copy[at : at + 200]
        else:
            del copy[at + 1 :]
    if draw(st.integers(0, 15)) == 0:
        return bytes(copy).decode("utf-8", "replace").encode(draw(ENCODINGS), "replace")
    return bytes(copy)


OF_A_WHOLE_FILE = ("compressed file is damaged", *(words for _, _, words in streams.KINDS))
"""Findings that no line can be named for."""


@pytest.mark.parametrize("kind", list(WRITERS))
def test_any_file_is_rows_and_findings_with_their_lines(kind: str) -> None:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fuzz-"))
    path = folder / f"a.{kind}"

    @CALM
    @given(st.data())
    def run(data: st.DataObject) -> None:
        values = data.draw(st.lists(records, max_size=4))
        pack = data.draw(st.sampled_from(PACKS))
        path.write_bytes(data.draw(damage(pack(data.draw(damage(WRITERS[kind](values)))))))
        read = list(rows.read(storage.Storage(), f"file://{path}"))
        for one in read:
            whole_file = (
                isinstance(one, rows.Bad) and one.ends and any(words in one.problem for words in OF_A_WHOLE_FILE)
            )
            assert whole_file or re.search(r":\d+$", one.source), one
        assert not any(isinstance(one, rows.Bad) and one.ends for one in read[:-1]), "nothing is read after an end"
        assert len(list(dataset.parse(iter(read), job.Format.AUTO))) == len(read)

    try:
        run()
    finally:
        path.unlink(missing_ok=True)
        folder.rmdir()
