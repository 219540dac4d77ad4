"""Objects of Amazon S3 and of every compatible store: the only module that uses boto3.

Errors that a retry with the same credentials cannot change fail at once; everything else is retried until the patience is over.
"""

import contextlib
import functools
import http
import io
import os
import pathlib
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

from finetune_api import job, reasons
from finetune_trainer.process import errors, log, secrets
from finetune_trainer.store import objects, refusals

T = TypeVar("T")

READ, WRITE, LIST, DELETE = "s3:GetObject", "s3:PutObject", "s3:ListBucket", "s3:DeleteObject"
"""The rights that requests need. Uploads in parts also use s3:AbortMultipartUpload, when they fail."""

CLASH = 10.0
"""Seconds in which a request that was refused with 409 is repeated. Stores answer so to one of two requests that meet: VersityGW
does when it removes an empty folder for one key while another key is written into it."""


class S3:
    """s3:// URIs of Amazon S3 or any compatible store."""

    def __init__(self, where: job.Connection, patience: float, keys: str = "") -> None:
        """keys: the prefix of the variables with its credentials."""
        import boto3.s3.transfer

        environment = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        endpoint = where.endpoint or environment
        region = where.region or os.environ.get("AWS_REGION") or "us-east-1"
        self._endpoint, self._patience = endpoint, patience
        self._request: dict[str, Any] = {"RequestPayer": "requester"} if where.requester_pays else {}
        self._written = self._request | (encryption(where) if isinstance(where, job.Storage) else {})
        self._session = session(keys)
        try:
            self._client = self._session.client(
                "s3", endpoint_url=endpoint, region_name=region, config=config(where, custom=endpoint is not None)
            )
        except ValueError as error:
            raise refusals.failure("S3", endpoint, error, 0.0) from error
        self._transfer = boto3.s3.transfer.TransferConfig(
            multipart_threshold=objects.PART,
            multipart_chunksize=objects.PART,
            max_concurrency=4,
            preferred_transfer_client="classic",
        )

    def normal(self, uri: str) -> str:
        return uri

    def stat(self, uri: str) -> objects.Entry:
        bucket, key = split(uri)
        answer = self._call(READ, uri, lambda: self._client.head_object(Bucket=bucket, Key=key, **self._request))
        return objects.Entry(uri, answer["ContentLength"], answer.get("ETag", "").replace('"', ""))

    def md5(self, uri: str) -> str:
        """Of an object that was uploaded in one part, and not encrypted with a key that the store must not tell about."""
        bucket, key = split(uri)
        answer = self._call(READ, uri, lambda: self._client.head_object(Bucket=bucket, Key=key, **self._request))
        tag, plain = answer.get("ETag", "").replace('"', ""), answer.get("ServerSideEncryption", "AES256") == "AES256"
        own = "SSECustomerAlgorithm" in answer
        return f"md5:{tag}" if plain and not own and re.fullmatch("[0-9a-f]{32}", tag) else ""

    def open(self, uri: str) -> BinaryIO:
        entry = self.stat(uri)
        return io.BufferedReader(Stream(entry.size, lambda offset: self._body(entry, offset)), 2**20)

    def _body(self, entry: objects.Entry, offset: int) -> Any:
        bucket, key = split(entry.uri)
        # A weak tag, as proxies make them, never matches a condition.
        condition: Any = {"IfMatch": entry.etag} if entry.etag and not entry.etag.startswith("W/") else {}
        request = {"Bucket": bucket, "Key": key, "Range": f"bytes={offset}-", **condition, **self._request}
        return self._call(READ, entry.uri, lambda: self._client.get_object(**request)["Body"])

    def write(self, uri: str, data: bytes) -> None:
        bucket, key = split(uri)
        self._call(WRITE, uri, lambda: self._client.put_object(Bucket=bucket, Key=key, Body=data, **self._written))

    def upload(self, path: pathlib.Path, uri: str) -> None:
        bucket, key = split(uri)
        more = {"ExtraArgs": self._written, "Config": self._transfer}
        self._call(WRITE, uri, lambda: self._client.upload_file(str(path), bucket, key, **more))

    def download(self, uri: str, path: pathlib.Path) -> None:
        bucket, key = split(uri)
        more = {"ExtraArgs": self._request, "Config": self._transfer}
        self._call(READ, uri, lambda: self._client.download_file(bucket, key, str(path), **more))

    def entries(self, prefix: str, flat: bool = False) -> Iterator[objects.Entry]:
        bucket, key = split(prefix)
        token: Any = {"Delimiter": "/"} if flat else {}
        while True:
            request: Any = functools.partial(
                self._client.list_objects_v2, Bucket=bucket, Prefix=key, **token, **self._request
            )
            page: Any = self._call(LIST, prefix, request)
            for found in page.get("Contents", []):
                if marker(found["Key"], found["Size"]):
                    continue
                yield objects.Entry(
                    f"s3://{bucket}/{found['Key']}", found["Size"], found.get("ETag", "").replace('"', "")
                )
            if not page.get("IsTruncated"):
                return
            token |= {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, uri: str) -> None:
        bucket, key = split(uri)
        self._call(DELETE, uri, lambda: self._client.delete_object(Bucket=bucket, Key=key, **self._request))

    def _call(self, right: str, uri: str, request: Callable[[], T]) -> T:
        """Repeats a request until it is answered; errors that a retry cannot change are raised at once. right: what it needs."""
        begun, pause, warned, clashed = time.monotonic(), 0.5, False, 0.0
        while True:
            try:
                return request()
            except Exception as error:
                now = time.monotonic()
                failure = self._explain(uri, error, now - begun, right)
                end = begun + self._patience
                if failure.reason is not reasons.Reason.STORAGE_UNAVAILABLE:
                    if refusals.status_of(error) != http.HTTPStatus.CONFLICT:
                        raise failure from error
                    clashed, pause = clashed or now, min(pause, 1.0)
                    end = clashed + min(self._patience, CLASH)
                if now + pause > min(end, objects.deadline()):
                    raise failure from error
                if not warned:
                    log.warning("the store does not answer; retrying", uri=uri, error=errors.describe(error))
                    warned = True
                time.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311
                pause = min(pause * 2, 15)

    def _explain(self, uri: str, error: Exception, waited: float = 0.0, right: str = "") -> errors.Failure:
        with contextlib.suppress(Exception):  # credentials that expired cannot be told
            if used := self._session.get_credentials():
                secrets.hide(used.access_key, used.secret_key, used.token)
        listable = True
        if refusals.code_of(error) in refusals.WORDLESS:
            error, listable = self._spelled_out(uri, error)
        return refusals.failure(uri, self._endpoint, error, waited, right=right, listable=listable)

    def _spelled_out(self, uri: str, error: Exception) -> tuple[Exception, bool]:
        """A HEAD's answer has no body: it does not tell a missing key from a missing bucket or (VersityGW) account, nor a wrong
        key or an expired token from a missing right. A listing's does. Also, whether the key may list."""
        bucket, key = split(uri)
        try:
            self._client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1, **self._request)
        except Exception as listing:
            # Reading may be allowed where listing is not.
            return (error, False) if refusals.code_of(listing) in refusals.FORBIDDEN else (listing, True)
        return error, True


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


