"""Raw rows from data files, one at a time: JSONL, JSON, CSV and Parquet, plain or compressed (.gz, .zst).

`dataset` turns them into examples. Each row has its place, `uri:line`; a line that cannot be read becomes a Bad row with the
reason, so that one run names every broken line.
"""

import codecs
import contextlib
import csv
import dataclasses
import gzip
import io
import json
import pathlib
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from finetune_api import reasons
from finetune_trainer.process import errors
from finetune_trainer.store import objects, storage

SUFFIXES = ("jsonl", "ndjson", "json", "csv", "parquet")

LONGEST_LINE = 64 * 2**20
"""Bytes of one JSON line. A longer line means another kind of file."""


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
        # As Spark and Hive do: names such as _SUCCESS are the writer's markers, not data.
        entries = [entry for entry in entries if not entry.uri.rsplit("/", 1)[-1].startswith(("_", "."))]
        if not entries:
            raise errors.Failure(reasons.Reason.DATASET_NOT_FOUND, _missing(store, pattern))
        for entry in entries:
            kind(entry.uri)
            found[entry.uri] = entry
    return list(found.values())


def _missing(store: storage.Storage, pattern: str) -> str:
    folder = re.split(r"[*?]", pattern, maxsplit=1)[0].rpartition("/")[0] + "/"
    nearby = []
    if folder.count("/") > 2:
        for entry in store.entries(folder):
            nearby.append(entry.uri)
            if len(nearby) == 3:
                break
    seen = f"{folder} contains {', '.join(nearby)}" if nearby else f"{folder} is empty"
    return f"{pattern} matches no file: {seen}. Correct dataset.train (or the held-out uris), or upload the file."


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


def read(store: storage.Storage, uri: str) -> Iterator[Row | Bad]:
    """The rows of one file, streamed. A file that is cut off ends with a Bad row."""
    suffix, compression = kind(uri)
    readers: dict[str, Callable[[BinaryIO, str], Iterator[Row | Bad]]] = {
        "jsonl": _jsonl,
        "json": _json,
        "csv": _csv,
        "parquet": _parquet,
    }
    with contextlib.ExitStack() as stack:
        stream: BinaryIO = stack.enter_context(store.open(uri))
        try:
            if compression:
                stream = stack.enter_context(_decompress(stream, compression))
            yield from readers[suffix](stream, uri)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            yield Bad(uri, f"the compressed file is damaged: {error}; compress and upload it again", ends=True)
        except Exception as error:
            if type(error).__module__.startswith("zstandard"):
                yield Bad(uri, f"the compressed file is damaged: {error}; compress and upload it again", ends=True)
            else:
                raise


def _decompress(stream: BinaryIO, compression: str) -> Any:
    if compression == "gz":
        return gzip.open(stream, "rb")
    import zstandard

    reader: Any = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True)
    return io.BufferedReader(reader, 2**20)


def _jsonl(stream: BinaryIO, uri: str) -> Iterator[Row | Bad]:
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        source = f"{uri}:{number}"
        if len(line) > LONGEST_LINE:
            yield Bad(
                source, f"a line of more than {LONGEST_LINE >> 20} MiB; .jsonl has one example per line", ends=True
            )
            return
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            yield _decode(line, source)


def _decode(line: bytes, source: str) -> Row | Bad:
    try:
        return Row(source, json.loads(line.decode("utf-8").rstrip("\r\n")))
    except UnicodeDecodeError as error:
        return Bad(source, f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start + 1}; save it as UTF-8")
    except json.JSONDecodeError as error:
        return Bad(source, f"not valid JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return Bad(source, "not valid JSON: nested too deeply")


def _json(stream: BinaryIO, uri: str) -> Iterator[Row | Bad]:
    """An array of objects, or objects one after the other; read piece by piece, never as a whole."""
    text = codecs.getreader("utf-8-sig")(stream)
    decoder = json.JSONDecoder()
    buffer, line, ended, inside = "", 1, False, False
    try:
        while True:
            stripped = buffer.lstrip(" \t\r\n," if inside else " \t\r\n")
            line += buffer.count("\n", 0, len(buffer) - len(stripped))
            buffer = stripped
            if buffer.startswith("[") and not inside:
                buffer, inside = buffer[1:], True
                continue
            if inside and buffer.startswith("]"):
                return
            if not buffer and ended:
                if inside:
                    yield Bad(
                        f"{uri}:{line}", "not valid JSON: the array is not closed; the file is cut off", ends=True
                    )
                return
            try:
                value, end = decoder.raw_decode(buffer) if buffer else (None, 0)
                if not buffer or (end == len(buffer) and not ended):
                    raise json.JSONDecodeError("incomplete", buffer, end)  # a number may continue in the next piece
            except RecursionError:
                yield Bad(f"{uri}:{line}", "not valid JSON: nested too deeply", ends=True)
                return
            except json.JSONDecodeError as error:
                if len(buffer) > LONGEST_LINE:
                    yield Bad(
                        f"{uri}:{line}", f"a value of more than {LONGEST_LINE >> 20} MiB is not an example", ends=True
                    )
                    return
                piece = "" if ended else text.read(max(2**20, len(buffer)))
                if piece:
                    buffer += piece
                    continue
                if not ended:
                    ended = True
                    continue
                problem = f"not valid JSON: {error.msg} at column {error.colno}"
                yield Bad(f"{uri}:{line + error.lineno - 1}", problem, ends=True)
                return
            yield Row(f"{uri}:{line}", value)
            line += buffer.count("\n", 0, end)
            buffer = buffer[end:]
    except UnicodeDecodeError as error:
        yield Bad(f"{uri}:{line}", f"not UTF-8: {error.reason}; save it as UTF-8", ends=True)


def _csv(stream: BinaryIO, uri: str) -> Iterator[Row | Bad]:
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.DictReader(text, strict=True)
    start = 2
    try:
        for record in reader:
            source, start = f"{uri}:{start}", reader.line_num + 1
            if None in record or None in record.values():
                columns = len(reader.fieldnames or ())
                yield Bad(
                    source, f"the header names {columns} columns, this row has a different number; quote the commas"
                )
            else:
                yield Row(source, dict(record))
    except csv.Error as error:
        yield Bad(f"{uri}:{reader.line_num}", f"not valid CSV: {error}", ends=True)
    except UnicodeDecodeError as error:
        yield Bad(f"{uri}:{start}", f"not UTF-8: {error.reason}; save it as UTF-8", ends=True)


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
                for batch in table.iter_batches(batch_size=256):
                    for value in batch.to_pylist():
                        number += 1
                        yield Row(f"{uri}:{number}", value)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk: Arrow's own errors for a damaged file have no errno
            yield Bad(f"{uri}:{number + 1}", f"not valid Parquet: {error}", ends=True)
