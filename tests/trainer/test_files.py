"""Files as people have them: each is read, or ends as a finding with file and line; never as a traceback."""

import bz2
import codecs
import gzip
import io
import json
import lzma
import pathlib
import tarfile
import zipfile
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from finetune_api import job
from finetune_trainer.data import dataset, rows
from finetune_trainer.store import storage

CASES = pathlib.Path(__file__).parent / "cases"
PAIRS = [{"prompt": f"Where is {n}?", "completion": f"In hall {n}."} for n in range(30)]
LINES = "".join(json.dumps(pair) + "\n" for pair in PAIRS).encode()


def read(path: pathlib.Path) -> list[rows.Row | rows.Bad]:
    return list(rows.read(storage.Storage(), f"file://{path}"))


def written(folder: pathlib.Path, name: str, data: bytes) -> list[rows.Row | rows.Bad]:
    (folder / name).write_bytes(data)
    return read(folder / name)


def values(found: list[rows.Row | rows.Bad]) -> list[Any]:
    assert not [one for one in found if isinstance(one, rows.Bad)], found
    return [one.value for one in found if isinstance(one, rows.Row)]


def line(one: rows.Row | rows.Bad) -> int:
    return int(one.source.rpartition(":")[2])


def table(separator: str) -> bytes:
    return "\n".join(
        [f"prompt{separator}completion", *(f"{one['prompt']}{separator}{one['completion']}" for one in PAIRS)]
    ).encode()


MARK = codecs.BOM_UTF8
DOCUMENT = json.dumps(PAIRS).encode()
SEVERAL_LINES = "\n".join(json.dumps(pair, indent=1) for pair in PAIRS).encode()


@pytest.mark.parametrize(
    "name, data",
    [
        ("joined.jsonl", MARK + LINES.replace(b'\n{"prompt": "Where is 9', b"\n" + MARK + b'{"prompt": "Where is 9')),
        ("twice.jsonl", MARK + MARK + LINES),
        ("crlf.jsonl", MARK + LINES.replace(b"\n", b"\r\n")),
        ("cr.jsonl", LINES.replace(b"\n", b"\r")),
        ("array.jsonl", b" " + DOCUMENT),
        ("array-with-mark.jsonl", MARK + DOCUMENT),
        ("objects.jsonl", SEVERAL_LINES),
        ("joined.json", MARK + json.dumps(PAIRS[:9]).encode() + MARK + json.dumps(PAIRS[9:]).encode()),
        ("gzip.jsonl", gzip.compress(LINES)),
        ("zstd.jsonl", zstandard.ZstdCompressor().compress(LINES)),
        ("plain.jsonl.gz", LINES),
        ("plain.jsonl.zst", LINES),
        ("other.jsonl.gz", zstandard.ZstdCompressor().compress(LINES)),
        ("twice.jsonl.gz", gzip.compress(gzip.compress(LINES))),
        ("frames.jsonl.zst", b"".join(zstandard.ZstdCompressor().compress(LINES[i : i + 99]) for i in range(0, len(LINES), 99))),
        ("members.jsonl.gz", gzip.compress(LINES[:999]) + gzip.compress(LINES[999:])),
        ("comma.csv", table(",")),
        ("semicolon.csv", table(";")),
        ("tab.csv", table("\t")),
        ("joined.csv", MARK + table(",") + b"\n" + MARK + table(",").replace(b"Where", b"Where")[: len("prompt,completion")]),
        ("cr.csv", table(",").replace(b"\n", b"\r")),
        ("spaces.csv", table(",").replace(b"prompt,completion", b" prompt , completion", 1)),
        ("excel.csv", b"sep=;\r\n" + table(";")),
    ],
)  # fmt: skip
def test_a_file_is_read_whatever_its_marks_ends_of_lines_and_compression(
    tmp_path: pathlib.Path, name: str, data: bytes
) -> None:
    assert values(written(tmp_path, name, data)) == PAIRS


GOOD = b'{"prompt": "a", "completion": "b"}\n'


