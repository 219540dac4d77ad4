"""Folders in storage that readers see complete or not at all: manifest.json, written last, lists every file with size and
SHA-256.

A folder without a manifest counts as missing, and so does one whose manifest is empty: that is how a folder is withdrawn where
nothing may be deleted. One whose files do not match the manifest is Corrupt.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import pathlib
from typing import Any

from finetune_api import layout, reasons
from finetune_trainer.process import errors
from finetune_trainer.store import storage


class Corrupt(errors.Failure):
    """The manifest and the files disagree."""

    def __init__(self, message: str) -> None:
        super().__init__(reasons.Reason.TRAINER_ERROR, message)


@dataclasses.dataclass(frozen=True)
class File:
    path: str
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The contents of a folder. `sha256` is the hash of the manifest's own bytes: it identifies the whole folder."""

    files: tuple[File, ...]
    sha256: str
    extra: dict[str, Any]

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)


MADE_OF = "madeOf"
"""In a manifest: the sha256 of the frozen split that the folder was made from."""


def made_of(store: storage.Storage, found: Manifest, data: str) -> bool:
    """Whether a folder was made from the frozen split that is at `data` now."""
    split = manifest(store, data)
    return split is not None and found.extra.get(MADE_OF) == split.sha256


def save(store: storage.Storage, local: pathlib.Path, uri: str, extra: dict[str, Any] | None = None) -> Manifest:
    """Uploads a local folder and then its manifest. An older manifest at `uri` is withdrawn first."""
    paths = sorted(path for path in local.rglob("*") if path.is_file() and path.name != layout.MANIFEST)
    files = [File(str(path.relative_to(local)), path.stat().st_size, sha256(path)) for path in paths]
    document = {"files": [dataclasses.asdict(file) for file in files], **(extra or {})}
    data = (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()
    withdraw(store, uri)
    for path, file in zip(paths, files, strict=True):
        store.upload(path, f"{uri}/{file.path}")
    store.write(f"{uri}/{layout.MANIFEST}", data)
    return parse(data, uri)


def manifest(store: storage.Storage, uri: str) -> Manifest | None:
    """The manifest of a complete folder; None where there is none."""
    try:
        data = store.read(f"{uri}/{layout.MANIFEST}")
    except errors.NotFound:
        return None
    return parse(data, uri) if data else None


def load(
    store: storage.Storage, uri: str, local: pathlib.Path, *, expected: str | None = None, only: set[str] | None = None
) -> Manifest:
    """Downloads a complete folder and checks every file. Raises NotFound, or Corrupt when a hash differs.

    Files that are in `local` already, with the right hash, are not downloaded again.
    expected: the SHA-256 that the manifest must have; only: the files to download; None: all.
    """
    found = manifest(store, uri)
    if found is None:
        raise errors.NotFound(f"{uri}/{layout.MANIFEST}")
    if expected is not None and found.sha256 != expected:
        raise Corrupt(f"{uri}: the manifest's SHA-256 is {found.sha256}, expected {expected}; the folder was replaced")
    local.mkdir(parents=True, exist_ok=True)
    wanted = [file for file in found.files if only is None or file.path in only]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda file: _fetch(store, uri, file, local), wanted))
    return found


def _fetch(store: storage.Storage, uri: str, file: File, local: pathlib.Path) -> None:
    path = local / file.path
    if not path.resolve().is_relative_to(local.resolve()):
        raise Corrupt(f"{uri}: the manifest names {file.path!r}, which is outside of the folder")
    if _same(path, file):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        store.download(f"{uri}/{file.path}", path)
    except errors.NotFound:
        raise Corrupt(f"{uri}/{file.path} is missing, although the manifest lists it") from None
    if not _same(path, file):
        raise Corrupt(f"{uri}/{file.path}: size or SHA-256 differ from the manifest's; the file was changed or damaged")


def _same(path: pathlib.Path, file: File) -> bool:
    return path.is_file() and path.stat().st_size == file.size and sha256(path) == file.sha256


def parse(data: bytes, uri: str) -> Manifest:
    try:
        document = json.loads(data)
        files = tuple(File(**file) for file in document.pop("files"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"{uri}/{layout.MANIFEST} is not a manifest: {error}") from error
    return Manifest(files, hashlib.sha256(data).hexdigest(), document)


def sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def withdraw(store: storage.Storage, uri: str) -> bool:
    """Makes a folder incomplete for its readers. Returns whether the key may delete; else the manifest stays, empty."""
    place = f"{uri}/{layout.MANIFEST}"
    if discard(store, place):
        return True
    if store.exists(place):
        store.write(place, b"")
    return False


def discard(store: storage.Storage, uri: str) -> bool:
    """Deletes an object; False where the key may not, or the store keeps it."""
    try:
        store.delete(uri)
    except errors.Failure as failure:
        if failure.reason is not reasons.Reason.S3_ACCESS_DENIED:
            raise
        return False
    return True


def remove(store: storage.Storage, uri: str) -> bool:
    """Deletes a folder, the manifest first, so that readers never see a part of it. Returns whether it is gone: where the key may
    not delete, its files stay, and the folder is only withdrawn."""
    if not withdraw(store, uri):
        return False
    for entry in list(store.entries(f"{uri}/")):
        store.delete(entry.uri)
    return True
