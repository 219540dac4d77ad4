"""A folder's files as a tar file over HTTP, both ways: plain USTAR, regular files only, in a folder without folders.

The reader gives one header at a time, and takes what is not a regular file for an attack: links, devices, and the extensions that
give files long names or other sizes.
"""

import pathlib
import tarfile
from collections.abc import AsyncIterator, Iterator
from typing import Protocol

BLOCK, PIECE = tarfile.BLOCKSIZE, 1 << 20


class Bad(Exception):
    """Not such a tar file, or a part of one."""


class Stream(Protocol):
    """What aiohttp has for the bodies of requests and answers."""

    async def readexactly(self, n: int, /) -> bytes: ...


def pieces(files: list[tuple[str, pathlib.Path]]) -> Iterator[bytes]:
    """The tar file of these names and files, in this order."""
    for name, path in files:
        with path.open("rb") as file:
            header = tarfile.TarInfo(name)
            header.size = size = path.stat().st_size
            yield header.tobuf(tarfile.USTAR_FORMAT)
            while piece := file.read(PIECE):
                yield piece
            yield bytes(-size % BLOCK)
    yield bytes(2 * BLOCK)


def size(files: list[tuple[str, pathlib.Path]]) -> int:
    """Bytes of that tar file."""
    return 2 * BLOCK + sum(BLOCK + -(-path.stat().st_size // BLOCK) * BLOCK for _, path in files)


async def header(stream: Stream) -> tarfile.TarInfo | None:
    """The next file's header; None at the end. Raises Bad."""
    block = await _read(stream, BLOCK)
    if not block.strip(b"\0"):
        return None
    try:
        found = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise Bad(f"no header of a tar file: {error}") from None
    if found.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise Bad(f"{found.name[:100]!r} is no regular file")
    return found


async def content(stream: Stream, size: int) -> AsyncIterator[bytes]:
    """The bytes of the file whose header was read last. Raises Bad."""
    left = size
    while left:
        piece = await _read(stream, min(left, PIECE))
        left -= len(piece)
        yield piece
    await _read(stream, -size % BLOCK)


async def _read(stream: Stream, size: int) -> bytes:
    try:
        return await stream.readexactly(size) if size else b""
    except EOFError:  # IncompleteReadError is one
        raise Bad("the tar file ends too early") from None
