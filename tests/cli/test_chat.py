"""`finetune chat`: one question, a conversation, what stands in the way; the cluster's part is tested on the real node."""

import builtins
import http.server
import json
import os
import pathlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from finetune_api import exits
from finetune_cli import __main__, chat
from finetune_trainer.process import http as client

KEY = "key-of-support"


class Server(http.server.ThreadingHTTPServer):
    """Speaks OpenAI's API: repeats the last question, and tells what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models, self.sent, self.pieces = ["colours"], list[dict[str, Any]](), list[str]()
        self.key, self.whole = "", True
        self.trouble: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None: ...

    def answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def allowed(self) -> bool:
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            self.answer(401, b'{"error": {"message": "this pool needs a key"}}')
            return False
        return True

    def do_GET(self) -> None:
        if self.allowed():
            self.answer(200, json.dumps({"data": [{"id": name} for name in self.server.models]}).encode())

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.sent.append(sent)
        if not self.allowed():
            return
        if sent["model"] not in self.server.models:
            self.answer(404, b'{"error": {"message": "the model does not exist"}}')
            return
        pieces = self.server.pieces or ["You said: ", sent["messages"][-1]["content"]]
        lines = [json.dumps({"choices": [{"delta": {"content": piece}}]}) for piece in pieces]
        lines += [json.dumps({"error": self.server.trouble})] if self.server.trouble else []
        lines += ["[DONE]"] if self.server.whole else []
        self.answer(200, "".join(f"data: {line}\n\n" for line in lines).encode(), "text/event-stream")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def run(*words: str) -> int:
    return __main__.main(["chat", *words])


def test_a_question_is_answered(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(server.url, "Which colour?", "--system", "Be brief.", "--max-tokens", "5", "--temperature", "0") == 0
    assert capsys.readouterr().out == "You said: Which colour?\n"
    (sent,) = server.sent
    assert sent.pop("messages") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Which colour?"},
    ]
    assert sent == {"model": "colours", "stream": True, "max_tokens": 5, "temperature": 0.0}


def test_a_question_comes_from_a_pipe_and_the_answer_goes_as_json(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "question").write_text("From a pipe")
    with (tmp_path / "question").open() as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        assert run(f"{server.url}/v1", "--output", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["reply"]["model"], found["reply"]["text"]) == ("colours", "You said: From a pipe")


def test_a_conversation_is_remembered_until_a_new_one(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["one", "two", "/new", "three"])

    def typed(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(builtins, "input", typed)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert run(server.url) == 0
    sent = [[turn["content"] for turn in one["messages"]] for one in server.sent]
    assert sent == [["one"], ["one", "You said: one", "two"], ["three"]]
    assert "You said: three" in capsys.readouterr().out


def test_an_answer_cannot_steer_the_terminal(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.pieces = ["red\x1b]52;c;cm0K\x07", "\u202e\n\tgreen 👩\u200d🚒"]
    assert run(server.url, "?") == 0
    assert capsys.readouterr().out == "red]52;c;cm0K\n\tgreen 👩\u200d🚒\n"


@pytest.mark.parametrize(
    "change, words, expected",
    [
        ({"models": ["a", "b"]}, [], "the server has 2 models: choose one by --model: a, b"),
        ({"models": []}, [], "the server has 0 models"),
        ({}, ["--model", "other"], "HTTP 404: the model does not exist; GET /v1/models"),
        ({"key": KEY}, [], "HTTP 401: this pool needs a key; send the key of a client by --key-file FILE"),
        ({"whole": False}, [], "the stream ended too early"),
        ({"trouble": {"message": "the engine is dead"}}, [], "the engine is dead"),
        ({"trouble": "overloaded"}, [], "overloaded"),
    ],
)
def test_what_stands_in_the_way_is_reported(
    server: Server, capsys: pytest.CaptureFixture[str], change: dict[str, Any], words: list[str], expected: str
) -> None:
    vars(server).update(change)
    assert run(server.url, "?", *words) == exits.Exit.INVALID
    assert expected in capsys.readouterr().err


def test_a_key_comes_from_a_file(server: Server, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.key = KEY
    (tmp_path / "key").write_text(f"{KEY}\n")
    assert run(server.url, "?", "--key-file", str(tmp_path / "key")) == 0
    assert run(server.url, "?", "--key-file", str(tmp_path / "none")) == exits.Exit.INVALID
    assert KEY not in "".join(capsys.readouterr())


@pytest.mark.parametrize("url", ["http://192.0.2.1:9", "HTTP://chat.invalid/v1", "http://localhost.invalid"])
def test_a_key_is_not_sent_unencrypted_to_another_machine_unless_it_is_allowed(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(chat.KEY, KEY)
    monkeypatch.setattr(client.Server, "ask", lambda *_, **__: {"data": []})
    assert run(url, "?") == exits.Exit.INVALID
    shown = capsys.readouterr().err
    assert (chat.KEY in shown, "--plain-http" in shown, KEY in shown) == (True, True, False)
    for allowed in ([url, "--plain-http"], ["http://[::1]:9"], ["http://localhost:9"], ["https://chat.invalid"]):
        run(*allowed, "?")
        assert "the server has 0 models" in capsys.readouterr().err


def test_a_mistyped_option_is_refused() -> None:
    for words in (["job", "question", "more"], ["job", "--nonsense"], ["job", "-n", "ml", "question", "more"]):
        with pytest.raises(SystemExit):
            run(*words)


def test_nobody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("http://127.0.0.1:9", "?") == exits.Exit.INVALID
    assert "Connection refused" in capsys.readouterr().err


def test_a_job_is_reached_through_a_port_of_this_machine(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    served = {"endpoint": "http://support-desk.desk.svc:8000/v1", "model": "colours"}
    found = json.dumps({"metadata": {"namespace": "desk"}, "status": {"deployment": served}})
    (tmp_path / "kubectl").write_text(
        f"""#!/bin/sh
[ "$1" = get ] && echo '{found}' && exit
cut -d ' ' -f 5 /proc/$$/stat > {tmp_path}/group
echo "Forwarding from 127.0.0.1:{server.server_port} -> 8000"
exec sleep 60
"""
    )
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert run("support-desk", "Which colour?") == 0, "by no proxy"
    assert capsys.readouterr().out == "You said: Which colour?\n"
    assert int((tmp_path / "group").read_text()) != os.getpgrp(), "Ctrl-C, which stops an answer, would end it"


def test_without_kubectl_a_job_is_not_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run("support-desk", "?") == exits.Exit.INVALID
    assert "kubectl, which is not installed" in capsys.readouterr().err


def test_a_question_is_needed_for_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert run("http://127.0.0.1:9", "--output", "json") == exits.Exit.INVALID
    assert "needs a question" in capsys.readouterr().out
    assert chat.printable("\x00a\r\nb") == "a\nb"
