"""The demo's bucket: data and base model are uploaded once, report and samples downloaded. The demo's only boto3 module."""

import hashlib
import time
from pathlib import Path

import boto3
import botocore.config
import botocore.exceptions

from demo.place import ObjectStore
from toolbox import say

_SHA256 = "sha256"  # in the object's metadata: whether a file was uploaded before


class Objects:
    def __init__(self, store: ObjectStore, endpoint: str) -> None:
        """`endpoint`: the store's address for this machine, which may differ from that for pods."""
        self._client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=store.access_key,
            aws_secret_access_key=store.secret_key,
            region_name=store.region,
            config=botocore.config.Config(s3={"addressing_style": "path"}, retries={"max_attempts": 5}),
        )

    def make_bucket(self, name: str) -> None:
        try:
            self._client.head_bucket(Bucket=name)
        except botocore.exceptions.ClientError:
            self._client.create_bucket(Bucket=name)

    def upload(self, path: Path, uri: str) -> bool:
        """Uploads a file unless the store has it; returns whether it did."""
        bucket, key = split(uri)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        try:
            if self._client.head_object(Bucket=bucket, Key=key)["Metadata"].get(_SHA256) == digest:
                return False
        except botocore.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise say.Problem(f"{uri} cannot be read: {error}") from error
        began = time.monotonic()
        self._client.upload_file(str(path), bucket, key, ExtraArgs={"Metadata": {_SHA256: digest}})
        size = path.stat().st_size
        say.line(f"  {uri}: {say.size(size)} in {time.monotonic() - began:.1f} s")
        return True

    def upload_folder(self, folder: Path, uri: str) -> None:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        changed = [self.upload(path, f"{uri}/{path.relative_to(folder)}") for path in files]
        if not any(changed):
            say.line(f"  {uri}: {len(files)} files, unchanged")

    def read(self, uri: str) -> bytes:
        bucket, key = split(uri)
        try:
            body: bytes = self._client.get_object(Bucket=bucket, Key=key)["Body"].read()
        except botocore.exceptions.ClientError as error:
            raise say.Problem(f"{uri} cannot be read: {error}") from error
        return body

    def names(self, prefix: str) -> list[str]:
        """URIs of everything below a prefix."""
        bucket, key = split(prefix)
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
        return [f"s3://{bucket}/{entry['Key']}" for page in pages for entry in page.get("Contents", [])]


def split(uri: str) -> tuple[str, str]:
    """s3://bucket/key -> bucket, key"""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key
