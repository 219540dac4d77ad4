"""Objects that are local files: file:// URIs, for runs without S3."""

import contextlib
import os
import pathlib
import re
import shutil
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from finetune_api import reasons
from finetune_trainer.process import errors
from finetune_trainer.store import objects


def address(path: pathlib.Path) -> str:
    """The file:// URI of an absolute path; white space, which the API does not allow in URIs, is escaped."""
    return "file://" + re.sub(r"[%\s]", lambda found: urllib.parse.quote(found[0]), str(path))


def path_of(uri: str) -> pathlib.Path:
    return pathlib.Path(urllib.parse.unquote(uri.removeprefix("file://")))


class Files:
    """file:// URIs."""

    def _path(self, uri: str) -> pathlib.Path:
        return path_of(uri)

    def stat(self, uri: str) -> objects.Entry:
        path = self._path(uri)
        if not path.is_file():
            raise errors.NotFound(uri)
        state = path.stat()
        return objects.Entry(uri, state.st_size, f"{state.st_mtime_ns:x}")

    def open(self, uri: str) -> BinaryIO:
        with self._errors(uri):
            return self._path(uri).open("rb")

    def write(self, uri: str, data: bytes) -> None:
        self._replace(uri, lambda file: file.write(data))

    def upload(self, path: pathlib.Path, uri: str) -> None:
        with path.open("rb") as source:
            self._replace(uri, lambda file: shutil.copyfileobj(source, file, objects.PART))

    def download(self, uri: str, path: pathlib.Path) -> None:
        with self._errors(uri):
            shutil.copyfile(self._path(uri), path)

    def entries(self, prefix: str) -> Iterator[objects.Entry]:
        folder = self._path(prefix if prefix.endswith("/") else prefix.rpartition("/")[0])
        for path in sorted(folder.rglob("*")):
            uri = address(path)
            if uri.startswith(prefix) and path.is_file() and not path.name.startswith(".tmp-"):
                with contextlib.suppress(errors.NotFound):
                    yield self.stat(uri)

    def delete(self, uri: str) -> None:
        path = self._path(uri)
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a folder is only its files, as in S3
            path.parent.rmdir()

    def _replace(self, uri: str, fill: Callable[[BinaryIO], Any]) -> None:
        path = self._path(uri)
        with self._errors(uri):
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
    def _errors(self, uri: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise errors.NotFound(uri) from None
        except PermissionError as error:
            raise errors.Failure(
                reasons.Reason.S3_ACCESS_DENIED, f"{uri}: {error.strerror}; the process needs access to this path"
            ) from error
