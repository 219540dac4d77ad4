"""VersityGW as a test's own store: real requests, real signatures, users with rights of their own."""

import contextlib
import dataclasses
import json
import pathlib
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import boto3

from localcluster import binaries
from support import ports

ROOT = ("root-of-tests", "root-secret-of-tests")


@dataclasses.dataclass(frozen=True)
class Store:
    """A running server; `client` is the owner's, to whom no policy applies."""

    url: str
    program: pathlib.Path
    client: Any

    def user(self, name: str) -> tuple[str, str]:
        """The key of a new user, who may do what a bucket's policy allows."""
        secret = f"secret-of-{name}"
        command = [self.program, "admin", "--allow-insecure", "--endpoint-url", self.url, "--region", "us-east-1"]
        command += ["--access", ROOT[0], "--secret", ROOT[1]]
        command += ["create-user", "--access", name, "--secret", secret, "--role", "user"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return name, secret

    def allow(self, user: str, bucket: str, policy: dict[str, Any]) -> None:
        """Applies an identity's policy to the bucket for one user: the same statements, with their principal."""
        text = json.dumps(policy).replace("BUCKET", bucket)
        statements = [{**one, "Principal": {"AWS": [user]}} for one in json.loads(text)["Statement"]]
        self.client.put_bucket_policy(
            Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": statements})
        )


@contextlib.contextmanager
def versity(
    folder: pathlib.Path, certificate: tuple[pathlib.Path, pathlib.Path] | None = None, address: str = "127.0.0.1"
) -> Iterator[Store]:
    """certificate: the files of a certificate and its key, for HTTPS. address: one of this machine."""
    program = binaries.ensure(["versitygw"]) / "versitygw"
    port = ports.free(address)
    for name in ("iam", "data"):
        (folder / name).mkdir(parents=True)
    command = [program, f"--port={address}:{port}", "--region=us-east-1", f"--iam-dir={folder / 'iam'}", "--quiet"]
    command += [f"--cert={certificate[0]}", f"--key={certificate[1]}"] if certificate else []
    environment = {"ROOT_ACCESS_KEY": ROOT[0], "ROOT_SECRET_KEY": ROOT[1]}
    server = subprocess.Popen([*command, "posix", folder / "data"], env=environment, stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex((address, port)) == 0:
                    break
            time.sleep(0.1)
        url = f"http{'s' if certificate else ''}://{address}:{port}"
        session = boto3.session.Session(ROOT[0], ROOT[1], region_name="us-east-1")
        yield Store(url, program, session.client("s3", endpoint_url=url, verify=certificate is None))
    finally:
        server.terminate()
        server.wait(10)