@pytest.mark.parametrize(
    "broken, words",
    [
        (b'{"prompt": "thanks \\ud83d", "completion": "b"}', "\\ud83d is half of a character"),
        (b'{"id": ' + b"7" * 5000 + b', "prompt": "a", "completion": "b"}', "an integer of 5000 digits"),
        (b'{"x": ' + b"[" * 300 + b"]" * 300 + b', "prompt": "a", "completion": "b"}', "nested too deeply"),
        (b'{"x": ' + b"[" * 9000 + b"]" * 9000 + b"}", "nested too deeply"),
        (b'{"prompt": "a", "completion": "b", "score": NaN}', "NaN is not a JSON value"),
        (b'{"prompt": "a", "completion": "b", "score": -Infinity}', "-Infinity is not a JSON value"),
        (b'{"prompt": "a", "completion": "b", "score": 1e999}', "1e999 is larger than any number"),
        (b'{"prompt": "a", "completion": "b", "completion": "c"}', "the key 'completion' occurs twice"),
        (b'{"prompt": "a", "meta": {"x": 1, "x": 2}}', "the key 'x' occurs twice"),
        (b'{"prompt": "a", "completion": "b"},', "a comma after the object"),
        (b'{"prompt": "a", // why\n', "JSON has no comments"),
        (b"{'prompt': 'a'}", "need double quotes"),
        (b'{"prompt": "\xed\xa0\xbd"}', "not UTF-8"),
        (b'{"prompt": "\xe9"}', "not UTF-8: byte 0xe9"),
        (b'{"prompt": "a\x00b"}', "Invalid control character at column 14: write it as \\u0000"),
        (b'{"prompt": "a"} {"prompt": "b"}', "another object follows"),
    ],
)
def test_what_cannot_be_read_is_a_finding_with_its_line(tmp_path: pathlib.Path, broken: bytes, words: str) -> None:
    found = written(tmp_path, "a.jsonl", GOOD + b"\n" + broken.rstrip(b"\n") + b"\n" + GOOD)
    (bad,) = [one for one in found if isinstance(one, rows.Bad)]
    assert (line(bad), len(found)) == (3, 3)
    assert words in bad.problem
    document = written(tmp_path, "a.json", GOOD + b"\n" + broken + b"\n" + GOOD)
    assert (
        any(isinstance(one, rows.Bad) and line(one) in (3, 4) for one in document)
        or b"}," in broken
        or b"} {" in broken
    )


@pytest.mark.parametrize("kind", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz"])
def test_utf_16_and_32_are_named(tmp_path: pathlib.Path, name: str, kind: str) -> None:
    text = (table(",") if name.endswith("csv") else LINES).decode().encode(kind)
    (bad,) = written(tmp_path, name, gzip.compress(text) if name.endswith("gz") else text)
    assert isinstance(bad, rows.Bad)
    assert f"the file is {kind[:6].upper()}" in bad.problem
    assert (line(bad), bad.ends) == (1, True)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json", "a.jsonl.gz"])
def test_files_of_other_kinds_are_named_with_what_to_do(tmp_path: pathlib.Path, name: str) -> None:
    packed, archive, sheet = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as zipped:
        zipped.writestr("a.jsonl", LINES)
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("a.jsonl")
        entry.size = len(LINES)
        tar.addfile(entry, io.BytesIO(LINES))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), sheet)
    kinds = {
        "bzip2": bz2.compress(LINES),
        "xz": lzma.compress(LINES),
        "ZIP archive": packed.getvalue(),
        "tar archive": archive.getvalue(),
        "Parquet": sheet.getvalue(),
    }
    for words, data in kinds.items():
        for stored in (data, gzip.compress(data)):
            (bad,) = written(tmp_path, name, stored)
            assert isinstance(bad, rows.Bad)
            assert words in bad.problem
            assert bad.ends


@pytest.mark.parametrize("column", ["PAR1", "ARROW1", "BZh9"])
def test_text_whose_first_column_has_the_name_of_a_format_is_read(tmp_path: pathlib.Path, column: str) -> None:
    (row,) = written(tmp_path, "a.csv", f"{column},prompt,completion\n1,a,b\n".encode())
    assert isinstance(row, rows.Row)
    assert row.value == {column: "1", "prompt": "a", "completion": "b"}


