"""The seam to HTTP against a real server that misbehaves in every way."""

import datetime
import email.utils
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from finetune_trainer.process import http as seam

KEY = "http-canary-key-0815"
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


def answer(status: int, body: bytes = b"{}", **headers: str) -> Answer:
    def write(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return write


def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(40):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def hang_up(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.connection.close()


class World:
    """Answers in their order, the last one for ever."""

    def __init__(self) -> None:
        self.answers: list[Answer] = [answer(200)]
        self.seen: list[tuple[str, dict[str, str], bytes]] = []


@pytest.fixture
def world() -> Iterator[tuple[World, str]]:
    made = World()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            made.seen.append((self.path, dict(self.headers), body))
            (made.answers.pop(0) if len(made.answers) > 1 else made.answers[0])(self)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None: ...

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    yield made, f"http://127.0.0.1:{listener.server_address[1]}/v1/"
    listener.shutdown()


def server(url: str, key: str = "", seconds: float = 5.0, size: int = 1000) -> seam.Server:
    return seam.Server(url, key, seconds=seconds, size=size)


def fails(call: Callable[[], Any], words: str) -> seam.Failed:
    with pytest.raises(seam.Failed, match=words) as caught:
        call()
    assert KEY not in str(caught.value)
    return caught.value


def test_transient_failures_are_tried_again_with_pauses_that_grow(world: tuple[World, str]) -> None:
    made, url = world
    made.answers = [answer(503), answer(429), hang_up, answer(200, b'{"a": 1}')]
    pauses: list[float] = []
    assert server(url).ask("/x", {"q": "\ud800"}, patience=60, pause=pauses.append) == {"a": 1}
    assert [path for path, _, _ in made.seen] == ["/v1/x"] * 4
    assert made.seen[0][2] == b'{"q": "\\ud800"}'
    for index, pause in enumerate(pauses):
        assert 0.5 * 2**index <= pause <= 2**index
    assert len(pauses) == 3


def test_a_pause_is_as_long_as_the_server_asks_for(world: tuple[World, str]) -> None:
    made, url = world
    soon = email.utils.format_datetime(datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=20), True)
    made.answers = [
        answer(429, Retry_After="7"),
        answer(503, Retry_After=soon),
        answer(429, Retry_After="nan"),
        answer(200),
    ]
    pauses: list[float] = []
    server(url).ask("/x", patience=60, pause=pauses.append)
    assert pauses[0] == 7.0
    assert 15 < pauses[1] <= 20
    assert 2 <= pauses[2] <= 4
    made.answers = [answer(429, Retry_After="3600")]
    failed = fails(lambda: server(url).ask("/x", patience=60, pause=pauses.append), "HTTP 429")
    assert (failed.transient, len(pauses)) == (True, 3), "a pause beyond the patience is not begun"


def test_an_error_that_waiting_does_not_solve_is_not_retried(world: tuple[World, str]) -> None:
    made, url = world
    for status, body, words in (
        (400, b'{"error": {"message": "no\\n such model"}}', "HTTP 400: no such model"),
        (401, b'{"detail": "no key"}', "HTTP 401: no key"),
        (404, b"<html>an intranet</html>", "HTTP 404$"),
        (302, b"", "HTTP 302: it redirects"),
        (200, b"<html>", "not JSON"),
        (200, b"[" * 900, "not JSON"),
        (200, b"1" * 1001, "more than 1000 bytes"),
    ):
        made.answers = [answer(status, body, Location="/v1/elsewhere")]
        failed = fails(lambda: server(url).ask("/x", patience=60), words)
        assert (failed.status, failed.transient) == (status, False)
    assert len(made.seen) == 7


def test_an_answer_that_drips_for_ever_is_given_up(world: tuple[World, str]) -> None:
    made, url = world
    made.answers = [drip]
    begun = time.monotonic()
    assert fails(lambda: server(url, seconds=0.3).ask("/x"), "no complete answer in 0 s").transient
    assert time.monotonic() - begun < 1.5


def test_nobody_there_is_transient() -> None:
    assert fails(lambda: server("http://127.0.0.1:9").ask("/x"), "ConnectError").transient


def test_neither_proxies_nor_credentials_of_the_environment_are_used(
    world: tuple[World, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    made, url = world
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password netrc-secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert server(url).ask("/x") == {}
    assert "Authorization" not in made.seen[0][1]


def test_the_key_is_sent_and_never_quoted(world: tuple[World, str], monkeypatch: pytest.MonkeyPatch) -> None:
    made, url = world
    monkeypatch.setenv("API_KEY", KEY)
    made.answers = [answer(403, b'{"message": "you sent Bearer %s"}' % KEY.encode())]
    fails(lambda: server(url, KEY).ask("/x"), r"you sent Bearer \[secret\]")
    assert made.seen[0][1]["Authorization"] == f"Bearer {KEY}"
    for key in (f"{KEY}\n", f"{KEY}ü"):
        assert fails(lambda key=key: server(url, key).ask("/x"), "characters that a header cannot").status == 401
    assert len(made.seen) == 1
