"""The one seam to HTTP: JSON to a server and back, with one retry policy. Also part of the slim image.

The job or the operator names the server, so: no credentials from the environment, a proxy only for servers outside of the
cluster, no redirect, answers of limited size and duration. Errors quote only an API's own message, without secrets.
"""

import datetime
import email.utils
import itertools
import json
import math
import random
import ssl
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import httpx

from finetune_trainer.process import errors, secrets

CONNECT_SECONDS = 10.0

TRANSIENT = frozenset({408, 409, 425, 429})
"""Statuses worth a retry, besides all from 500."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds between retries; doubled each time, less a random part of up to half so that clients do not retry together."""


class Failed(Exception):
    """No usable answer. `status` is the answer's HTTP status, None without an answer; `transient`: a retry may help."""

    def __init__(self, status: int | None, message: str, *, transient: bool = False, after: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.transient, self.after = status, transient, after


class Server:
    """A server below a base URL. `seconds` and `size` (bytes) bound each answer. May be used from several threads. `outside`: it
    may be outside of the cluster, so that the environment's proxy is used."""

    def __init__(self, url: str, key: str = "", *, seconds: float, size: int, outside: bool = False) -> None:
        self._url, self._seconds, self._size = url.rstrip("/"), seconds, size
        self._valid_key = key.isascii() and key.isprintable()
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {key}"} if key and self._valid_key else {}
        # The system's own certificate authorities, which certifi's list, httpx's default, does not have.
        self._client = httpx.Client(
            headers=headers,
            trust_env=False,
            verify=ssl.create_default_context(),
            proxy=proxy(url) if outside else None,
        )

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        patience: float = 0.0,
        seconds: float | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> Any:
        """The JSON that answers a POST of `body`, or a GET. Transient failures are retried for `patience` seconds, with a
        `pause` between tries, which may raise to end them.

        Raises:
            Failed: the last failure.
        """
        until, wait = time.monotonic() + patience, FIRST_PAUSE
        while True:
            try:
                return self._once(path, body, seconds or self._seconds)
            except Failed as failed:
                length = max(wait * random.uniform(0.5, 1.0), failed.after)  # noqa: S311
                if not failed.transient or time.monotonic() + length > until:
                    raise
                pause(length)
                wait = min(2 * wait, LONGEST_PAUSE)

    def put(self, path: str, pieces: Iterable[bytes], size: int, *, seconds: float) -> Any:
        """The JSON that answers a PUT of `size` bytes, which are sent piece by piece; tried once.

        Raises:
            Failed
        """
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        return self._send("PUT", path, pieces, seconds, headers)

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The documents of the stream of events that answers a POST, as they come, until the line `[DONE]`; tried once.

        Raises:
            Failed: an answer that is no stream, or a stream without its end
        """
        if not self._valid_key:
            raise Failed(401, "the key has characters that a header cannot contain")
        timeout = httpx.Timeout(self._seconds, connect=min(CONNECT_SECONDS, self._seconds))
        try:
            with self._client.stream(
                "POST", self._url + path, content=json.dumps(body).encode(), timeout=timeout
            ) as answer:
                if answer.headers.get("Content-Type", "").startswith("text/event-stream") and answer.status_code < 300:
                    yield from _documents(answer.iter_raw(), self._size)
                    return
                read = b"".join(itertools.islice(answer.iter_raw(1 << 16), -(-self._size >> 16)))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Failed(None, errors.describe(error), transient=isinstance(error, httpx.TransportError)) from None
        _content(answer, read)
        raise Failed(answer.status_code, "the answer is not a stream of events")

    def _once(self, path: str, body: Mapping[str, Any] | None, seconds: float) -> Any:
        # Not httpx's own JSON, which refuses lone surrogates; users' texts may contain them.
        sent = None if body is None else json.dumps(body).encode()
        return self._send("GET" if sent is None else "POST", path, sent, seconds, {})

    def _send(
        self, method: str, path: str, sent: bytes | Iterable[bytes] | None, seconds: float, headers: dict[str, str]
    ) -> Any:
        if not self._valid_key:
            raise Failed(401, "the key in its Secret has characters that a header cannot contain")
        timeout = httpx.Timeout(seconds, connect=min(CONNECT_SECONDS, seconds))
        until = time.monotonic() + seconds
        try:
            with self._client.stream(
                method, self._url + path, content=sent, timeout=timeout, headers=headers
            ) as answer:
                read = bytearray()
                for piece in answer.iter_raw():
                    read += piece
                    if len(read) > self._size:
                        raise Failed(answer.status_code, f"an answer of more than {self._size} bytes")
                    if time.monotonic() > until:
                        raise Failed(None, f"no complete answer in {seconds:.0f} s", transient=True)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            transient = isinstance(error, httpx.TransportError)
            raise Failed(None, errors.describe(error), transient=transient) from None
        return _content(answer, bytes(read))


def _documents(pieces: Iterable[bytes], size: int) -> Iterator[dict[str, Any]]:
    """The JSON objects of the `data:` lines of at most `size` bytes. Raises Failed."""
    rest, total = b"", 0
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        total += len(piece)
        if total > size:
            raise Failed(None, f"an answer of more than {size} bytes")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if not line.startswith(b"data:"):
                continue
            if data == b"[DONE]":
                return
            try:
                document = json.loads(data)
            except (ValueError, RecursionError):
                document = None
            if not isinstance(document, dict):
                raise Failed(None, "the stream has a line that is not a JSON object")
            yield document
    raise Failed(None, "the stream ended too early; the server may have been restarted: ask again", transient=True)


def proxy(url: str) -> str | None:
    """The proxy for a URL by HTTP_PROXY, HTTPS_PROXY and NO_PROXY, which are names of hosts, domains and addresses."""
    parts = urllib.parse.urlsplit(url)
    if not parts.hostname or urllib.request.proxy_bypass(parts.hostname):
        return None
    return urllib.request.getproxies().get(parts.scheme)


def _content(answer: httpx.Response, read: bytes) -> Any:
    """The JSON of a good answer. Raises Failed for any other."""
    status = answer.status_code
    try:
        content = json.loads(read)
    except (ValueError, RecursionError):
        content = None
    if status >= 300:
        transient = status >= 500 or status in TRANSIENT
        message = f"HTTP {status}{_api_message(status, content)}"
        raise Failed(status, message, transient=transient, after=_retry_after(answer.headers.get("Retry-After", "")))
    if content is None:
        raise Failed(status, "the answer is not JSON")
    return content


def _api_message(status: int, content: Any) -> str:
    """The API's own message in a refusal, shortened; empty where the answer is something else, as a web page."""
    if status < 400:
        return ": it redirects, which is not followed"
    if not isinstance(content, dict):
        return ""
    message = content.get("error", content.get("detail", content.get("message")))
    message = message.get("message") if isinstance(message, dict) else message
    return f": {secrets.redact(' '.join(message.split()))[:400]}" if isinstance(message, str) else ""


def _retry_after(header: str) -> float:
    """Seconds; the header has seconds or a date. 0 where it has neither."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (email.utils.parsedate_to_datetime(header) - datetime.datetime.now(datetime.UTC)).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    return 0.0 if math.isnan(seconds) else max(0.0, seconds)
