import json
import pathlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.trainer import tiny

from finetune_api import run
from finetune_trainer.store import storage
from support import ports


@pytest.fixture(autouse=True)
def alone(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test shares a working folder, a port or credentials with another, or waits for long."""
    monkeypatch.setenv("FINETUNE_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("FINETUNE_METRICS_PORT", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # models this small lose time with more
    monkeypatch.setenv("FINETUNE_TERMINATION_PATH", str(tmp_path / "termination"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(storage, "PATIENCE", 2.0)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of a tiny base model."""
    folder = tmp_path_factory.mktemp("model") / "base"
    tiny.make_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of an S3 server of moto, in a process of its own so that its memory is not ours."""
    port = ports.free()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait(10)


@pytest.fixture
def s3(s3_server: str) -> Any:
    """A boto3 client of an empty store with the bucket `data`."""
    import urllib.request

    import boto3

    urllib.request.urlopen(urllib.request.Request(f"{s3_server}/moto-api/reset", method="POST")).read()
    client = boto3.client("s3", endpoint_url=s3_server, region_name="us-east-1")
    client.create_bucket(Bucket="data")
    return client


@pytest.fixture
def world(tmp_path: pathlib.Path, base: pathlib.Path) -> Callable[..., run.Run]:
    """Makes a Run on the tiny model; rows is what train.jsonl holds."""

    def make(rows: list[Any] | str | None = None, **changes: Any) -> run.Run:
        text = rows if isinstance(rows, str) else tiny.jsonl(tiny.examples(60) if rows is None else rows)
        (tmp_path / "train.jsonl").write_text(text)
        train = [f"file://{tmp_path}/train.jsonl"]
        document = tiny.run_document(f"file://{base}", train, f"file://{tmp_path}/out", **changes)
        return run.Run.model_validate_json(json.dumps(document))

    return make


@pytest.fixture
def fresh(tmp_path: pathlib.Path) -> Callable[[], None]:
    """Removes the working folder, as a new pod would have none."""
    return lambda: shutil.rmtree(tmp_path / "work", ignore_errors=True)