def session(keys: str) -> Any:
    """Credentials of the variables that begin with `keys`; without them those that boto3 finds, the pod's own identity.

    Raises Failure for a value that no request can carry.
    """
    import boto3
    import botocore.session

    names = [keys + name for name in secrets.KEYS]
    for name in names:
        if problem := secrets.unsendable(name):
            raise errors.Failure(reasons.Reason.S3_ACCESS_DENIED, f"{problem}; correct the value in credentialsSecret")
    if keys and os.environ.get(names[0]):
        key, secret, token = (os.environ.get(name) for name in names)
        return boto3.session.Session(aws_access_key_id=key, aws_secret_access_key=secret, aws_session_token=token)
    core = botocore.session.get_session()
    if keys and "KUBERNETES_SERVICE_HOST" in os.environ:
        # In a pod these are of storage.credentialsSecret, for the results.
        core.get_component("credential_provider").remove("env")
    return boto3.session.Session(botocore_session=core)


def config(where: job.Connection, *, custom: bool) -> Any:
    """The client's settings. custom: another store than Amazon's, which may not know the newer checksum headers; manifests have
    our own hashes anyway."""
    import botocore.config

    path = where.addressing is job.Addressing.PATH or (where.addressing is None and custom)
    style: Any = "path" if path else "virtual" if where.addressing is job.Addressing.VIRTUAL_HOST else "auto"
    required = where.checksums is job.Checksums.WHEN_REQUIRED or (where.checksums is None and custom)
    checksums: Any = "when_required" if required else "when_supported"
    return botocore.config.Config(
        connect_timeout=5,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": 3},
        max_pool_connections=16,
        user_agent_extra="finetune-operator",
        s3={"addressing_style": style},
        request_checksum_calculation=checksums,
        response_checksum_validation=checksums,
    )


def encryption(where: job.Storage) -> dict[str, str]:
    """Parameters of requests that write."""
    names = {job.Encryption.AES256: "AES256", job.Encryption.KMS: "aws:kms", job.Encryption.KMS_DSSE: "aws:kms:dsse"}
    wanted = {"ServerSideEncryption": names[where.encryption]} if where.encryption else {}
    return wanted | ({"SSEKMSKeyId": where.kms_key_id} if where.kms_key_id else {})


def marker(key: str, size: int) -> bool:
    """Whether an object only stands for a folder: consoles make one of the folder's name, older Hadoops one beside it."""
    return size == 0 and key.endswith(("/", "_$folder$"))


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of an s3:// URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key
