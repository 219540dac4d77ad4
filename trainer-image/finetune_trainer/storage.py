"""Objects by URI: s3:// through boto3 (only here) and file:// for local runs, behind one small interface.

    storage = Storage(endpoint=None, region=None)
    storage.read / write / open / download / upload / stat / entries / glob / delete

Outages are waited for up to `patience` seconds, then they are Failure(StorageUnavailable); a wrong bucket or wrong
credentials fail at once. Nothing here holds a whole object in memory but `read` and `write`, which are for small ones.
"""

import contextlib
import dataclasses
import functools
import io
import os
import pathlib
import random
import re
import shutil
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol, TypeVar

from finetune_api import job, reasons
from finetune_trainer import errors, log

PATIENCE = float(os.environ.get("FINETUNE_STORAGE_PATIENCE", "300"))
"""Seconds that an outage of the store is waited for."""

PART = 16 * 2**20
"""Bytes of a part of a multipart upload, and of a piece of a streamed download."""

DENIED = {
    "403", "401", "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken",
    "TokenRefreshRequired", "XAdminUserNotFound", "XAdminNoSuchUser", "AllAccessDisabled", "AccountProblem", "UnauthorizedAccess",
    "RequestTimeTooSkewed", "AuthorizationHeaderMalformed", "PermanentRedirect", "301", "InvalidClientTokenId",
}  # fmt: skip
"""Error codes that another try with the same credentials, clock and region would not change."""

MISSING = {"404", "NoSuchKey", "NotFound"}

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Entry:
    """An object as listed: where, how many bytes, and the store's tag of its contents ("" where there is none)."""

    uri: str
    size: int
    etag: str = ""


class Store(Protocol):
    """What a scheme provides. Every URI is of that scheme."""

    def stat(self, uri: str) -> Entry: ...
    def open(self, uri: str) -> BinaryIO: ...
    def write(self, uri: str, data: bytes) -> None: ...
    def upload(self, path: pathlib.Path, uri: str) -> None: ...
    def download(self, uri: str, path: pathlib.Path) -> None: ...
    def entries(self, prefix: str) -> Iterator[Entry]: ...
    def delete(self, uri: str) -> None: ...


class Storage:
    """Chooses the store by the URI's scheme."""

    def __init__(self, endpoint: str | None = None, region: str | None = None, patience: float = PATIENCE) -> None:
        self._endpoint, self._region, self.patience = endpoint, region, patience
        self._stores: dict[str, Store] = {}

    def _of(self, uri: str) -> Store:
        scheme = uri.partition("://")[0]
        if scheme not in self._stores:
            if scheme == "s3":
                self._stores[scheme] = S3(self._endpoint, self._region, self.patience)
            elif scheme == "file":
                self._stores[scheme] = Files()
            else:
                raise errors.Failure(reasons.Reason.INVALID_SPEC, f"{uri}: the scheme must be s3:// or file:///")
        return self._stores[scheme]

    def stat(self, uri: str) -> Entry:
        """Size and tag of an object. Raises NotFound."""
        return self._of(uri).stat(uri)

    def exists(self, uri: str) -> bool:
        with contextlib.suppress(errors.NotFound):
            self.stat(uri)
            return True
        return False

    def open(self, uri: str) -> BinaryIO:
        """A stream of an object's bytes that survives broken connections. Raises NotFound."""
        return self._of(uri).open(uri)

    def read(self, uri: str) -> bytes:
        """A small object. Raises NotFound."""
        with self.open(uri) as stream:
            return stream.read()

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

    def entries(self, prefix: str) -> Iterator[Entry]:
        """Every object whose URI begins with `prefix`, in the order of their names."""
        return self._of(prefix).entries(prefix)

    def glob(self, pattern: str) -> list[Entry]:
        """The objects that match: * and ? within a folder, ** across folders. Raises NotFound for a plain URI."""
        if not re.search(r"[*?]", pattern):
            return [self.stat(pattern)]
        matches = re.compile(glob_expression(pattern)).fullmatch
        prefix = re.split(r"[*?]", pattern, maxsplit=1)[0]
        return [entry for entry in self.entries(prefix) if matches(entry.uri)]

    def delete(self, uri: str) -> None:
        """Removes an object; one that does not exist is fine."""
        self._of(uri).delete(uri)


_deadline = float("inf")


def hurry(seconds: float) -> None:
    """From now on no outage is waited for beyond so many seconds: the process is about to be killed."""
    global _deadline
    _deadline = time.monotonic() + seconds


