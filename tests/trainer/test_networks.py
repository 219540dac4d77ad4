"""Networks as companies have them: certificate authorities of their own, proxies, mirrors of the hub."""

import json
import os
import pathlib
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http import server
from typing import Any

import httpx
import pytest
from tests.support import authority, stores
from tests.trainer import tiny

from finetune_api import reasons
from finetune_trainer.process import errors, http, trust
from finetune_trainer.store import storage


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test or the code sets is undone."""
    for name in (
        *trust.VARIABLES,
        trust.BUNDLE,
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
    ):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def company(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, pathlib.Path]]:
    """The URL of a store whose certificate is of a company's own authority, and the authority's bundle."""
    ca, certificate, key = authority.issue(tmp_path / "ca")
    with stores.versity(tmp_path / "versity", (certificate, key)) as store:
        store.client.create_bucket(Bucket="data")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", stores.ROOT[0])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", stores.ROOT[1])
        yield store.url, ca


def test_an_unknown_authority_is_named_at_once(company: tuple[str, pathlib.Path]) -> None:
    with pytest.raises(errors.Failure) as caught:
        storage.Storage(company[0], patience=600).read("s3://data/x")
    assert caught.value.reason is reasons.Reason.INVALID_SPEC
    assert "storage.caBundle" in caught.value.message


def test_a_bundle_adds_an_authority_to_the_public_ones(
    company: tuple[str, pathlib.Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, ca = company
    before = len(ssl.create_default_context().get_ca_certs())
    monkeypatch.setenv(trust.BUNDLE, str(ca))
    trust.install()
    store = storage.Storage(url, patience=2)
    store.write("s3://data/x", b"1")
    assert store.read("s3://data/x") == b"1"
    assert len(ssl.create_default_context().get_ca_certs()) > max(before, 50)
    with pytest.raises(http.Failed, match="HTTP 403"):  # the judge's client: the store answers, as to a stranger
        http.Server(url, seconds=10, size=10_000).ask("/data/x")
    with pytest.raises(httpx.HTTPStatusError, match="403"):  # the hub's client
        httpx.get(f"{url}/data/x").raise_for_status()


def test_a_bundle_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv(trust.BUNDLE, str(tmp_path / "ca.crt"))
    with pytest.raises(errors.Failure, match=r"FINETUNE_CA_BUNDLE must name a file") as caught:
        trust.install()
    assert caught.value.reason is reasons.Reason.INVALID_SPEC


@pytest.mark.parametrize("content", ["", "company-ca", "-----BEGIN CERTIFICATE-----\nnot\n-----END CERTIFICATE-----\n"])
def test_a_bundle_without_a_certificate_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, content: str
) -> None:
    (tmp_path / "ca.crt").write_text(content)
    monkeypatch.setenv(trust.BUNDLE, str(tmp_path / "ca.crt"))
    with pytest.raises(errors.Failure, match="PEM") as caught:
        trust.install()
    assert caught.value.reason is reasons.Reason.INVALID_SPEC


class Recorder:
    """An HTTP server that answers every GET, POST and HEAD by one function, and remembers the lines of the requests."""

    def __init__(self, answer: Any) -> None:
        self.lines: list[str] = []
        lines = self.lines

        class Handler(server.BaseHTTPRequestHandler):
            def respond(self) -> None:
                lines.append(self.requestline)
                status, headers, body = answer(self.path)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body if self.command != "HEAD" else b"")

            do_GET = do_POST = do_HEAD = do_PUT = respond

            def log_message(self, *_: Any) -> None: ...

        self._server = server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    made = Recorder(lambda _: (200, {"ETag": '"a"', "Content-Type": "application/json"}, b"{}"))
    monkeypatch.setenv("HTTP_PROXY", made.url.replace("://", "://user:pass-word@"))
    monkeypatch.setenv("http_proxy", made.url.replace("://", "://user:pass-word@"))
    monkeypatch.setenv("NO_PROXY", ".svc,127.0.0.1")
    yield made
    made.close()


def test_the_store_and_the_judge_are_reached_through_a_proxy(proxy: Recorder) -> None:
    assert storage.Storage("http://store.example", patience=0).read("s3://data/x") == b"{}"
    assert http.Server("http://judge.example", seconds=5, size=100, outside=True).ask("/v1/x") == {}
    hosts = {line.split()[1].removeprefix("http://").partition("/")[0] for line in proxy.lines}
    assert hosts == {"store.example", "judge.example"}


def test_what_is_in_the_cluster_is_not_reached_through_a_proxy(proxy: Recorder) -> None:
    for url in ("http://model.ml.svc:8000", "http://judge.ml.svc:8000"):
        with pytest.raises(http.Failed):
            http.Server(url, seconds=5, size=100, outside="judge" in url).ask("/v1/models")
    with pytest.raises(http.Failed):
        http.Server("http://model.example:8000", seconds=5, size=100).ask("/v1/models")
    assert proxy.lines == []


def test_a_proxys_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://user:pass-word@127.0.0.1:9")
    with pytest.raises(errors.Failure) as caught:
        storage.Storage("http://store.example", patience=0).read("s3://data/x")
    assert caught.value.reason is reasons.Reason.STORAGE_UNAVAILABLE
    assert "pass-word" not in caught.value.message


@pytest.mark.slow
def test_a_model_comes_from_a_mirror_of_the_hub(base: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """In a process of its own: the hub's client reads HF_ENDPOINT when it is imported."""
    commit = "c" * 40

    def answer(path: str) -> tuple[int, dict[str, str], bytes]:
        if "/tree/" in path:
            tree = [
                {"type": "file", "path": one.name, "size": one.stat().st_size, "oid": "o"} for one in base.iterdir()
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(tree).encode()
        if path.startswith("/api/models/acme/tiny"):
            files = [{"rfilename": one.name} for one in base.iterdir()]
            info = {"id": "acme/tiny", "sha": commit, "siblings": files}
            return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        file = base / path.partition("?")[0].rpartition("/")[2]
        if not file.is_file():
            return 404, {}, b""
        return 200, {"ETag": f'"{file.name}"', "X-Repo-Commit": commit}, file.read_bytes()

    mirror = Recorder(answer)
    document = tiny.run_document("hf://acme/tiny", ["file:///none"], f"file://{tmp_path}/out")
    code = (
        "import pathlib, sys\n"
        "from finetune_api import run\n"
        "from finetune_trainer.store import sources, storage\n"
        "spec = run.Run.model_validate_json(sys.stdin.read())\n"
        f"sources.resolve(spec.base_model, storage.Storage(), pathlib.Path({str(tmp_path / 'to')!r}), weights=False)\n"
    )
    environment = os.environ | {"HF_ENDPOINT": mirror.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(document), env=environment, capture_output=True, text=True
    )
    mirror.close()
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "to" / "config.json").read_text())["model_type"] == "llama"