def test_parquet_maps_are_objects_and_a_key_that_stands_twice_is_named(tmp_path: pathlib.Path) -> None:
    turns = [[("role", "user"), ("content", "Hi")], [("role", "assistant"), ("content", "Hello")]]
    kind = pyarrow.list_(pyarrow.map_(pyarrow.string(), pyarrow.string()))
    pyarrow.parquet.write_table(pyarrow.table({"messages": pyarrow.array([turns], kind)}), tmp_path / "a.parquet")
    (row,) = written(tmp_path, "a.parquet", (tmp_path / "a.parquet").read_bytes())
    assert isinstance(row, rows.Row)
    assert row.value == {"messages": [dict(turn) for turn in turns]}
    twice = pyarrow.array([[[("role", "user"), ("role", "tool")]]], kind)
    pyarrow.parquet.write_table(pyarrow.table({"messages": twice}), tmp_path / "b.parquet")
    (bad,) = written(tmp_path, "b.parquet", (tmp_path / "b.parquet").read_bytes())
    assert isinstance(bad, rows.Bad)
    assert "duplicate key" in bad.problem


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.jsonl.gz", "a.json.zst", "a.csv.zst", "a.parquet.zst", "a.jsonl"])
def test_a_truncated_compressed_file_is_an_error_of_the_file(tmp_path: pathlib.Path, name: str, share: float) -> None:
    many = "".join(
        json.dumps({"prompt": f"{n * n} {n**9}", "completion": str(n)}) + "\n" for n in range(20_000)
    ).encode()
    packed = gzip.compress(many) if name.endswith("gz") else zstandard.ZstdCompressor().compress(many)
    bad = written(tmp_path, name, packed[: int(len(packed) * share)])[-1]
    assert isinstance(bad, rows.Bad)
    assert bad.ends


@pytest.mark.parametrize(
    "data, at, words",
    [
        (b"prompt,completion,completion\na,b,c\n", 1, "the column 'completion' occurs twice"),
        (b"prompt;completion\na;b;c\n", 2, "the header names 2 columns, this row has 3"),
        (b"prompt,completion\na,b\n" + b'"open quote,a\nq,a\n' + b"q,a\n" * 9, 3, "a quoted field begins in this row"),
        (b"text\na,b\n", 2, "the header names 1 columns"),
        (b"prompt,completion\na,\xe9\n", 2, "not UTF-8"),
    ],
)
def test_what_is_wrong_with_a_table_is_named_with_its_line(
    tmp_path: pathlib.Path, data: bytes, at: int, words: str
) -> None:
    bad = written(tmp_path, "a.csv", data)[-1]
    assert isinstance(bad, rows.Bad)
    assert words in bad.problem
    assert line(bad) == at


def test_parquet_names_columns_that_stand_twice_and_dates_that_python_lacks_are_no_text(tmp_path: pathlib.Path) -> None:
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    times = pyarrow.table({"text": ["a", "b", "c"], "at": pyarrow.array([0, 2**58, 1], pyarrow.timestamp("us"))})
    found = []
    for one in (twice, times):
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(one, buffer)
        found.append(written(tmp_path, "a.parquet", buffer.getvalue()))
    assert isinstance(found[0][0], rows.Bad)
    assert "the column 'text' occurs twice" in found[0][0].problem
    assert [one["text"] for one in values(found[1])] == ["a", "b", "c"]
    assert [one["at"] == rows.NO_DATE for one in values(found[1])] == [False, True, False]


def test_a_date_that_nobody_reads_is_no_fault_and_one_as_an_answer_is(tmp_path: pathlib.Path) -> None:
    times = pyarrow.array([2**58] * 3, pyarrow.timestamp("us"))
    words = {name: pyarrow.array([name] * 3) for name in ("prompt", "completion")}
    for columns, good in (({**words, "at": times}, True), ({**words, "completion": times}, False)):
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
        for one in dataset.parse(iter(written(tmp_path, "a.parquet", buffer.getvalue())), job.Format.AUTO):
            assert isinstance(one, dataset.Example) is good
            if isinstance(one, rows.Bad):
                assert "'completion' must be text" in one.problem


def test_the_cases_of_files_are_read_or_named() -> None:
    for name in ("23-bom-in-the-middle.jsonl", "48-u2028.jsonl", "52-bom-crlf.jsonl"):
        assert len(values(read(CASES / name))) > 5
    for name, at in (("11-lone-surrogate.jsonl", 4), ("12-huge-integer.jsonl", 3)):
        (bad,) = [one for one in read(CASES / name) if isinstance(one, rows.Bad)]
        assert (line(bad), bad.ends) == (at, False)
