"""Objects of Amazon S3 and of every compatible store: the only module that uses boto3.

Errors that a retry with the same credentials cannot change fail at once; everything else is retried until the patience is over.
"""

import contextlib
import functools
import io
import os
import pathlib
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

from finetune_api import reasons
from finetune_trainer.process import errors, log, secrets
from finetune_trainer.store import objects, refusals

T = TypeVar("T")


class S3:
    """s3:// URIs of Amazon S3 or any compatible store."""

    def __init__(self, endpoint: str | None, region: str | None, patience: float) -> None:
        import boto3
        import boto3.s3.transfer
        import botocore.config

        endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            if problem := secrets.unsendable(name):
                raise errors.Failure(
                    reasons.Reason.S3_ACCESS_DENIED, f"{problem}; correct the value in storage.credentialsSecret"
                )
        # Stores other than Amazon's may not know the newer checksum headers; manifests have our own hashes anyway.
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
        self._session = boto3.session.Session()
        region = region or os.environ.get("AWS_REGION") or "us-east-1"
        try:
            self._client = self._session.client("s3", endpoint_url=endpoint, region_name=region, config=config)
        except ValueError as error:
            raise refusals.failure("S3", endpoint, error, 0.0) from error
        self._transfer = boto3.s3.transfer.TransferConfig(
            multipart_threshold=objects.PART,
            multipart_chunksize=objects.PART,
            max_concurrency=4,
            preferred_transfer_client="classic",
        )

    def stat(self, uri: str) -> objects.Entry:
        bucket, key = split(uri)
        answer = self._call(uri, lambda: self._client.head_object(Bucket=bucket, Key=key))
        return objects.Entry(uri, answer["ContentLength"], answer.get("ETag", "").strip('"'))

    def open(self, uri: str) -> BinaryIO:
        entry = self.stat(uri)
        return io.BufferedReader(Stream(entry.size, lambda offset: self._body(entry, offset)), 2**20)

    def _body(self, entry: objects.Entry, offset: int) -> Any:
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

    def entries(self, prefix: str, flat: bool = False) -> Iterator[objects.Entry]:
        bucket, key = split(prefix)
        token: Any = {"Delimiter": "/"} if flat else {}
        while True:
            request: Any = functools.partial(self._client.list_objects_v2, Bucket=bucket, Prefix=key, **token)
            page: Any = self._call(prefix, request)
            for found in page.get("Contents", []):
                if marker(found["Key"], found["Size"]):
                    continue
                yield objects.Entry(f"s3://{bucket}/{found['Key']}", found["Size"], found.get("ETag", "").strip('"'))
            if not page.get("IsTruncated"):
                return
            token |= {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, uri: str) -> None:
        bucket, key = split(uri)
        self._call(uri, lambda: self._client.delete_object(Bucket=bucket, Key=key))

    def _call(self, uri: str, request: Callable[[], T]) -> T:
        """Repeats a request until it is answered; errors that a retry cannot change are raised at once."""
        begun, pause, warned = time.monotonic(), 0.5, False
        while True:
            try:
                return request()
            except Exception as error:
                now = time.monotonic()
                failure = self._explain(uri, error, now - begun)
                late = now + pause > min(begun + self._patience, objects.deadline())
                if failure.reason is not reasons.Reason.STORAGE_UNAVAILABLE or late:
                    raise failure from error
                if not warned:
                    log.warning("the store does not answer; retrying", uri=uri, error=errors.describe(error))
                    warned = True
                time.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311
                pause = min(pause * 2, 15)

    def _explain(self, uri: str, error: Exception, waited: float = 0.0) -> errors.Failure:
        with contextlib.suppress(Exception):  # credentials that expired cannot be told
            if used := self._session.get_credentials():
                secrets.hide(used.access_key, used.secret_key, used.token)
        if refusals.code_of(error) in refusals.WORDLESS:
            error = self._spelled_out(uri, error)
        return refusals.failure(uri, self._endpoint, error, waited)

    def _spelled_out(self, uri: str, error: Exception) -> Exception:
        """A HEAD's answer has no body: it does not tell a missing key from a missing bucket or (VersityGW) account, nor a wrong
        key or an expired token from a missing right. A listing's does."""
        try:
            self._client.list_objects_v2(Bucket=split(uri)[0], MaxKeys=1)
        except Exception as listing:
            if refusals.code_of(listing) not in refusals.FORBIDDEN:  # reading may be allowed where listing is not
                return listing
        return error


class Stream(io.RawIOBase):
    """An object's bytes in order; a broken connection is reopened at the position where it broke."""

    def __init__(self, size: int, body: Callable[[int], Any]) -> None:
        self._size, self._open, self._position, self._tries = size, body, 0, 0
        self._body: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._position < self._size:
            try:
                self._body = self._body or self._open(self._position)
                data = self._body.read(min(len(buffer), objects.PART))
                if not data:
                    raise EOFError("the connection ended early")
            except errors.Failure:
                raise
            except Exception as error:
                self._tries += 1
                if self._tries > 10:
                    raise errors.Failure(
                        reasons.Reason.STORAGE_UNAVAILABLE,
                        f"the download was interrupted {self._tries} times in a row ({errors.describe(error)}). Check the "
                        "network to the store.",
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


def marker(key: str, size: int) -> bool:
    """Whether an object only stands for a folder: consoles make one of the folder's name, older Hadoops one beside it."""
    return size == 0 and key.endswith(("/", "_$folder$"))


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of an s3:// URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key
