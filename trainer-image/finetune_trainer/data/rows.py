"""Raw rows from data files, one at a time: JSONL, JSON, CSV and Parquet, plain or compressed (.gz, .zst).

`dataset` turns them into examples. Each row has its place, `uri:line`; a line that cannot be read becomes a Bad row with the
reason, so that one run names every broken line.
"""

import codecs
import collections
import contextlib
import csv
import dataclasses
import datetime
import difflib
import io
import itertools
import json
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from finetune_api import reasons
from finetune_trainer.data import streams, values
from finetune_trainer.process import errors
from finetune_trainer.store import objects, storage

SUFFIXES = ("jsonl", "ndjson", "json", "csv", "parquet")

LONGEST_LINE = 64 * 2**20
"""Bytes of one JSON line. A longer line means another kind of file."""

NO_DATE = datetime.datetime.max

NEARBY = 1000
"""Files of a folder that are compared with a name that does not exist."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a file, as it is."""

    source: str
    value: Any


@dataclasses.dataclass(frozen=True)
class Bad:
    """A row that cannot be read."""

    source: str
    problem: str
    rule: str = "unreadable"
    """The data check that it breaks."""
    ends: bool = False
    """Whether the rest of the file is not read."""


def find(store: storage.Storage, patterns: list[str]) -> list[objects.Entry]:
    """The files of a dataset, each once, in the order of the patterns and of their names.

    Raises Failure(DatasetNotFound) when a pattern matches nothing, Failure(DatasetInvalid) for an unknown kind of file.
    """
    found: dict[str, objects.Entry] = {}
    for pattern in patterns:
        try:
            entries = store.glob(pattern)
        except errors.NotFound:
            raise errors.Failure(reasons.Reason.DATASET_NOT_FOUND, _missing(store, pattern)) from None
        if re.search(r"[*?]", pattern):
            entries = [entry for entry in entries if not is_marker(entry.uri)]
        if not entries:
            raise errors.Failure(reasons.Reason.DATASET_NOT_FOUND, _missing(store, pattern))
        for entry in entries:
            kind(entry.uri)
            found[entry.uri] = entry
    return list(found.values())


def is_marker(uri: str) -> bool:
    """Whether a pattern leaves the file out, as Spark and Hive do: names such as _SUCCESS are a writer's markers, not data."""
    return uri.rsplit("/", 1)[-1].startswith(("_", "."))


def _missing(store: storage.Storage, pattern: str) -> str:
    """That a pattern matches nothing, and what lies there, as far as the key may list it."""
    try:
        return _nearby(store, pattern)
    except errors.Failure as failure:
        if failure.reason is not reasons.Reason.S3_ACCESS_DENIED:
            raise
        return f"{pattern} does not exist, and the key may not list what is there (s3:ListBucket). Correct the path."


def _nearby(store: storage.Storage, pattern: str) -> str:
    """What lies where a pattern matches nothing, the most similar names first."""
    if next(store.entries(f"{pattern.rstrip('/')}/", flat=True), None) is not None:
        pattern = pattern.rstrip("/")
        return f"{pattern} is a folder, not a file; write {pattern}/*.jsonl for the files in it."
    folder = re.split(r"[*?]", pattern, maxsplit=1)[0].rpartition("/")[0] + "/"
    seen = f"{folder} is empty, or does not exist."
    if folder.count("/") > 2:
        nearby = [entry.uri for entry in itertools.islice(store.entries(folder, flat=True), NEARBY)]
        # By what differs below the folder: with a long folder before them all names would be similar.
        names = {uri.removeprefix(folder): uri for uri in nearby}
        if similar := difflib.get_close_matches(pattern.removeprefix(folder), names, 3, 0.75):
            seen = f"did you mean {' or '.join(names[name] for name in similar)}?"
        elif nearby or (nearby := [entry.uri for entry in itertools.islice(store.entries(folder), 3)]):
            seen = f"{folder} contains {', '.join(nearby[:3])}."
    return (
        f"{pattern} matches no file: {seen} Correct the path (in a job: dataset.train, or the uris of a "
        "held-out split), or upload the file."
    )


def kind(uri: str) -> tuple[str, str]:
    """The format and the compression ("", "gz" or "zst"), by the name of a file."""
    name = uri.rsplit("/", 1)[-1].lower()
    compression = next((suffix for suffix in ("gz", "zst") if name.endswith("." + suffix)), "")
    name = name.removesuffix("." + compression) if compression else name
    suffix = name.rpartition(".")[2]
    if suffix not in SUFFIXES or "." not in name:
        raise errors.Failure(
            reasons.Reason.DATASET_INVALID,
            f"{uri}: the name must end with .jsonl, .json, .csv or .parquet, each also with .gz or .zst",
        )
    return ("jsonl" if suffix == "ndjson" else suffix), compression


def is_known(uri: str) -> bool:
    """Whether the name is that of a file with rows."""
    try:
        kind(uri)
    except errors.Failure:
        return False
    return True


