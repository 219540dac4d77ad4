"""Base models in a folder that pods share, such as a claim: filled once however many ask, checked by hash, bounded.

    ROOT/KEY/                 the files of one content of one source; the folder appears when it is complete
    ROOT/.state/KEY.files     size, time and SHA-256 of each of its files; its own time is that of the last check of all hashes
    ROOT/.state/KEY.part/     a download in progress, or what a killed one has left: the next one continues
    ROOT/.state/KEY.*         see `locks`

Called by the init container of a pod, with write access; the other containers read. Free of torch.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from finetune_api import reasons, run
from finetune_trainer.process import errors, log
from finetune_trainer.store import locks, origin, sources, storage

T = TypeVar("T")
U = TypeVar("U")

REMOVED = ".removed-"
AT_ONCE = 4
"""Files that are downloaded or hashed at the same time."""
CHECKED_EVERY = 24 * 3600.0
"""Seconds after which all hashes are checked again; before, only those of files whose size or time has changed."""
GRACE = 3600.0
"""Seconds in which a pod may pull its other images and start to use what was fetched for it."""
STUCK = 900.0
"""Seconds after which a download of another pod that does not grow is given up."""
SAYS = 15.0
"""Seconds between two lines of the log while another pod downloads."""


def provide(base: run.ResolvedBaseModel, store: storage.Storage, root: pathlib.Path, limit: int | None) -> pathlib.Path:
    """The folder with the model's files, in use by this process. `limit`: bytes of all models together; None: as the file
    system has.

    Raises Failure: of the source, and StorageUnavailable if the cache has no room or cannot be used.
    """
    found = origin.of(base, store)
    folder = root / found.key
    with _explained(root):
        part = locks.path(folder, "part")
        part.parent.mkdir(exist_ok=True)
        with locks.alone(locks.path(folder, "lock"), _Patience(folder, found.size)):
            _fill(found, folder, part, limit)
            locks.path(folder, "use").touch()
            locks.use(folder)
    return folder


def _fill(found: origin.Origin, folder: pathlib.Path, part: pathlib.Path, limit: int | None) -> None:
    """Downloads what is missing or is not as it was, into `part`, and puts it in its place."""
    begun, there = time.monotonic(), folder.is_dir()
    sums = _sums(folder) if there else {}
    wanted = [file for file, sound in zip(found.files, _sound(folder, found.files, sums), strict=True) if not sound]
    if not wanted:
        log.info("base model found in the cache", source=found.base.source, folder=str(folder))
        return
    if there:
        names = ", ".join(file.name for file in wanted)
        log.warning("files of the cache are not as they were downloaded: again", folder=str(folder), files=names)
    locks.path(folder, "lock").write_text(str(found.size))
    _prepare(part, {file.name for file in wanted})
    with locks.alone(part.with_name("room.lock"), _Patience(folder, found.size)):
        _make_room(folder, found.size, limit)
    log.info("downloading the base model into the cache", source=found.base.source, bytes=sum(f.size for f in wanted))
    new = _all(wanted, lambda file: _arrived(found, file, folder, part))
    shutil.rmtree(part / origin.NOTES, ignore_errors=True)
    if there:
        for file in wanted:
            (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
            (part / file.name).replace(folder / file.name)
        shutil.rmtree(part)
    else:
        sources.check(part, found.base.source)
    known = {name: one["sha256"] for name, one in sums.items()}
    _remember(folder if there else part, folder, known | dict(zip([file.name for file in wanted], new, strict=True)))
    if not there:
        part.replace(folder)
    seconds = round(time.monotonic() - begun, 1)
    log.info("base model downloaded into the cache", source=found.base.source, bytes=found.size, seconds=seconds)


def _prepare(part: pathlib.Path, names: set[str]) -> None:
    """Leaves what a killed download has completed, and removes its pieces."""
    part.mkdir(exist_ok=True)
    for path in [path for path in part.rglob("*") if path.is_file()]:
        name = path.relative_to(part)
        if str(name) not in names and name.parts[0] != origin.NOTES:
            path.unlink()


def _arrived(found: origin.Origin, file: origin.File, folder: pathlib.Path, part: pathlib.Path) -> str:
    """The SHA-256 of a file that is complete in `part`, and on the disk."""
    (part / file.name).parent.mkdir(parents=True, exist_ok=True)
    sha256 = found.arrive(file, part)
    with (part / file.name).open("rb") as written:
        os.fsync(written.fileno())
    _comes_on(folder)
    return sha256


def _comes_on(folder: pathlib.Path) -> None:
    """Tells those who wait."""
    os.utime(locks.path(folder, "lock"))


def _sums(folder: pathlib.Path) -> dict[str, Any]:
    """What was noted of the files when they were downloaded; nothing if the note is missing or torn."""
    try:
        return dict(json.loads(locks.path(folder, "files").read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


def _remember(files: pathlib.Path, folder: pathlib.Path, sums: dict[str, str]) -> None:
    """Notes size, time and hash of each file, at once or not at all."""
    note = {}
    for name, sha256 in sums.items():
        state = (files / name).stat()
        note[name] = {"size": state.st_size, "time": state.st_mtime_ns, "sha256": sha256}
    path = locks.path(folder, "files")
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(json.dumps(note))
    temporary.replace(path)


def _sound(folder: pathlib.Path, files: tuple[origin.File, ...], sums: dict[str, Any]) -> list[bool]:
    """Whether each file is what was downloaded."""
    note = locks.path(folder, "files")
    due = bool(sums) and time.time() - note.stat().st_mtime > CHECKED_EVERY

    def sound(file: origin.File) -> bool:
        path, noted = folder / file.name, sums.get(file.name)
        if noted is None or not path.is_file():
            return False
        state = path.stat()
        if state.st_size != noted["size"]:
            return False
        if state.st_mtime_ns == noted["time"] and not due:
            return True
        same = origin.digest(path, "sha256:") == str(noted["sha256"])
        _comes_on(folder)
        return same

    found = _all(files, sound)
    if due and all(found):
        note.touch()
    return found


def _make_room(folder: pathlib.Path, needed: int, limit: int | None) -> None:
    """Removes what was used longest ago, until the model has room. Raises Failure(StorageUnavailable)."""
    root = folder.parent
    whole = min(limit or sys.maxsize, shutil.disk_usage(root).total)
    for path in root.glob(f"{REMOVED}*"):  # by a process that was killed
        shutil.rmtree(path, ignore_errors=True)
    while True:
        others = [one for one in _models(root) if one.folder != folder]
        taken, free = sum(one.planned for one in others), shutil.disk_usage(root).free
        own = _size(folder) + _size(locks.path(folder, "part"))
        coming = sum(one.planned - one.size for one in others) + max(0, needed - own)
        if coming <= free and taken + needed <= whole:
            return
        if needed <= whole and any(_removed(one) for one in sorted(others, key=lambda one: one.used)):
            continue
        raise errors.Failure(
            reasons.Reason.STORAGE_UNAVAILABLE,
            f"the model cache has no room for {folder.name} of {needed} bytes: it may have {whole} bytes, {free} are free, and "
            f"{len(others)} other models of {taken} bytes are in use or were fetched within the last hour. Enlarge the claim or "
            "modelCache.size, or wait.",
        )


@dataclasses.dataclass(frozen=True)
class _Model:
    """A model of the cache, or a download: bytes that it has, and will have; when it was used last."""

    folder: pathlib.Path
    path: pathlib.Path
    size: int
    planned: int
    used: float


def _models(root: pathlib.Path) -> list[_Model]:
    """What this module has put there: anything else on the claim is not its own."""
    found = []
    for path in (root / locks.STATE).iterdir():
        folder = root / path.name.rpartition(".")[0]
        if path.name.endswith(".files") and folder.is_dir():
            size = _size(folder)
            found.append(_Model(folder, folder, size, size, _time(locks.path(folder, "use"))))
        if path.name.endswith(".part"):
            size, lock = _size(path), locks.path(folder, "lock")
            with locks.free(lock) as left_behind:
                planned = size if left_behind else max(size, int(lock.read_text() or 0))
            found.append(_Model(folder, path, size, planned, _time(path)))
    return found


def _removed(one: _Model) -> bool:
    """Removes it, unless somebody uses it, fills it or was just given it."""
    if one.path == one.folder and time.time() - one.used < GRACE:
        return False
    with locks.free(locks.path(one.folder, "lock")) as idle, locks.free(locks.path(one.folder, "use")) as unused:
        if not idle or not unused:
            return False
        gone = one.folder.with_name(f"{REMOVED}{one.folder.name}")
        one.path.replace(gone)  # at once: no reader sees a part of it
        shutil.rmtree(gone, ignore_errors=True)
        if one.path == one.folder:
            locks.path(one.folder, "files").unlink(missing_ok=True)
    log.info("removed from the cache, since it was used longest ago", folder=one.path.name, bytes=one.size)
    return True


def _size(folder: pathlib.Path) -> int:
    total = 0
    with contextlib.suppress(FileNotFoundError):  # somebody else is at work in it
        for path in folder.rglob("*"):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _time(path: pathlib.Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0


class _Patience:
    """While another pod downloads or checks: says how far it is, and gives up if it does not come on."""

    def __init__(self, folder: pathlib.Path, whole: int) -> None:
        self._folder, self._whole = folder, whole
        self._seen: tuple[int, float] = (-1, -1.0)
        self._grew, self._reported = time.monotonic(), float("-inf")

    def __call__(self) -> None:
        now, size = time.monotonic(), _size(locks.path(self._folder, "part"))
        seen = (size, _time(locks.path(self._folder, "lock")))
        if seen != self._seen:
            self._seen, self._grew = seen, now
        if now - self._reported >= SAYS:
            self._reported = now
            log.info("another pod fills or checks the cache: waiting", bytes=size, of=self._whole)
        if now - self._grew > STUCK:
            raise errors.Failure(
                reasons.Reason.STORAGE_UNAVAILABLE,
                f"another pod has the model cache's lock of {self._folder.name}, and its download has stayed at {size} of "
                f"{self._whole} bytes for {STUCK:.0f} s. Look at the pods that fetch it.",
            )


def _all(items: Sequence[T], work: Callable[[T], U]) -> list[U]:
    """The work on all items, a few at the same time. Nobody waits for the rest when one fails or the process is told to stop."""
    pool = concurrent.futures.ThreadPoolExecutor(AT_ONCE)
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _explained(root: pathlib.Path) -> Iterator[None]:
    """Raises Failure in place of the errors of the folder."""
    try:
        yield
    except OSError as error:
        raise errors.Failure(
            reasons.Reason.STORAGE_UNAVAILABLE,
            f"the model cache at {root} cannot be used: {error.strerror} ({error.filename}). Its claim must be writable for the "
            f"pod's user ({os.getuid()}) or group, and have room.",
        ) from error
