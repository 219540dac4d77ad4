"""Clients of a host behind the controller, over TLS, with the authority of its certificate alone."""

import dataclasses
import http.client
import json
import pathlib
import socket
import ssl
import threading
import time
from typing import Any

from bench.routed import controller


@dataclasses.dataclass(frozen=True)
class Host:
    """A host name at the controller, and who signed its certificate."""

    name: str
    address: str
    authority: pathlib.Path

    def connect(self, seconds: float = 60) -> http.client.HTTPConnection:
        """A new connection. Raises OSError, also when the certificate is not the host's."""
        context = ssl.create_default_context(cafile=str(self.authority))
        plain = socket.create_connection((self.address, controller.PORT), timeout=seconds)
        connection = http.client.HTTPConnection(self.name, timeout=seconds)
        connection.sock = context.wrap_socket(plain, server_hostname=self.name)
        return connection

    def ask(self, path: str, key: str = "", body: Any = None) -> tuple[int, str]:
        """Status and text of an answer."""
        connection = self.connect()
        try:
            connection.request("POST" if body else "GET", path, body and json.dumps(body), headers(key))
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        finally:
            connection.close()

    def chat(self, key: str, model: str, item: int = 5) -> tuple[int, str]:
        return self.ask("/v1/chat/completions", key, question(model, item))

    def stream(self, key: str, model: str) -> list[float]:
        """Seconds from the request to each event of a streamed answer."""
        connection = self.connect()
        try:
            begun = time.monotonic()
            body = question(model, 5) | {"stream": True}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers(key))
            lines = iter(connection.getresponse().readline, b"")
            return [time.monotonic() - begun for line in lines if line.startswith(b"data:")]
        finally:
            connection.close()


def headers(key: str) -> dict[str, str]:
    return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})


def question(model: str, item: int) -> dict[str, Any]:
    """A customer thanks for an item."""
    messages = [
        {"role": "system", "content": "You sort mail."},
        {"role": "user", "content": f"Thank you for {item}, it is great!"},
    ]
    return {"model": model, "messages": messages, "max_tokens": 32, "temperature": 0}


class Clients:
    """Threads that ask all the time, while the block lasts."""

    def __init__(self, host: Host, key: str, model: str, count: int = 3, pause: float = 0.25) -> None:
        self._host, self._key, self._model, self._pause = host, key, model, pause
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(1000 * number,)) for number in range(count)]
        self.answers = 0
        self.failures: list[str] = []

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, item: int) -> None:
        while not self._over.wait(self._pause):
            item += 1
            try:
                status, text = self._host.chat(self._key, self._model, item)
            except (OSError, http.client.HTTPException) as error:
                status, text = 0, repr(error)
            if status == 200:
                self.answers += 1
            else:
                self.failures.append(f"{time.strftime('%H:%M:%S', time.gmtime())} {status} {text[:200]}")