def read(store: storage.Storage, uri: str) -> Iterator[Row | Bad]:
    """The rows of one file, streamed. A file that is cut off ends with a Bad row."""
    suffix = kind(uri)[0]
    readers: dict[str, Callable[[io.BufferedReader, str], Iterator[Row | Bad]]] = {
        "jsonl": _jsonl,
        "json": _json,
        "csv": _csv,
        "parquet": _parquet,
    }
    with contextlib.ExitStack() as stack:
        try:
            stream = streams.plain(stack, stack.enter_context(store.open(uri)))
            if suffix != "parquet" and (named := streams.other_encoding(stream)):
                yield Bad(f"{uri}:1", f"the file is {named}; save it as UTF-8", ends=True)
                return
            if suffix != "parquet" and (other := streams.other_kind(stream)):
                yield Bad(uri, f"the file {other}", ends=True)
                return
            yield from readers[suffix](stream, uri)
        except streams.DAMAGED as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk: the decompressors' own errors have no errno
            yield Bad(uri, f"the compressed file is damaged: {error}; compress and upload it again", ends=True)


def _jsonl(stream: io.BufferedReader, uri: str) -> Iterator[Row | Bad]:
    if streams.starts_as_document(stream):
        yield from _json(stream, uri)
        return
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            problem = f"a line of more than {LONGEST_LINE >> 20} MiB; .jsonl has one example per line"
            yield Bad(f"{uri}:{number + 1}", problem, ends=True)
            return
        # Lines of old Macs end in CR alone; JSON has none inside of its strings.
        for piece in line.rstrip(b"\r\n").split(b"\r"):
            number += 1
            while piece.startswith(codecs.BOM_UTF8):  # also where files were joined
                piece = piece.removeprefix(codecs.BOM_UTF8)
            if piece.strip():
                yield _decode(piece, f"{uri}:{number}")


def _decode(line: bytes, source: str) -> Row | Bad:
    try:
        return Row(source, values.strict(line.decode("utf-8")))
    except UnicodeDecodeError as error:
        return Bad(source, f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start + 1}; save it as UTF-8")
    except json.JSONDecodeError as error:
        return Bad(source, f"not valid JSON: {_explained(error)}")
    except ValueError as error:
        return Bad(source, f"not usable JSON: {error}")


def _explained(error: json.JSONDecodeError) -> str:
    """What is wrong with a text of JSON, with the cause where it is a usual one."""
    rest = error.doc[error.pos :].lstrip()
    where = f"{error.msg.removesuffix(' at')} at column {error.colno}"
    if error.msg == "Extra data" and rest.startswith(","):
        return f"{where}: a comma after the object; .jsonl has one object per line and nothing between them"
    if error.msg == "Extra data" and rest.startswith("{"):
        return (
            f"{where}: another object follows; .jsonl has one per line (a file named .json may have them in any form)"
        )
    if error.msg.startswith("Invalid control character"):
        return f"{where}: write it as \\u{ord(error.doc[error.pos]):04x}"
    if rest.startswith(("//", "/*", "#")):
        return f"{where}: JSON has no comments; remove them"
    if rest.startswith("'"):
        return f"{where}: JSON strings need double quotes"
    return where


def _json(stream: BinaryIO, uri: str) -> Iterator[Row | Bad]:
    """An array of objects, or objects one after the other; read piece by piece, never as a whole."""
    text = codecs.getreader("utf-8")(stream, "surrogateescape")
    buffer, line, ended, inside = "", 1, False, False
    blank = " \t\r\n\ufeff"
    while True:
        stripped = buffer.lstrip(blank + "," if inside else blank)
        line += _lines(buffer[: len(buffer) - len(stripped)])
        buffer = stripped
        if buffer.startswith("[") and not inside:
            buffer, inside = buffer[1:], True
            continue
        if inside and buffer.startswith("]"):
            buffer, inside = buffer[1:], False  # another array may follow, where files were joined
            continue
        if not buffer and ended:
            if inside:
                problem = "not valid JSON: the array is not closed; the file is cut off"
                yield Bad(f"{uri}:{line}", problem, ends=True)
            return
        try:
            value, end = values.STRICT.raw_decode(buffer) if buffer else (None, 0)
            if not buffer or (end == len(buffer) and not ended):
                raise json.JSONDecodeError("incomplete", buffer, end)  # a number may continue in the next piece
        except RecursionError:
            yield Bad(f"{uri}:{line}", "not valid JSON: nested too deeply", ends=True)
            return
        except json.JSONDecodeError as error:
            if len(buffer) > LONGEST_LINE:
                problem = f"a value of more than {LONGEST_LINE >> 20} MiB is not an example"
                yield Bad(f"{uri}:{line}", problem, ends=True)
                return
            piece = "" if ended else text.read(max(2**20, len(buffer)))
            if piece:
                buffer += piece
                continue
            if not ended:
                ended = True
                continue
            yield Bad(f"{uri}:{line + error.lineno - 1}", f"not valid JSON: {_explained(error)}", ends=True)
            return
        except values.Refused as error:
            yield Bad(f"{uri}:{line}", f"not usable JSON, in the value that begins here: {error}", ends=True)
            return
        yield _checked(value, buffer[:end], f"{uri}:{line}")
        line += _lines(buffer[:end])
        buffer = buffer[end:]


