"""Objects by URI, s3://, pvc:// (data on claims) or file:// (local runs), behind one small interface.

    storage = Storage(endpoint=None, region=None)
    storage.read / write / open / download / upload / stat / entries / glob / delete

An outage is retried for `patience` seconds, then it is Failure(StorageUnavailable); a wrong bucket or wrong
credentials fail at once. Only `read` and `write` hold a whole object in memory: they are for small ones.
"""

import contextlib
import hashlib
import os
import pathlib
import re
from collections.abc import Iterator
from typing import BinaryIO

from finetune_api import job, reasons, run
from finetune_trainer.process import errors
from finetune_trainer.store import files, objects

PATIENCE = float(os.environ.get("FINETUNE_STORAGE_PATIENCE", "300"))
"""Seconds for which an outage of the store is retried."""


class Storage:
    """Chooses the store by the URI's scheme."""

    def __init__(
        self,
        endpoint: str | None = None,
        region: str | None = None,
        patience: float = PATIENCE,
        *,
        connection: job.Connection | None = None,
        keys: str = "",
    ) -> None:
        """connection: instead of endpoint and region; keys: the prefix of its AWS_ variables in the environment."""
        self._connection = connection or job.Connection.model_construct(endpoint=endpoint, region=region)
        self._keys, self.patience = keys, patience
        self._stores: dict[str, objects.Store] = {}

    @property
    def endpoint(self) -> str:
        """Of S3; "" for the default."""
        return self._connection.endpoint or ""

    def _of(self, uri: str) -> objects.Store:
        scheme = uri.partition("://")[0]
        if scheme not in self._stores:
            if scheme == "s3":
                from finetune_trainer.store import s3  # boto3 is slow to import, and local runs do not need it

                self._stores[scheme] = s3.S3(self._connection, self.patience, self._keys)
            elif scheme == "file":
                self._stores[scheme] = files.Files()
            elif scheme == "pvc":
                self._stores[scheme] = files.Files("pvc://", os.environ.get("FINETUNE_DATA_PATH", run.DATA_PATH) + "/")
            else:
                raise errors.Failure(
                    reasons.Reason.INVALID_SPEC, f"{uri}: the scheme must be s3://, pvc:// or file:///"
                )
        return self._stores[scheme]

    def stat(self, uri: str) -> objects.Entry:
        """Size and tag of an object. Raises NotFound."""
        return self._of(uri).stat(uri)

    def exists(self, uri: str) -> bool:
        with contextlib.suppress(errors.NotFound):
            self.stat(uri)
            return True
        return False

    def md5(self, uri: str) -> str:
        """ "md5:..." of an object, where its tag is that; else "". Raises NotFound."""
        return self._of(uri).md5(uri)

    def open(self, uri: str) -> BinaryIO:
        """A stream of an object's bytes that survives broken connections. Raises NotFound."""
        return self._of(uri).open(uri)

    def read(self, uri: str) -> bytes:
        """A small object. Raises NotFound."""
        with self.open(uri) as stream:
            return stream.read()

    def sha256(self, uri: str) -> str:
        """The hash of an object's contents. Raises NotFound."""
        with self.open(uri) as stream:
            found = hashlib.sha256()
            while piece := stream.read(2**20):
                found.update(piece)
            return found.hexdigest()

    def write(self, uri: str, data: bytes) -> None:
        """A small object; readers see the old one or the new one, never a part."""
        self._of(uri).write(uri, data)

    def upload(self, path: pathlib.Path, uri: str) -> None:
        """A file of any size, in parts."""
        self._of(uri).upload(path, uri)

    def download(self, uri: str, path: pathlib.Path) -> None:
        """An object of any size into a file, which appears only when it is complete. Raises NotFound."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        self._of(uri).download(uri, temporary)
        temporary.replace(path)

    def entries(self, prefix: str, flat: bool = False) -> Iterator[objects.Entry]:
        """Every object whose URI begins with `prefix`, in the order of their names; `flat`: without those of deeper folders."""
        return self._of(prefix).entries(prefix, flat)

    def glob(self, pattern: str) -> list[objects.Entry]:
        """The objects that match: * and ? within a folder, ** across folders. Raises NotFound for a plain URI."""
        pattern = self._of(pattern).normal(pattern)
        if not re.search(r"[*?]", pattern):
            return [self.stat(pattern)]
        matches = re.compile(glob_expression(pattern)).fullmatch
        prefix = re.split(r"[*?]", pattern, maxsplit=1)[0]
        flat = "/" not in pattern.removeprefix(prefix) and "**" not in pattern
        return [entry for entry in self.entries(prefix, flat) if matches(entry.uri)]

    def delete(self, uri: str) -> None:
        """Removes an object, if it exists."""
        self._of(uri).delete(uri)


def of(spec: job.Connection, patience: float = PATIENCE) -> Storage:
    """The storage that the spec of a job or pool describes; credentials come from the environment, as boto3 finds them."""
    return Storage(connection=spec, patience=min(patience, PATIENCE))


def of_data(spec: run.Run, patience: float = PATIENCE) -> Storage:
    """The storage of a job's data files."""
    if spec.dataset.storage is None:
        return of(spec.storage, patience)
    return Storage(connection=spec.dataset.storage, patience=min(patience, PATIENCE), keys=run.DATA_KEYS)


def of_base_model(base: run.ResolvedBaseModel, otherwise: Storage) -> Storage:
    """The storage of a base model's files; `otherwise` unless the model names its own."""
    if base.storage is None:
        return otherwise
    return Storage(connection=base.storage, patience=otherwise.patience, keys=run.BASE_MODEL_KEYS)


def glob_expression(pattern: str) -> str:
    """The regular expression of a glob: `**/` matches any number of folders, none included."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    expressions = {"**/": r"(?:.*/)?", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}
    return "".join(expressions.get(part, re.escape(part)) for part in parts)