def of(spec: job.Storage, patience: float = PATIENCE) -> Storage:
    """The storage that a job's spec describes; credentials come from the environment, as boto3 finds them."""
    return Storage(spec.endpoint, spec.region, min(patience, PATIENCE))


def glob_expression(pattern: str) -> str:
    """The regular expression of a glob: `**/` matches any number of folders, none included."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    words = {"**/": r"(?:.*/)?", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}
    return "".join(words.get(part, re.escape(part)) for part in parts)


class Files:
    """file:// URIs."""

    def _path(self, uri: str) -> pathlib.Path:
        return pathlib.Path(urllib.parse.unquote(uri.removeprefix("file://")))

    def stat(self, uri: str) -> Entry:
        path = self._path(uri)
        if not path.is_file():
            raise errors.NotFound(uri)
        state = path.stat()
        return Entry(uri, state.st_size, f"{state.st_mtime_ns:x}")

    def open(self, uri: str) -> BinaryIO:
        with self._errors(uri):
            return self._path(uri).open("rb")

    def write(self, uri: str, data: bytes) -> None:
        self._replace(uri, lambda file: file.write(data))

    def upload(self, path: pathlib.Path, uri: str) -> None:
        with path.open("rb") as source:
            self._replace(uri, lambda file: shutil.copyfileobj(source, file, PART))

    def download(self, uri: str, path: pathlib.Path) -> None:
        with self._errors(uri):
            shutil.copyfile(self._path(uri), path)

    def entries(self, prefix: str) -> Iterator[Entry]:
        folder = self._path(prefix if prefix.endswith("/") else prefix.rpartition("/")[0])
        for path in sorted(folder.rglob("*")):
            uri = f"file://{path}"
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


