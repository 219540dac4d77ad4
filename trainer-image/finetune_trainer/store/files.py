"""Objects that are local files: file:// URIs, for runs without S3, and pvc:// URIs, on claims that the pod has mounted."""

import contextlib
import errno
import os
import pathlib
import re
import shutil
import stat
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from finetune_api import reasons
from finetune_trainer.process import errors
from finetune_trainer.store import objects


def address(path: pathlib.Path) -> str:
    """The file:// URI of an absolute path."""
    return Files().uri(path)


def path_of(uri: str) -> pathlib.Path:
    """The path of a file:// URI."""
    return Files().path(uri)


class Files:
    """URIs of one scheme, as files below `root`: file:///a is /a, pvc://claim/a is /data/claim/a."""

    def __init__(self, scheme: str = "file://", root: str = "") -> None:
        self._scheme, self._root = scheme, root

    def path(self, uri: str) -> pathlib.Path:
        return pathlib.Path(self._root + urllib.parse.unquote(uri.removeprefix(self._scheme)))

    def uri(self, path: pathlib.Path) -> str:
        """White space is escaped, so that a file has one URI however the user wrote it."""
        rest = str(path).removeprefix(self._root)
        return self._scheme + re.sub(r"[%\s]", lambda found: urllib.parse.quote(found[0]), rest)

    def normal(self, uri: str) -> str:
        return self.uri(self.path(uri))

    def stat(self, uri: str) -> objects.Entry:
        path = self.path(uri)
        with explained(uri):
            state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise errors.NotFound(uri)
        return objects.Entry(uri, state.st_size, f"{state.st_mtime_ns:x}")

    def md5(self, uri: str) -> str:
        return ""

    def open(self, uri: str) -> BinaryIO:
        with explained(uri):
            return self.path(uri).open("rb")

    def write(self, uri: str, data: bytes) -> None:
        self._replace(uri, lambda file: file.write(data))

    def upload(self, path: pathlib.Path, uri: str) -> None:
        with path.open("rb") as source:
            self._replace(uri, lambda file: shutil.copyfileobj(source, file, objects.PART))

    def download(self, uri: str, path: pathlib.Path) -> None:
        with explained(uri):
            shutil.copyfile(self.path(uri), path)

    def entries(self, prefix: str, flat: bool = False) -> Iterator[objects.Entry]:
        folder = self.path(prefix if prefix.endswith("/") else prefix.rpartition("/")[0])
        try:
            with explained(self.uri(folder)):
                os.scandir(folder).close()
        except errors.NotFound:
            return
        yield from self._below(folder, prefix, flat)

    def _below(self, folder: pathlib.Path, prefix: str, flat: bool) -> Iterator[objects.Entry]:
        """Folder by folder, each only when it is reached: the tree below may be large."""
        try:
            with os.scandir(folder) as found:
                inside = sorted(found, key=lambda one: one.name)
        except OSError:
            return  # of others, or just removed
        for one in inside:
            uri = self.uri(pathlib.Path(one.path))
            if one.is_dir(follow_symlinks=False):
                if not flat and (prefix.startswith(f"{uri}/") or uri.startswith(prefix)):
                    yield from self._below(pathlib.Path(one.path), prefix, flat)
            elif uri.startswith(prefix) and not one.name.startswith(".tmp-"):
                with contextlib.suppress(errors.Failure):
                    yield self.stat(uri)

    def delete(self, uri: str) -> None:
        path = self.path(uri)
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a folder is only its files, as in S3
            path.parent.rmdir()

    def _replace(self, uri: str, fill: Callable[[BinaryIO], Any]) -> None:
        path = self.path(uri)
        if (blocking := _file_above(path)) is not None:
            message = f"{self.uri(blocking)} is a file, and a folder is needed there; name another folder"
            raise errors.Failure(reasons.Reason.INVALID_SPEC, message)
        with explained(uri):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    fill(file)
                    file.flush()
                    os.fsync(file.fileno())
                pathlib.Path(temporary).replace(path)
            except BaseException:
                pathlib.Path(temporary).unlink(missing_ok=True)
                raise


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Raises Failure, with what was seen, in place of the errors of a local file."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise errors.NotFound(uri) from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise errors.NotFound(uri) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            message = f"{uri}: {error.strerror}; the process needs access to this path"
            raise errors.Failure(reasons.Reason.S3_ACCESS_DENIED, message) from error
        raise errors.Failure(reasons.Reason.STORAGE_UNAVAILABLE, f"{uri}: {error.strerror}") from error


def _file_above(path: pathlib.Path) -> pathlib.Path | None:
    """The file that stands where the path needs a folder."""
    return next((one for one in path.parents if one.exists() and not one.is_dir()), None)
