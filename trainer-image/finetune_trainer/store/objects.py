"""The interface of every store: `files` and `s3` implement it, `storage` chooses between them."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Iterator
from typing import BinaryIO, Protocol

PART = 16 * 2**20
"""Bytes of a part of a multipart upload, and of a piece of a streamed download."""


_deadline = float("inf")


@contextlib.contextmanager
def hurried(seconds: float) -> Iterator[None]:
    """Limits the wait for an outage, of all threads, to this many seconds from now: the process is about to be killed."""
    global _deadline
    before, _deadline = _deadline, time.monotonic() + seconds
    try:
        yield
    finally:
        _deadline = before


def deadline() -> float:
    """The monotonic time at which waiting for an outage ends."""
    return _deadline


@dataclasses.dataclass(frozen=True)
class Entry:
    """An object as listed: where, how many bytes, and the store's tag of its contents ("" where there is none)."""

    uri: str
    size: int
    etag: str = ""


class Store(Protocol):
    """A store of one URI scheme."""

    def normal(self, uri: str) -> str: ...
    def stat(self, uri: str) -> Entry: ...
    def md5(self, uri: str) -> str: ...
    def open(self, uri: str) -> BinaryIO: ...
    def write(self, uri: str, data: bytes) -> None: ...
    def upload(self, path: pathlib.Path, uri: str) -> None: ...
    def download(self, uri: str, path: pathlib.Path) -> None: ...
    def entries(self, prefix: str, flat: bool = False) -> Iterator[Entry]: ...
    def delete(self, uri: str) -> None: ...
