"""Stores, keys and Secrets as people have them, against VersityGW, which checks every signature, and moto."""

import http.server
import os
import pathlib
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support import stores

from finetune_api import reasons
from finetune_trainer.data import rows
from finetune_trainer.process import errors, secrets
from finetune_trainer.store import storage

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
