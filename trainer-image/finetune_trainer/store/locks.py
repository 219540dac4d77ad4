"""Locks of files (flock) that several pods see: of `basecache`, and of those that use what it gave them.

    .state/KEY.lock    held alone by whoever fills or checks the folder KEY
    .state/KEY.use     shared by all that use the folder; held alone by whoever removes it; its time is that of the last use
    .state/room.lock   held alone by whoever counts and removes

The kernel, or the server of a network file system, releases the locks of a process that is gone: nothing is left behind.
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import time
from collections.abc import Callable, Iterator

from finetune_api import reasons
from finetune_trainer.process import errors, log

STATE = ".state"
POLL = 1.0
"""Seconds between two tries to get a lock."""

_ABSENT = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}

_held: list[int] = []
"""Of this process, until it ends."""


def path(folder: pathlib.Path, kind: str) -> pathlib.Path:
    """The file with the lock of a folder; `kind`: lock or use."""
    return folder.parent / STATE / f"{folder.name}.{kind}"


@contextlib.contextmanager
def alone(file: pathlib.Path, waits: Callable[[], None]) -> Iterator[None]:
    """Holds a lock that nobody else holds meanwhile. `waits` is called while another one does; it may raise."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o664)
    try:
        while not _taken(descriptor, fcntl.LOCK_EX):
            waits()
            time.sleep(POLL)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def free(file: pathlib.Path) -> Iterator[bool]:
    """Whether nobody holds this lock; then nobody gets it meanwhile."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o664)
    try:
        yield _taken(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def use(folder: pathlib.Path) -> None:
    """Keeps others from removing a folder as long as this process lives. On a claim that is mounted read-only, too.

    Raises Failure(StorageUnavailable): it has been removed already."""
    real = folder.resolve()
    try:
        descriptor = os.open(path(real, "use"), os.O_RDONLY)
        _held.append(descriptor)
        while not _taken(descriptor, fcntl.LOCK_SH):
            time.sleep(POLL)
    except FileNotFoundError:
        pass
    if not real.is_dir():
        raise errors.Failure(
            reasons.Reason.STORAGE_UNAVAILABLE,
            f"the base model {real.name} was removed from the cache before this pod used it. The next attempt fetches it again; "
            "if this happens often, give the cache more room (modelCache.size, or a larger claim).",
        )
    log.info("base model of the cache in use", folder=str(real))


def _taken(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        raise errors.Failure(
            reasons.Reason.STORAGE_UNAVAILABLE,
            f"the file system of the model cache has no locks (flock: {error.strerror}). Choose a storage class that has them, "
            "such as a local volume, NFS 4 or CephFS, or remove modelCache.claimName.",
        ) from error
