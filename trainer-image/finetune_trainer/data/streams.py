"""The bytes of a data file, decompressed: recognized by their first bytes, whatever the file's name says.

`rows` reads from here.
"""

import codecs
import contextlib
import gzip
import io
import zlib
from typing import Any, BinaryIO

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"

LAYERS = 3
"""Compressions on top of one another: a file is sometimes compressed once by its writer and once by the store."""

DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, OSError)
"""What a damaged or truncated compressed file raises; an OSError without errno."""

_ENCODINGS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)

KINDS = (
    (0, b"PAR1\x15", "is Parquet; name it .parquet"),
    (0, b"ARROW1\0\0", "is an Arrow file; save it as Parquet"),
    (0, b"PK\x03\x04", "is a ZIP archive; unpack it, or compress the file with gzip or zstd"),
    (4, b"1AY&SY", "is compressed with bzip2; use gzip or zstd"),
    (0, b"\xfd7zXZ\0", "is compressed with xz; use gzip or zstd"),
    (257, b"ustar", "is a tar archive; unpack it, or compress the file with gzip or zstd"),
    (0, b"SQLite format 3\0", "is a SQLite database; export its rows"),
    (0, b"%PDF-", "is a PDF document; write its text as rows"),
)
"""Place and bytes by which other kinds of files are known, and what to do about them. Long enough that no text begins
so: columns may be named PAR1 or BZh9."""


def plain(stack: contextlib.ExitStack, stream: BinaryIO) -> io.BufferedReader:
    """The stream without its compressions."""
    found = _buffered(stream)
    for _ in range(LAYERS):
        first = found.peek(4)[:4]
        if first.startswith(GZIP):
            found = _buffered(stack.enter_context(gzip.GzipFile(fileobj=found, mode="rb")))
        elif first == ZSTD:
            found = _buffered(stack.enter_context(_zstd(found)))
        else:
            break
    return found


def _zstd(stream: BinaryIO) -> Any:
    # Of pyarrow: zstandard's own reader takes the end of a truncated file for the end of its data.
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, mode="r"), "zstd")


def _buffered(stream: Any) -> io.BufferedReader:
    return io.BufferedReader(stream, 2**20)


def other_encoding(stream: io.BufferedReader) -> str | None:
    """UTF-16 or UTF-32 where the first bytes say so; None: perhaps UTF-8."""
    first = stream.peek(8)[:8]
    for mark, name in _ENCODINGS:
        if first.startswith(mark):
            return name
    if len(first) >= 4 and (first[0:4:2] == b"\0\0") is not (first[1:4:2] == b"\0\0"):
        return "UTF-16"  # without a mark: every other byte of ASCII is zero
    return None


def other_kind(stream: io.BufferedReader) -> str | None:
    """What else than text a file is by its first bytes, and what to do; None: perhaps text."""
    first = stream.peek(512)[:512]
    return next((words for place, mark, words in KINDS if first[place:].startswith(mark)), None)


def starts_as_document(stream: io.BufferedReader) -> bool:
    """Whether the first bytes are those of an array, or of an object over several lines, and not of a line of JSONL."""
    first = stream.peek(2**16)[: 2**16].removeprefix(codecs.BOM_UTF8).lstrip()
    return first.startswith(b"[") or first.split(b"\n", 1)[0].strip() == b"{"