class S3:
    """s3:// URIs of Amazon S3 or any compatible store."""

    def __init__(self, endpoint: str | None, region: str | None, patience: float) -> None:
        import boto3
        import boto3.s3.transfer
        import botocore.config

        # Stores other than Amazon's may not know the newer checksum headers; manifests carry hashes of our own anyway.
        checksums: dict[str, Any] = (
            {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
            if endpoint
            else {}
        )
        config = botocore.config.Config(
            connect_timeout=5,
            read_timeout=60,
            retries={"mode": "standard", "total_max_attempts": 3},
            max_pool_connections=16,
            user_agent_extra="finetune-operator",
            s3={"addressing_style": "path"} if endpoint else {},
            **checksums,
        )
        self._endpoint, self._patience = endpoint, patience
        self._client = boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint,
            region_name=region or os.environ.get("AWS_REGION") or "us-east-1",
            config=config,
        )
        self._transfer = boto3.s3.transfer.TransferConfig(
            multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=4, preferred_transfer_client="classic"
        )

    def stat(self, uri: str) -> Entry:
        bucket, key = split(uri)
        answer = self._call(uri, lambda: self._client.head_object(Bucket=bucket, Key=key))
        return Entry(uri, answer["ContentLength"], answer.get("ETag", "").strip('"'))

    def open(self, uri: str) -> BinaryIO:
        entry = self.stat(uri)
        return io.BufferedReader(Stream(entry.size, lambda offset: self._body(entry, offset)), 2**20)

    def _body(self, entry: Entry, offset: int) -> Any:
        bucket, key = split(entry.uri)
        condition: Any = {"IfMatch": entry.etag} if entry.etag else {}
        span = f"bytes={offset}-"
        return self._call(
            entry.uri, lambda: self._client.get_object(Bucket=bucket, Key=key, Range=span, **condition)["Body"]
        )

    def write(self, uri: str, data: bytes) -> None:
        bucket, key = split(uri)
        self._call(uri, lambda: self._client.put_object(Bucket=bucket, Key=key, Body=data))

    def upload(self, path: pathlib.Path, uri: str) -> None:
        bucket, key = split(uri)
        self._call(uri, lambda: self._client.upload_file(str(path), bucket, key, Config=self._transfer))

    def download(self, uri: str, path: pathlib.Path) -> None:
        bucket, key = split(uri)
        self._call(uri, lambda: self._client.download_file(bucket, key, str(path), Config=self._transfer))

    def entries(self, prefix: str) -> Iterator[Entry]:
        bucket, key = split(prefix)
        token: Any = {}
        while True:
            request: Any = functools.partial(self._client.list_objects_v2, Bucket=bucket, Prefix=key, **token)
            page: Any = self._call(prefix, request)
            for found in page.get("Contents", []):
                yield Entry(f"s3://{bucket}/{found['Key']}", found["Size"], found.get("ETag", "").strip('"'))
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, uri: str) -> None:
        bucket, key = split(uri)
        self._call(uri, lambda: self._client.delete_object(Bucket=bucket, Key=key))

    def _call(self, uri: str, request: Callable[[], T]) -> T:
        """Does a request until it is answered; what another try cannot change is raised at once."""
        begun, pause, said = time.monotonic(), 0.5, False
        while True:
            try:
                return request()
            except Exception as error:
                failure = self._explain(uri, error)
                late = time.monotonic() + pause > min(begun + self._patience, _deadline)
                if failure.reason is not reasons.Reason.STORAGE_UNAVAILABLE or late:
                    raise failure from error
                if not said:
                    log.warning("the store does not answer; trying again", uri=uri, error=describe(error))
                    said = True
                time.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311
                pause = min(pause * 2, 15)

    def _explain(self, uri: str, error: Exception) -> errors.Failure:
        import botocore.exceptions

        where = f"{uri} at {self._endpoint or 'Amazon S3'}"
        if isinstance(error, (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError)):
            return errors.Failure(
                reasons.Reason.S3_ACCESS_DENIED,
                f"{where}: no credentials were found. Set storage.credentialsSecret to a Secret with AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or give the job's ServiceAccount a cloud identity.",
            )
        if isinstance(error, botocore.exceptions.ParamValidationError):
            return errors.Failure(reasons.Reason.INVALID_SPEC, f"{where}: {describe(error)}")
        if isinstance(error, errors.Failure):
            return error
        code = code_of(error)
        if code == "404":
            code, error = self._spelled_out(uri, error)
        if code == "NoSuchBucket":
            return errors.Failure(
                reasons.Reason.BUCKET_NOT_FOUND,
                f"{where}: the bucket {split(uri)[0]!r} does not exist. Create it, or correct the name or storage.endpoint.",
            )
        if code in MISSING:
            return errors.NotFound(uri)
        if code in DENIED:
            return errors.Failure(
                reasons.Reason.S3_ACCESS_DENIED,
                f"{where}: refused with {describe(error)}. Check the access key and secret in storage.credentialsSecret, their "
                "rights to read the data and to write below storage.output, and storage.region.",
            )
        if code in ("412", "PreconditionFailed"):
            return errors.Failure(
                reasons.Reason.DATASET_INVALID, f"{uri} was changed while it was read. Run again when it is complete."
            )
        return errors.Failure(
            reasons.Reason.STORAGE_UNAVAILABLE,
            f"{where}: no answer for {self._patience:.0f} s ({describe(error)}). Check storage.endpoint and that the store runs "
            "and is reachable from the cluster's pods.",
        )

    def _spelled_out(self, uri: str, error: Exception) -> tuple[str, Exception]:
        """A HEAD's 404 has no body: it says neither key, nor bucket, nor (VersityGW) account. A listing's does."""
        try:
            self._client.list_objects_v2(Bucket=split(uri)[0], MaxKeys=1)
        except Exception as listing:
            if code_of(listing) != "AccessDenied":  # it may read but not list
                return code_of(listing), listing
        return "NoSuchKey", error


class Stream(io.RawIOBase):
    """An object's bytes from first to last; a broken connection is opened again where it broke."""

    def __init__(self, size: int, body: Callable[[int], Any]) -> None:
        self._size, self._open, self._position, self._tries = size, body, 0, 0
        self._body: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._position < self._size:
            try:
                self._body = self._body or self._open(self._position)
                data = self._body.read(min(len(buffer), PART))
                if not data:
                    raise EOFError("the connection ended early")
            except errors.Failure:
                raise
            except Exception as error:
                self._tries += 1
                if self._tries > 10:
                    raise errors.Failure(
                        reasons.Reason.STORAGE_UNAVAILABLE, f"the download broke again and again ({describe(error)})"
                    ) from error
                self._body = None
                time.sleep(min(0.2 * 2**self._tries, 10))
                continue
            self._tries = 0
            self._position += len(data)
            buffer[: len(data)] = data
            return len(data)
        return 0

    def close(self) -> None:
        if self._body is not None:
            self._body.close()
        super().close()


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of an s3:// URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def code_of(error: BaseException) -> str:
    """The store's error code, found through the wrappers of boto3's transfers."""
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        seen = seen.__cause__ or seen.__context__
    found = re.search(r"An error occurred \((\w+)\)", str(error))  # S3UploadFailedError carries its cause as text alone
    return found.group(1) if found else ""


def describe(error: BaseException) -> str:
    """An error in one line, without what could be a secret."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return re.sub(r"(AKIA|ASIA)[A-Z0-9]{8,}", r"\1…", text)[:300]
