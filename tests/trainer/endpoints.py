"""A double of a large model behind OpenAI's API, over real HTTP."""

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any


class Model:
    """The model: `answers` says what to the last question."""

    def __init__(self) -> None:
        self.answers: Callable[[str], dict[str, Any]] = lambda question: {"content": "good"}
        self.refuses: Callable[[dict[str, Any]], tuple[int, str] | None] = lambda body: None
        self.slow = 0.0
        self.key: str | None = None
        self.asked: list[dict[str, Any]] = []

    def reply(self, path: str, body: dict[str, Any], authorization: str | None) -> tuple[int, dict[str, Any]]:
        self.asked.append(body)
        if self.key and authorization != f"Bearer {self.key}":
            return 401, {"error": {"message": f"no such key: {authorization}"}}
        if path != "/v1/chat/completions":
            return 404, {"error": {"message": "no such path"}}
        if refusal := self.refuses(body):
            return refusal[0], {"error": {"message": refusal[1]}}
        time.sleep(self.slow)
        message = {"role": "assistant", **self.answers(body["messages"][-1]["content"])}
        choice = {"message": message, "finish_reason": message.pop("ended", "stop")}
        return 200, {"choices": [choice], "usage": {"prompt_tokens": 400, "completion_tokens": 20}}


@contextlib.contextmanager
def served() -> Iterator[tuple[Model, str]]:
    """The model, and its base URL."""
    model = Model()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            code, content = model.reply(self.path, body, self.headers.get("Authorization"))
            text = json.dumps(content).encode()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.send_response(code)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        def log_message(self, *_: Any) -> None: ...

    class Listener(http.server.ThreadingHTTPServer):
        request_queue_size = 64

    listener = Listener(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    try:
        yield model, f"http://127.0.0.1:{listener.server_address[1]}/v1"
    finally:
        listener.shutdown()
