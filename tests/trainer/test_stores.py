"""Stores, keys and Secrets as people have them, against VersityGW, which checks every signature, and moto."""

import contextlib
import http.server
import os
import pathlib
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore import awsrequest
from tests.support import stores
from tests.trainer import tiny

from finetune_api import job, reasons, run
from finetune_trainer.data import rows
from finetune_trainer.process import errors, secrets
from finetune_trainer.store import folders, objects, s3, sources, storage

KEYS = (
    "a b.jsonl", " a.jsonl", "a+b.jsonl", "a%20b.jsonl", "ü 漢 e\u0301.jsonl", "q&a=1;(2)'!*.jsonl", "~t@:,$.jsonl",
    '[a]{b}^|"<>`.jsonl', "#part?x=1.jsonl", "back\\slash.jsonl", "tab\t.jsonl",
)  # fmt: skip


@pytest.fixture(scope="module")
def versity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stores.Store]:
    with stores.versity(tmp_path_factory.mktemp("versity")) as store:
        yield store


@pytest.fixture
def bucket(versity: stores.Store, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A bucket of this test's own; the environment has its owner's key."""
    use(monkeypatch, *stores.ROOT)
    name = f"b{abs(hash(request.node.name)) % 10**9}"
    versity.client.create_bucket(Bucket=name)
    return name


def use(monkeypatch: pytest.MonkeyPatch, key: str, secret: str) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)


@pytest.mark.parametrize("marker", ["support/", "support_$folder$", "support/old/"])
@pytest.mark.parametrize("pattern", ["support/*", "support/**", "**", "support*/*.jsonl"])
def test_a_folder_marker_is_no_data_file(s3: Any, s3_server: str, marker: str, pattern: str) -> None:
    s3.put_object(Bucket="data", Key=marker, Body=b"")
    s3.put_object(Bucket="data", Key="support/train.jsonl", Body=b"{}")
    found = rows.find(storage.Storage(s3_server), [f"s3://data/{pattern}"])
    assert [entry.uri for entry in found] == ["s3://data/support/train.jsonl"]


def test_an_empty_file_and_a_file_with_a_folders_name_are_not_dropped(s3: Any, s3_server: str) -> None:
    s3.put_object(Bucket="data", Key="empty.jsonl", Body=b"")
    s3.put_object(Bucket="data", Key="strange/", Body=b"{}")
    found = [entry.uri for entry in storage.Storage(s3_server).glob("s3://data/**")]
    assert found == ["s3://data/empty.jsonl", "s3://data/strange/"]


def test_a_file_with_a_markers_name_is_read_where_it_is_named(s3: Any, s3_server: str) -> None:
    for key in ("in/_train.jsonl", "in/.hidden.jsonl", "in/a.jsonl", "in/_SUCCESS"):
        s3.put_object(Bucket="data", Key=key, Body=b"{}")
    found = rows.find(storage.Storage(s3_server), ["s3://data/in/*", "s3://data/in/_train.jsonl"])
    assert [entry.uri for entry in found] == ["s3://data/in/a.jsonl", "s3://data/in/_train.jsonl"]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_written_read_and_listed_as_it_is(versity: stores.Store, bucket: str, key: str) -> None:
    store, uri = storage.Storage(versity.url, patience=2), f"s3://{bucket}/in a folder/{key}"
    versity.client.put_object(Bucket=bucket, Key=f"in a folder/{key}", Body=b"theirs")
    assert store.read(uri) == b"theirs"
    store.write(uri, b"ours")
    assert [(entry.uri, entry.size) for entry in store.glob(f"s3://{bucket}/in a folder/*")] == [(uri, 4)]
    assert store.glob(uri)[0].uri == uri
    store.delete(uri)
    assert not list(store.entries(f"s3://{bucket}/"))


def test_a_local_pattern_may_have_its_spaces_plain_or_escaped(tmp_path: pathlib.Path) -> None:
    (tmp_path / "my data").mkdir()
    (tmp_path / "my data" / "a b.jsonl").write_text("1")
    for folder in ("my data", "my%20data"):
        for name in ("*.jsonl", "a b.jsonl", "a%20b.jsonl"):
            assert [entry.size for entry in storage.Storage().glob(f"file://{tmp_path}/{folder}/{name}")] == [1]


@pytest.mark.parametrize("around", [("", "\n"), (" ", "\r\n"), ("\n\t", " "), ("\ufeff \n", "")])
def test_white_space_around_a_key_is_cut(
    versity: stores.Store, bucket: str, monkeypatch: pytest.MonkeyPatch, around: tuple[str, str]
) -> None:
    use(monkeypatch, *(f"{around[0]}{value}{around[1]}" for value in stores.ROOT))
    monkeypatch.setenv("AWS_SESSION_TOKEN", "\n")
    monkeypatch.setenv("AWS_REGION", "us-east-1\n")
    secrets.trim()
    store = storage.Storage(versity.url, patience=2)
    store.write(f"s3://{bucket}/x", b"1")
    assert store.read(f"s3://{bucket}/x") == b"1"
    assert "AWS_SESSION_TOKEN" not in os.environ


@pytest.mark.parametrize("value, words", [("pl\u200baceholder", "U+200B at position 3"), ("two words", "U+0020")])
def test_a_key_that_no_request_can_carry_is_named_at_once(
    versity: stores.Store, monkeypatch: pytest.MonkeyPatch, value: str, words: str
) -> None:
    use(monkeypatch, "any", value)
    with pytest.raises(errors.Failure) as caught:
        storage.Storage(versity.url, patience=600).read("s3://data/x")
    assert caught.value.reason is reasons.Reason.S3_ACCESS_DENIED
    assert "AWS_SECRET_ACCESS_KEY" in caught.value.message
    assert words in caught.value.message
    assert value not in caught.value.message


def test_a_header_that_cannot_be_sent_is_no_outage_and_is_not_shown(versity: stores.Store, bucket: str) -> None:
    with pytest.raises(errors.Failure) as caught:
        storage.Storage(versity.url, "eu-west-1\n", patience=600).read(f"s3://{bucket}/x")
    assert caught.value.reason is reasons.Reason.INVALID_SPEC
    assert "could not be sent" in caught.value.message
    for part in ("AWS4", "Credential=", "Signature=", stores.ROOT[0], "SignedHeaders"):
        assert part not in caught.value.message


@contextlib.contextmanager
def answering(*answers: bytes) -> Iterator[str]:
    """The endpoint of a server that gives these answers in turn, and the last one for ever."""
    left = list(answers)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    with client:
                        client.recv(65536)
                        client.sendall(left.pop(0) if len(left) > 1 else left[0])

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"", b"nonsense\r\n\r\n"]
)
def test_an_answer_that_is_cut_off_or_is_none_is_an_outage(answer: bytes) -> None:
    with answering(answer) as endpoint:
        store = storage.Storage(endpoint, patience=0)
        with pytest.raises(errors.Failure) as caught:
            list(store.entries("s3://data/x"))
        assert caught.value.reason is reasons.Reason.STORAGE_UNAVAILABLE


def conflict(code: bytes) -> bytes:
    body = b"<Error><Code>%s</Code><Message>Existing Object is a directory.</Message></Error>" % code
    return b"HTTP/1.1 409 Conflict\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


REFUSED = conflict(b"ExistingObjectIsDirectory")
DONE = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def test_a_request_that_met_another_is_repeated() -> None:
    with answering(REFUSED, REFUSED, DONE) as endpoint:
        storage.Storage(endpoint, patience=30).write("s3://data/x", b"")


def test_a_conflict_that_a_store_itself_calls_passing_has_all_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "CLASH", 0.0)
    with answering(conflict(b"OperationAborted"), DONE) as endpoint:
        storage.Storage(endpoint, patience=30).write("s3://data/x", b"")


def test_a_conflict_after_an_outage_is_repeated_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "CLASH", 2.0)
    down = b"HTTP/1.1 503 Slow Down\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    with answering(*[down] * 9, REFUSED, DONE) as endpoint:
        storage.Storage(endpoint, patience=60).write("s3://data/x", b"")


def test_a_conflict_that_stays_is_refused_in_the_stores_words() -> None:
    with answering(REFUSED) as endpoint, pytest.raises(errors.Failure, match="ExistingObjectIsDirectory") as caught:
        storage.Storage(endpoint, patience=1).write("s3://data/x", b"")
    assert caught.value.reason is reasons.Reason.INVALID_SPEC


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9 ", "not a url", "http://exa mple/"])
def test_an_endpoint_that_is_none_is_no_outage(endpoint: str) -> None:
    with pytest.raises(errors.Failure) as caught:
        storage.Storage(endpoint, patience=600).read("s3://data/x")
    assert caught.value.reason is reasons.Reason.INVALID_SPEC
    assert "storage.endpoint" in caught.value.message


def test_a_wrong_key_is_refused_at_once_and_not_shown(
    versity: stores.Store, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = id-of-nobody\naws_secret_access_key = secret-of-nobody\n"
    )
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    with pytest.raises(errors.Failure) as caught:
        storage.Storage(versity.url, patience=600).read(f"s3://{bucket}/x")
    assert caught.value.reason is reasons.Reason.S3_ACCESS_DENIED
    assert secrets.redact("a store said id-of-nobody with secret-of-nobody") == "a store said [secret] with [secret]"


@pytest.mark.parametrize(
    "text, shown",
    [
        (
            "Invalid header value b'AWS4-HMAC-SHA256 Credential=my-id\\n/20260101/r/s3/aws4_request, SignedHeaders=host, "
            "Signature=0a1b' end",
            "Invalid header value b'[secret]' end",
        ),
        (
            "https://b.s3/x?X-Amz-Credential=my-id%2F2026&X-Amz-Signature=0a1b&a=1",
            "X-Amz-Credential=[secret]&X-Amz-Signature=[secret]&a=1",
        ),
        ("Authorization: Bearer hf_abcdefghijklmnop refused", "Authorization: Bearer [secret] refused"),
        ("proxy http://me:my-password@proxy:3128 failed", "http://[secret]@proxy:3128 failed"),
        ("the key AKIAABCDEFGHIJKLMNOP is unknown", "the key AKIA… is unknown"),
    ],
)  # fmt: skip
def test_what_authenticates_a_request_is_never_quoted(text: str, shown: str) -> None:
    assert secrets.redact(text).endswith(shown)


def test_a_text_about_bearers_and_keys_in_paths_stays() -> None:
    text = "the bearer of news read s3://data/a@b.jsonl"
    assert secrets.redact(text) == text


@pytest.fixture
def below_a_path(s3: Any, s3_server: str) -> Iterator[str]:
    """The URL of a store below a base path: everything else does not exist."""
    base = "/storage/v1/s3"

    class Handler(http.server.BaseHTTPRequestHandler):
        def forward(self) -> None:
            if not self.path.startswith(base + "/"):
                self.send_error(400, "outside of the base path")
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = urllib.request.Request(s3_server + self.path[len(base) :], body or None, method=self.command)
            request.add_header("Content-Type", "application/octet-stream")
            for name, value in self.headers.items():
                if name.lower() not in ("host", "connection"):
                    request.add_header(name, value)
            try:
                answer = urllib.request.urlopen(request)
            except urllib.error.HTTPError as error:
                answer = error
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward

        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}{base}"
    server.shutdown()


@pytest.mark.parametrize("slash", ["", "/"])
def test_an_endpoint_may_have_a_base_path(below_a_path: str, slash: str) -> None:
    store = storage.Storage(below_a_path + slash, patience=2)
    store.write("s3://data/a b/x", b"1")
    assert store.read("s3://data/a b/x") == b"1"
    assert [entry.uri for entry in store.entries("s3://data/a b/")] == ["s3://data/a b/x"]
    store.delete("s3://data/a b/x")
    assert not store.exists("s3://data/a b/x")


def test_an_endpoint_of_the_environment_is_one_like_the_specs(
    versity: stores.Store, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f" {versity.url}\n")
    secrets.trim()
    storage.Storage(patience=2).write(f"s3://{bucket}/x", b"1")
    with pytest.raises(errors.Failure, match=versity.url):
        storage.Storage(patience=2).read("s3://not-there/x")


# -- several stores --


def sent(connection: job.Connection, act: Callable[[storage.Storage], Any]) -> list[Any]:
    """The requests of an action, none of which leaves this process."""
    store, requests = storage.Storage(connection=connection, patience=0), []
    store.exists("file:///nothing")

    def answer(request: Any, **_: Any) -> awsrequest.AWSResponse:
        requests.append(request)
        xml = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
        made = awsrequest.AWSResponse(request.url, 200, {"ETag": '"t"', "Content-Length": "0"}, None)
        made._content = xml if request.url.endswith("?uploads") else b""
        return made

    store._of("s3://b/k")._client.meta.events.register("before-send.s3", answer)  # type: ignore[attr-defined]
    act(store)
    return requests


ENDPOINT = "https://store.example/base"


@pytest.mark.parametrize(
    "connection, url",
    [
        ({}, "https://bucket.s3.amazonaws.com/a%20key"),
        ({"region": "eu-west-1"}, "https://bucket.s3.eu-west-1.amazonaws.com/a%20key"),
        ({"addressing": "Path"}, "https://s3.amazonaws.com/bucket/a%20key"),
        ({"endpoint": ENDPOINT}, "https://store.example/base/bucket/a%20key"),
        ({"endpoint": ENDPOINT, "addressing": "Path"}, "https://store.example/base/bucket/a%20key"),
        ({"endpoint": ENDPOINT, "addressing": "VirtualHost"}, "https://bucket.store.example/base/a%20key"),
    ],
)
def test_a_request_has_the_bucket_where_the_store_wants_it(connection: dict[str, str], url: str) -> None:
    [request] = sent(job.Connection.model_validate(connection), lambda store: store.write("s3://bucket/a key", b"1"))
    assert request.url == url


@pytest.mark.parametrize(
    "connection, checksum",
    [
        ({}, True),
        ({"checksums": "WhenRequired"}, False),
        ({"endpoint": ENDPOINT}, False),
        ({"endpoint": ENDPOINT, "checksums": "WhenSupported"}, True),
    ],
)
def test_a_request_has_a_checksum_where_the_store_wants_it(connection: dict[str, str], checksum: bool) -> None:
    [request] = sent(job.Connection.model_validate(connection), lambda store: store.write("s3://bucket/key", b"1"))
    assert any(name.lower().startswith(("x-amz-checksum", "x-amz-trailer")) for name in request.headers) is checksum


def test_requests_state_encryption_key_and_payer(tmp_path: pathlib.Path) -> None:
    (tmp_path / "small").write_bytes(b"1")
    (tmp_path / "large").write_bytes(b"1" * (objects.PART + 1))
    where = job.Storage(
        output="s3://bucket/x", encryption=job.Encryption.KMS, kms_key_id="alias/own", requester_pays=True
    )
    acts: list[Callable[[storage.Storage], Any]] = [
        lambda store: store.write("s3://b/k", b"1"),
        lambda store: store.upload(tmp_path / "small", "s3://b/k"),
        lambda store: store.upload(tmp_path / "large", "s3://b/k"),
    ]
    for act in acts:
        first = sent(where, act)[0].headers
        assert first["x-amz-server-side-encryption"] == b"aws:kms"
        assert first["x-amz-server-side-encryption-aws-kms-key-id"] == b"alias/own"
        assert first["x-amz-request-payer"] == b"requester"
    reading: list[Callable[[storage.Storage], Any]] = [
        lambda store: store.stat("s3://b/k"),
        lambda store: list(store.entries("s3://b/k")),
        lambda store: store.delete("s3://b/k"),
    ]
    for act in reading:
        assert all(request.headers["x-amz-request-payer"] == b"requester" for request in sent(where, act))
        assert "x-amz-server-side-encryption" not in sent(where, act)[0].headers


def test_a_store_takes_checksums_or_none(versity: stores.Store, bucket: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "large").write_bytes(os.urandom(objects.PART + 9))
    for checksums in job.Checksums:
        store = storage.Storage(connection=job.Connection(endpoint=versity.url, checksums=checksums), patience=2)
        store.write(f"s3://{bucket}/small", b"1")
        store.upload(tmp_path / "large", f"s3://{bucket}/large")
        store.download(f"s3://{bucket}/large", tmp_path / "back")
        assert store.read(f"s3://{bucket}/small") == b"1"
        assert (tmp_path / "back").read_bytes() == (tmp_path / "large").read_bytes()


@pytest.mark.parametrize("checksums", [None, *job.Checksums])
def test_a_retention_is_named_and_what_it_keeps_is_withdrawn_or_stays(
    versity: stores.Store, bucket: str, checksums: job.Checksums | None, tmp_path: pathlib.Path
) -> None:
    locked = f"{bucket}-locked"
    versity.client.create_bucket(Bucket=locked, ObjectLockEnabledForBucket=True)
    rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}
    versity.client.put_object_lock_configuration(
        Bucket=locked, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
    )
    store = storage.Storage(connection=job.Connection(endpoint=versity.url, checksums=checksums), patience=60)
    (tmp_path / "file").write_bytes(b"1")
    folders.save(store, tmp_path, f"s3://{locked}/folder")
    assert folders.discard(store, f"s3://{locked}/folder/file") is False
    with pytest.raises(errors.Failure, match="retention") as caught:
        store.write(f"s3://{locked}/folder/file", b"2")
    assert caught.value.reason is reasons.Reason.S3_ACCESS_DENIED
    assert store.read(f"s3://{locked}/folder/file") == b"1"


def test_a_session_token_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-of-a-session")
    [request] = sent(job.Connection(), lambda store: store.write("s3://bucket/key", b"1"))
    assert request.headers["X-Amz-Security-Token"] in (b"token-of-a-session", "token-of-a-session")


def test_encrypted_objects_are_written_and_read(s3: Any, s3_server: str) -> None:
    where = job.Storage(output="s3://data/x", endpoint=s3_server, encryption=job.Encryption.KMS, kms_key_id="own")
    store = storage.Storage(connection=where, patience=2)
    store.write("s3://data/x", b"1")
    assert store.read("s3://data/x") == b"1"
    assert s3.head_object(Bucket="data", Key="x")["SSEKMSKeyId"] == "own"


def test_a_weak_tag_is_no_condition(s3: Any, s3_server: str) -> None:
    s3.put_object(Bucket="data", Key="x", Body=b"1")
    store = storage.Storage(s3_server, patience=2)
    entry = store.stat("s3://data/x")
    client = store._of("s3://data/x")._client  # type: ignore[attr-defined]

    def weaken(parsed: dict[str, Any], **_: Any) -> None:
        if "ETag" in parsed:
            parsed["ETag"] = f"W/{parsed['ETag']}"

    client.meta.events.register("after-call.s3", weaken)
    assert store.stat("s3://data/x").etag == f"W/{entry.etag}"
    assert store.read("s3://data/x") == b"1"


READER = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": ["arn:aws:s3:::BUCKET"]},
        {"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": ["arn:aws:s3:::BUCKET/*"]},
    ],
}


def job_with(base_model: dict[str, Any], dataset: dict[str, Any], output: str, **where: Any) -> run.Run:
    document = tiny.run_document("file:///none", ["s3://none/x.jsonl"], output)
    document["storage"] |= where
    document["dataset"] |= dataset
    document["baseModel"] |= base_model
    return run.Run.model_validate(document)


def test_data_and_base_model_are_read_by_their_own_keys(
    versity: stores.Store, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    reader, writer = versity.user(f"reader-{bucket}"), versity.user(f"writer-{bucket}")
    versity.allow(reader[0], bucket, READER)
    versity.client.put_object(Bucket=bucket, Key="rows.jsonl", Body=b"{}")
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        versity.client.put_object(Bucket=bucket, Key=f"model/{name}", Body=b'{"model_type": "llama"}')
    use(monkeypatch, *writer)
    own = {"endpoint": versity.url, "credentialsSecret": "reader"}
    spec = job_with(
        {"source": f"s3://{bucket}/model", "storage": own}, {"storage": own}, f"s3://{bucket}/out", endpoint=versity.url
    )
    for prefix in ("DATA_", "BASE_MODEL_"):
        monkeypatch.setenv(f"{prefix}AWS_ACCESS_KEY_ID", reader[0])
        monkeypatch.setenv(f"{prefix}AWS_SECRET_ACCESS_KEY", reader[1])
    assert storage.of_data(spec).read(f"s3://{bucket}/rows.jsonl") == b"{}"
    found = sources.resolve(spec.base_model, storage.of(spec.storage), tmp_path / "base", weights=False)
    assert (found / "config.json").is_file()
    for other in (
        storage.of(spec.storage),
        storage.of_data(spec.model_copy(update={"dataset": job.Dataset(train=["s3://b/x"])})),
    ):
        with pytest.raises(errors.Failure) as caught:
            other.read(f"s3://{bucket}/rows.jsonl")
        assert caught.value.reason is reasons.Reason.S3_ACCESS_DENIED


def test_a_data_store_without_a_secret_is_not_read_by_the_key_of_the_results(
    versity: stores.Store, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    spec = job_with({}, {"storage": {"endpoint": versity.url}}, f"s3://{bucket}/out", endpoint=versity.url)
    storage.of(spec.storage).write(f"s3://{bucket}/rows.jsonl", b"{}")
    with pytest.raises(errors.Failure, match="no credentials"):
        storage.of_data(spec).read(f"s3://{bucket}/rows.jsonl")


def test_data_on_a_claim_are_found_and_read(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_DATA_PATH", str(tmp_path))
    (tmp_path / "rows" / "my data").mkdir(parents=True)
    (tmp_path / "rows" / "my data" / "100%.jsonl").write_text('{"text": "a"}')
    [entry] = rows.find(storage.Storage(), ["pvc://rows/my data/*.jsonl"])
    assert entry.uri == "pvc://rows/my%20data/100%25.jsonl"
    [row] = rows.read(storage.Storage(), entry.uri)
    assert isinstance(row, rows.Row)
    assert row.value == {"text": "a"}
    with pytest.raises(errors.Failure, match="pvc://rows/none") as caught:
        rows.find(storage.Storage(), ["pvc://rows/none.jsonl"])
    assert caught.value.reason is reasons.Reason.DATASET_NOT_FOUND