def _checked(value: Any, text: str, source: str) -> Row | Bad:
    try:
        values.checked(value, text)
    except values.Refused as error:
        return Bad(source, f"not usable JSON: {error}")
    return _other_bytes(text, source) or Row(source, value)


def _other_bytes(text: str, source: str) -> Bad | None:
    """A finding for a text that was read with bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) - 0xDC00  # as Python's surrogateescape hides it
        return Bad(source, f"not UTF-8: byte 0x{byte:02x}; save it as UTF-8")
    return None


def _lines(text: str) -> int:
    """Ends of lines, whichever way they are written."""
    return text.count("\n") or text.count("\r")


def _csv(stream: BinaryIO, uri: str) -> Iterator[Row | Bad]:
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    csv.field_size_limit(LONGEST_LINE)
    start = 1
    try:
        header = text.readline(LONGEST_LINE)
        skipped = 0
        if re.fullmatch(r"sep=.", header.strip()):  # Excel's own line, which names the separator
            header, skipped = text.readline(LONGEST_LINE), 1
        # Spreadsheets write semicolons where the comma is the decimal mark.
        separator = "," if "," in header else max(",;\t|", key=header.count)
        reader = csv.reader(itertools.chain([header], _bounded(text)), delimiter=separator, strict=True)
        columns = [name.strip() for name in next(reader, [])]
        if twice := [name for name, count in collections.Counter(columns).items() if count > 1]:
            problem = (
                f"the column {twice[0]!r} occurs twice in the header, so that one of them would be lost; rename one"
            )
            yield Bad(f"{uri}:1", problem, ends=True)
            return
        start = reader.line_num + skipped + 1
        for record in reader:
            source, start = f"{uri}:{start}", reader.line_num + skipped + 1
            if record and record[0].startswith("\ufeff"):  # where files were joined
                record[0] = record[0].lstrip("\ufeff")
                if [name.strip() for name in record] == columns:
                    continue
            if bad := _other_bytes("".join(record), source):
                yield bad
            elif len(record) == len(columns):
                yield Row(source, dict(zip(columns, record, strict=True)))
            elif record:
                problem = f"the header names {len(columns)} columns, this row has {len(record)}; quote the commas"
                yield Bad(source, problem)
    except csv.Error as error:
        hint = "; a quoted field begins in this row and is not closed" if "unexpected end" in str(error) else ""
        yield Bad(f"{uri}:{start}", f"not valid CSV: {error}{hint}", ends=True)


def _bounded(text: io.TextIOWrapper) -> Iterator[str]:
    """The lines of a table. Raises csv.Error for one that is too long to be a row."""
    while line := text.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise csv.Error(f"a line of more than {LONGEST_LINE >> 20} MiB")
        yield line


def _parquet(stream: BinaryIO, uri: str) -> Iterator[Row | Bad]:
    """Parquet's index is at the end, so the file is downloaded to disk first, never into memory."""
    import pyarrow
    import pyarrow.parquet

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "data.parquet"
        with path.open("wb") as file:
            while piece := stream.read(objects.PART):
                file.write(piece)
        number = 0
        try:
            with pyarrow.parquet.ParquetFile(path) as table:
                names = collections.Counter(table.schema_arrow.names)
                if twice := [name for name, count in names.items() if count > 1]:
                    yield Bad(f"{uri}:1", f"the column {twice[0]!r} occurs twice; rename one", ends=True)
                    return
                for batch in table.iter_batches(batch_size=256):
                    for value in _records(batch):
                        number += 1
                        source = f"{uri}:{number}"
                        yield Bad(source, value) if isinstance(value, str) else Row(source, value)
        except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk: Arrow's own errors for a damaged file have no errno
            yield Bad(f"{uri}:{number + 1}", f"not valid Parquet: {error}", ends=True)


def _records(batch: Any) -> Iterator[dict[str, Any] | str]:
    """The rows of a batch. Dates that Python does not have, such as those after the year 9999, are NO_DATE, which is no text of
    an example; a text says why a row cannot be read at all."""
    import pyarrow

    unusable = (pyarrow.ArrowException, ValueError, OverflowError, KeyError)
    try:
        yield from batch.to_pylist(maps_as_pydicts="strict")
        return
    except unusable:
        pass
    dates = [name for name in batch.schema.names if pyarrow.types.is_temporal(batch.schema.field(name).type)]
    others = batch.drop_columns(dates)
    for row, value in enumerate(_each(others, unusable)):
        if isinstance(value, str):
            yield value
            continue
        for name in dates:
            (date,) = _each(batch.select([name]).slice(row, 1), unusable)
            value[name] = NO_DATE if isinstance(date, str) else date[name]
        yield {name: value[name] for name in batch.schema.names}


def _each(batch: Any, unusable: tuple[type[Exception], ...]) -> Iterator[dict[str, Any] | str]:
    """The rows one by one; a text for one that cannot be read."""
    for index in range(batch.num_rows):
        try:
            (value,) = batch.slice(index, 1).to_pylist(maps_as_pydicts="strict")
        except unusable as error:
            value = f"a value of this row cannot be read: {error}"
        yield value
