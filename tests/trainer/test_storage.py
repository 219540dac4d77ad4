import io
import json
import os
import pathlib
import socket
import threading
import tracemalloc
from typing import Any

import pytest

from finetune_api import job, reasons
from finetune_trainer.process import errors
from finetune_trainer.store import files, folders, objects, storage
from finetune_trainer.store import s3 as s3_store
from support import ports


@pytest.fixture(params=["s3", "file"])
def place(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> tuple[storage.Storage, str]:
    """A store and the URI of an empty place in it: once in S3, once in a folder."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        return storage.Storage(request.getfixturevalue("s3_server"), patience=2), "s3://data/place"
    return storage.Storage(), f"file://{tmp_path}/place"


def test_what_is_written_is_read(place: tuple[storage.Storage, str]) -> None:
    store, uri = place
    store.write(f"{uri}/a.txt", b"hello")
    assert store.read(f"{uri}/a.txt") == b"hello"
    assert store.stat(f"{uri}/a.txt").size == 5
    store.delete(f"{uri}/a.txt")
    store.delete(f"{uri}/a.txt")
    assert not store.exists(f"{uri}/a.txt")


def test_a_missing_object_is_not_found(place: tuple[storage.Storage, str], tmp_path: pathlib.Path) -> None:
    store, uri = place
    for ask in (store.stat, store.read, lambda uri: store.download(uri, tmp_path / "x")):
        with pytest.raises(errors.NotFound):
            ask(f"{uri}/missing")
    assert not list(tmp_path.glob("*.part"))


def test_globs_match_within_folders_and_across_them(place: tuple[storage.Storage, str]) -> None:
    store, uri = place
    for name in ("a.jsonl", "b.jsonl", "c.csv", "deep/d.jsonl", "deep/er/e.jsonl"):
        store.write(f"{uri}/{name}", b"x")

    def names(pattern: str) -> list[str]:
        return [entry.uri.removeprefix(f"{uri}/") for entry in store.glob(f"{uri}/{pattern}")]

    assert names("*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert names("?.csv") == ["c.csv"]
    assert names("**/*.jsonl") == ["a.jsonl", "b.jsonl", "deep/d.jsonl", "deep/er/e.jsonl"]
    assert names("deep/*") == ["deep/d.jsonl"]
    assert names("deep/**") == ["deep/d.jsonl", "deep/er/e.jsonl"]
    assert names("*.parquet") == []
    assert names("a.jsonl") == ["a.jsonl"]


def test_a_folder_is_complete_only_with_its_manifest(
    place: tuple[storage.Storage, str], tmp_path: pathlib.Path
) -> None:
    store, uri = place
    local = tmp_path / "local"
    (local / "sub").mkdir(parents=True)
    (local / "one").write_bytes(b"1")
    (local / "sub" / "two").write_bytes(b"22")
    saved = folders.save(store, local, uri, {"note": 7})
    loaded = folders.load(store, uri, tmp_path / "back", expected=saved.sha256)
    assert (tmp_path / "back" / "sub" / "two").read_bytes() == b"22"
    assert loaded.extra == {"note": 7}
    assert loaded.bytes == 3
    store.delete(f"{uri}/manifest.json")
    assert folders.manifest(store, uri) is None
    with pytest.raises(errors.NotFound):
        folders.load(store, uri, tmp_path / "again")


def test_a_damaged_or_replaced_folder_is_corrupt(place: tuple[storage.Storage, str], tmp_path: pathlib.Path) -> None:
    store, uri = place
    local = tmp_path / "local"
    local.mkdir()
    (local / "one").write_bytes(b"1")
    saved = folders.save(store, local, uri)
    with pytest.raises(folders.Corrupt, match="replaced"):
        folders.load(store, uri, tmp_path / "x", expected="0" * 64)
    store.write(f"{uri}/one", b"2")
    with pytest.raises(folders.Corrupt, match="SHA-256"):
        folders.load(store, uri, tmp_path / "y", expected=saved.sha256)
    store.delete(f"{uri}/one")
    with pytest.raises(folders.Corrupt, match="missing"):
        folders.load(store, uri, tmp_path / "z")


def test_a_manifest_cannot_lead_out_of_its_folder(tmp_path: pathlib.Path) -> None:
    store, uri = storage.Storage(), f"file://{tmp_path}/f"
    evil = {"files": [{"path": "../../evil", "size": 1, "sha256": "0"}]}
    store.write(f"{uri}/manifest.json", json.dumps(evil).encode())
    with pytest.raises(folders.Corrupt, match="outside"):
        folders.load(store, uri, tmp_path / "to")


class Recorder(storage.Storage):
    """A store that notes the order of what happens to it."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[str] = []

    def write(self, uri: str, data: bytes) -> None:
        self.done.append(f"write {uri.rsplit('/', 1)[1]}")
        super().write(uri, data)

    def upload(self, path: pathlib.Path, uri: str) -> None:
        self.done.append(f"upload {uri.rsplit('/', 1)[1]}")
        super().upload(path, uri)

    def delete(self, uri: str) -> None:
        self.done.append(f"delete {uri.rsplit('/', 1)[1]}")
        super().delete(uri)


def test_the_manifest_is_written_last_and_removed_first(tmp_path: pathlib.Path) -> None:
    store = Recorder()
    (tmp_path / "l").mkdir()
    for name in ("a", "z"):
        (tmp_path / "l" / name).write_text(name)
    folders.save(store, tmp_path / "l", f"file://{tmp_path}/f")
    assert store.done == ["delete manifest.json", "upload a", "upload z", "write manifest.json"]
    store.done.clear()
    folders.remove(store, f"file://{tmp_path}/f")
    assert store.done == ["delete manifest.json", "delete a", "delete z"]


def test_large_objects_travel_in_parts_and_are_never_whole_in_memory(
    s3: Any, s3_server: str, tmp_path: pathlib.Path
) -> None:
    store = storage.Storage(s3_server)
    size = 3 * objects.PART + 12_345
    path = tmp_path / "big"
    path.write_bytes(os.urandom(size))
    store.upload(path, "s3://data/big")
    tag = s3.head_object(Bucket="data", Key="big")["ETag"]
    assert tag.strip('"').endswith("-4"), "four parts"
    tracemalloc.start()
    total = 0
    with store.open("s3://data/big") as stream:
        while piece := stream.read(1 << 16):
            total += len(piece)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == size
    assert peak < size / 2
    store.download("s3://data/big", tmp_path / "back")
    assert folders.sha256(tmp_path / "back") == folders.sha256(path)


def test_a_download_resumes_where_its_connection_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_store.time, "sleep", lambda _: None)
    data, opened = bytes(range(256)) * 40, []

    class Breaking(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() >= 1000:
                raise ConnectionResetError("gone")
            return super().read(min(size or 0, 1000))

    def body(offset: int) -> io.BytesIO:
        opened.append(offset)
        return Breaking(data[offset:])

    assert io.BufferedReader(s3_store.Stream(len(data), body)).read() == data
    assert len(opened) > 5
    assert opened == sorted(opened)


def test_a_missing_bucket_is_named(s3: Any, s3_server: str) -> None:
    store = storage.Storage(s3_server)
    for ask in (store.stat, store.read, lambda uri: list(store.entries(uri)), lambda uri: store.write(uri, b"")):
        with pytest.raises(errors.Failure) as caught:
            ask("s3://nowhere/key")
        assert caught.value.reason is reasons.Reason.BUCKET_NOT_FOUND
        assert "'nowhere'" in caught.value.message
        assert caught.value.exit == 2


def test_refused_credentials_end_at_once_and_are_not_shown(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    import botocore.exceptions

    store = storage.Storage(s3_server, patience=60)
    store.exists("file:///nothing")
    for code, status in (
        ("SignatureDoesNotMatch", 403),
        ("XAdminUserNotFound", 404),
        ("InvalidAccessKeyId", 403),
        ("403", 403),
    ):
        answer: Any = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
        error = botocore.exceptions.ClientError(answer, "HeadObject")
        found = s3_store.S3(job.Connection(endpoint=s3_server), 1)._explain("s3://data/x", error)
        assert found.reason is reasons.Reason.S3_ACCESS_DENIED
        assert "credentialsSecret" in found.message
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    boto3.DEFAULT_SESSION = None
    with pytest.raises(errors.Failure, match="no credentials") as caught:
        storage.Storage(s3_server).read("s3://data/x")
    assert caught.value.reason is reasons.Reason.S3_ACCESS_DENIED
    assert errors.describe(ValueError("key AKIAABCDEFGHIJKLMNOP\nrefused")) == "ValueError: key AKIA… refused"


def test_an_unreachable_store_is_waited_for_and_then_reported() -> None:
    store = storage.Storage(f"http://127.0.0.1:{ports.free()}", patience=1)
    with pytest.raises(errors.Failure, match=r"storage\.endpoint") as caught:
        store.read("s3://data/x")
    assert caught.value.reason is reasons.Reason.STORAGE_UNAVAILABLE
    assert caught.value.exit == 5


def test_in_a_hurry_an_outage_is_waited_for_briefly_and_afterwards_as_long_as_before() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        store = storage.Storage(f"http://127.0.0.1:{taken.getsockname()[1]}", patience=600)
        with objects.hurried(0.6), pytest.raises(errors.Failure, match=r"no answer for \d s") as caught:
            store.read("s3://data/x")
        assert caught.value.reason is reasons.Reason.STORAGE_UNAVAILABLE
    assert objects.deadline() == float("inf")


def test_an_outage_that_passes_is_not_noticed(s3: Any, s3_server: str) -> None:
    """A gate in front of the store that opens after a second."""
    s3.put_object(Bucket="data", Key="x", Body=b"there")
    host, port = s3_server.removeprefix("http://").split(":")
    gate = socket.socket()
    gate.bind(("127.0.0.1", 0))
    address = gate.getsockname()

    def forward() -> None:
        gate.listen()
        while True:
            try:
                client, _ = gate.accept()
            except OSError:
                return
            server = socket.create_connection((host, int(port)))
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=pump, args=(one, other), daemon=True).start()

    def pump(one: socket.socket, other: socket.socket) -> None:
        while data := one.recv(65536):
            other.sendall(data)
        other.close()

    opening = threading.Timer(1.0, lambda: threading.Thread(target=forward, daemon=True).start())
    opening.start()
    assert storage.Storage(f"http://127.0.0.1:{address[1]}", patience=30).read("s3://data/x") == b"there"
    gate.close()


def test_local_writes_leave_nothing_behind_when_they_fail(tmp_path: pathlib.Path) -> None:
    store = storage.Storage()
    with pytest.raises(FileNotFoundError):
        store.upload(tmp_path / "missing", f"file://{tmp_path}/to/x")
    (tmp_path / "closed").mkdir()
    store.write(f"file://{tmp_path}/closed/a", b"1")
    assert [entry.uri for entry in store.entries(f"file://{tmp_path}/closed/")] == [f"file://{tmp_path}/closed/a"]


def test_a_local_path_with_spaces_and_signs_is_found_read_and_listed(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "my data, 100%"
    folder.mkdir()
    (folder / "a b.jsonl").write_text("1")
    uri = files.address(folder / "*.jsonl")
    assert " " not in uri
    [entry] = storage.Storage().glob(uri)
    assert storage.Storage().read(entry.uri) == b"1"
    assert files.path_of(entry.uri) == folder / "a b.jsonl"
