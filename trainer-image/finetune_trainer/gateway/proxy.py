"""One request of a client, or of a stage that verifies: checked, sent to the engine under the adapter's name, and its answer back
under the name that was sent.

What reaches the engine is a document that this module has written: no header, no path and no field of the client's choice names a
model, a template or a file.
"""

import asyncio
import contextlib
import dataclasses
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol

import aiohttp
from aiohttp import web

from finetune_trainer.gateway import answers, loading
from finetune_trainer.process import errors, log

PATHS = ("chat/completions", "completions")
"""What may be posted, below /v1/. Not vLLM's other paths: some change the engine, and /v1/responses has identifiers by which one
tenant could read what another one was answered."""

PATTERN = "|".join(map(re.escape, PATHS))

BODY_BYTES = 16 << 20
"""Most bytes of a request: some four million tokens."""

ROOM, BODY_MEMORY, REQUEST_MEMORY = 144 << 20, 120 << 20, 64 << 10
"""Bytes in memory (`in_memory`) of all requests that are being answered, and as many of all answers that are not streams: with
the process itself and one document that is being written, less than the container's limit of 512 MiB. Of one request, and the
least that one takes, with the buffers of its connection."""

Take = Callable[[int], None]
"""Takes so many bytes of a room, or gives them back. Raises Refusal."""

LOAD_SECONDS = 20.0
"""For a request whose adapter is not loaded yet."""

SILENT_SECONDS = 1800.0
"""Between two pieces of an answer; before the first, a long answer that is not streamed takes all of its time."""

BODY_SECONDS, UNREAD_SECONDS = 60.0, 300.0
"""For a request to come whole, and for a client to take what is written to it: until then, both are in memory that all share."""


class Refusal(Exception):
    """An answer of the gateway's own, as OpenAI's API has errors."""

    def __init__(
        self, status: int, message: str, code: str, *, param: str | None = None, after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.after = status, after
        kind = "server_error" if status >= 500 else "authentication_error" if status == 401 else "invalid_request_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> web.Response:
        headers = {"Retry-After": str(self.after)} if self.after is not None else {}
        headers |= {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        return web.json_response(self.body, status=self.status, headers=headers)


@dataclasses.dataclass(frozen=True)
class Target:
    """What answers. engine: its name there; name: the one that the client sent; template: the adapter's own."""

    engine: str
    name: str
    is_adapter: bool
    template: str | None = None
    schema: str | None = None


class Ended(Protocol):
    """Is called when a request is over."""

    def __call__(
        self, reading: answers.Reading, result: answers.Result, seconds: float, first: float | None
    ) -> None: ...


class Room:
    """Memory that is shared, in bytes."""

    def __init__(self, most: int) -> None:
        self._left = most

    @contextlib.contextmanager
    def share(self) -> Iterator[Take]:
        """What is taken until the end of the block is given back there."""
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            if size > self._left:
                message = "this pod answers as many requests as its memory allows; send the request again"
                raise Refusal(503, message, "busy", after=5)
            self._left -= size
            taken += size

        try:
            yield take
        finally:
            self._left += taken


def in_memory(body: bytes) -> int:
    """About what a JSON document takes: as bytes that came, as bytes that are sent on, and parsed in between, with an object for
    each value, and four bytes for each character of a text if one of them needs them."""
    plain = body.isascii() and b"\\u" not in body
    return (3 if plain else 6) * len(body) + 64 * sum(body.count(sign) for sign in (b"[", b"{", b",", b":"))


async def received(request: web.Request, take: Take) -> dict[str, Any]:
    """A request's document; each piece is taken when it comes, so that one who sends slowly holds nothing up. Raises Refusal."""
    take(REQUEST_MEMORY)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.content.iter_any():
                take(len(piece))
                body += piece
                if len(body) > BODY_BYTES:
                    raise too_large()
    except TimeoutError:
        raise Refusal(408, f"the request did not come whole within {BODY_SECONDS:.0f} s", "timeout") from None
    return document(request, bytes(body), take)


def document(request: web.Request, body: bytes, take: Take = lambda _: None) -> dict[str, Any]:
    """The request's JSON, with a name in `model`. Raises Refusal."""
    if (size := in_memory(body)) > BODY_MEMORY:
        raise Refusal(413, "the request has too many values", "request_too_large")
    take(size - len(body))
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise no_json(error) from None
    if not isinstance(found, dict) or not isinstance(found.get("model"), str) or not found["model"]:
        raise Refusal(400, "name the model in `model`; GET /v1/models lists them", "missing_model", param="model")
    given = found.get("chat_template_kwargs")
    if found.get("chat_template") is not None or (isinstance(given, dict) and "chat_template" in given):
        message = (
            "`chat_template` is not accepted: every model has the template that it was trained with. Leave it out."
        )
        raise Refusal(400, message, "unsupported_parameter", param="chat_template")
    _no_prompt_logprobs(found, request.match_info["path"])
    return found


def _no_prompt_logprobs(sent: dict[str, Any], path: str) -> None:
    """Their memory grows with prompt and vocabulary, and vLLM's CPU build can crash by them, for all who share the engine. vLLM
    takes `echo` with log-probabilities as such a request as well, and in chats `echo` alone. Raises Refusal."""
    wanted = "prompt_logprobs" if sent.get("prompt_logprobs") is not None else ""
    if sent.get("echo") not in (None, False) and (path != "completions" or sent.get("logprobs") is not None):
        wanted = wanted or "echo"
    if wanted:
        message = f"`{wanted}` is not accepted: this server has no log-probabilities of prompts. Leave it out."
        raise Refusal(400, message, "unsupported_parameter", param=wanted)


def too_large() -> Refusal:
    return Refusal(413, f"the request has more than {BODY_BYTES} bytes", "request_too_large")


def no_json(error: Exception) -> Refusal:
    return Refusal(400, f"the request is not JSON: {error}", "invalid_json")


def unknown(name: str) -> Refusal:
    return Refusal(
        404,
        f"the model `{name[:200]}` does not exist, or this key may not use it; GET /v1/models lists the models of the key",
        "model_not_found",
        param="model",
    )


class Proxy:
    """The engine, seen by requests. `running`: those that are being answered."""

    def __init__(self, url: str, session: aiohttp.ClientSession, adapters: loading.Loading) -> None:
        self._url, self._session, self._adapters = url, session, adapters
        self._room = Room(ROOM)
        self.running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self, seconds: float) -> None:
        """Waits until no request is being answered, at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    async def answer(
        self, request: web.Request, sent: dict[str, Any], target: Target, ended: Ended
    ) -> web.StreamResponse:
        """Sends a request to the engine and its answer to the client. Raises Refusal; a client that leaves, or does not read,
        cancels it, and the engine's work with it."""
        self.running += 1
        self._idle.clear()
        self._adapters.running[target.engine] += 1
        once = Once(ended)
        try:
            await self._available(target, once)
            return await self._answer(request, sent, target, once)
        except asyncio.CancelledError:
            once(answers.Reading(), "Abandoned")
            raise
        finally:
            self.running -= 1
            if not self.running:
                self._idle.set()
            self._adapters.running[target.engine] -= 1

    async def _available(self, target: Target, once: "Once") -> None:
        try:
            if target.is_adapter:
                await self._adapters.ready(target.engine, LOAD_SECONDS)
            elif not self._adapters.engine_ready:
                raise loading.NotReady("the engine of this pod is starting", 5)
        except loading.NotReady as problem:
            if problem.refused:  # else it is the pod that fails, and no revision
                once(answers.Reading(), "Failed")
            raise Refusal(503, f"{problem}; send the request again", "not_ready", after=problem.after) from None

    async def _answer(
        self, request: web.Request, sent: dict[str, Any], target: Target, once: "Once"
    ) -> web.StreamResponse:
        body, usage = prepared(sent, target, request.match_info["path"])
        for attempt in (1, 2):
            reading = answers.Reading(keep=target.schema is not None)
            try:
                async with self._post(request.match_info["path"], body) as upstream:
                    if upstream.status == 404 and target.is_adapter and attempt == 1:
                        # The engine was restarted between two checks: it has the adapter again in a moment.
                        self._adapters.adapter_lost(target.engine)
                        await self._available(target, once)
                        continue
                    if upstream.status >= 400:
                        return await self._error(upstream, target, reading, once)
                    if upstream.content_type == "text/event-stream":
                        return await self._stream(
                            request, upstream, answers.Rewriter(target.name, reading, usage=usage), once
                        )
                    return await self._whole(request, upstream, target, reading, once)
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
                if not isinstance(error, TimeoutError):
                    self._adapters.engine_lost()
                once(reading, "Failed")
                log.warning("the engine did not answer", problem=errors.describe(error))
                raise Refusal(
                    503, "the engine of this pod was interrupted; send the request again", "engine_lost", after=5
                ) from None
            except TimeoutError:
                once(reading, "Failed")
                message = f"no answer within {SILENT_SECONDS:.0f} s; request fewer tokens, or a stream"
                raise Refusal(504, message, "timeout") from None
        raise AssertionError("the second attempt returns or raises")

    def _post(self, path: str, body: bytes) -> Any:
        return self._session.post(
            f"{self._url}/v1/{path}",
            data=body,
            headers={"Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=SILENT_SECONDS),
            allow_redirects=False,
        )

    async def _error(
        self, upstream: aiohttp.ClientResponse, target: Target, reading: answers.Reading, once: "Once"
    ) -> web.Response:
        """The engine's own words, with the client's name of the model."""
        body = await upstream.content.read(1 << 20)
        # the name is not the client's, so that it is no mistake of the client where the engine does not know it
        once(reading, "Failed" if upstream.status >= 500 or upstream.status == 404 else "Refused")
        text = (
            body.replace(target.engine.encode(), target.name.encode("utf-8", "replace")) if target.is_adapter else body
        )
        after = {"Retry-After": "5"} if upstream.status == 503 else {}
        return web.Response(body=text, status=upstream.status, content_type=upstream.content_type, headers=after)

    async def _whole(
        self,
        request: web.Request,
        upstream: aiohttp.ClientResponse,
        target: Target,
        reading: answers.Reading,
        once: "Once",
    ) -> web.Response:
        with self._room.share() as take:
            try:
                text = await self._text(upstream, target, reading, take)
            except Refusal:
                once(reading, "Failed")
                raise
            once(reading, "Answered")
            response = web.Response(body=text, content_type="application/json")
            async with _to_client(request):
                await response.prepare(request)
                await response.write_eof()  # until a slow client has it
            return response

    async def _text(
        self, upstream: aiohttp.ClientResponse, target: Target, reading: answers.Reading, take: Take
    ) -> bytes:
        """Raises Refusal."""
        body, size = bytearray(), 0
        async for piece in upstream.content.iter_any():
            size += in_memory(piece)
            if size > ROOM:
                raise Refusal(502, "the engine's answer is too large; request a stream", "answer_too_large")
            take(in_memory(piece))
            body += piece
        try:
            text = answers.whole(bytes(body), target.name, reading)
        except (ValueError, RecursionError, AttributeError, TypeError):
            raise Refusal(502, "the engine's answer is not what OpenAI's API has; is it vLLM?", "bad_answer") from None
        take(len(text) - size)
        return text

    async def _stream(
        self, request: web.Request, upstream: aiohttp.ClientResponse, rewriter: answers.Rewriter, once: "Once"
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
            }
        )
        async with _to_client(request):
            await response.prepare(request)
        problem = ""
        try:
            async for piece in upstream.content.iter_any():
                if ready := rewriter.feed(piece):
                    once.first()
                    if rewriter.done:  # a client may leave without waiting for the stream's end
                        once(rewriter.reading, "Failed" if rewriter.reading.failed else "Answered")
                    async with _to_client(request):
                        await response.write(ready)
        except aiohttp.ClientError as error:
            self._adapters.engine_lost()
            problem = f"the engine was interrupted: {errors.describe(error)}"
        except (TimeoutError, ValueError, AttributeError, TypeError) as error:
            problem = f"the engine's stream cannot be read: {errors.describe(error)}"
        if not rewriter.done:
            once(rewriter.reading, "Failed")
            message = "the answer is not complete: the engine of this pod was interrupted; send the request again"
            log.warning("a stream ended early", problem=problem or "it has no last line")
            error_ = {"error": {"message": message, "type": "server_error", "param": None, "code": "engine_lost"}}
            async with _to_client(request):
                await response.write(b"data: " + answers.dump(error_) + b"\n\n")
        async with _to_client(request):
            await response.write_eof()
        return response


@contextlib.asynccontextmanager
async def _to_client(request: web.Request) -> AsyncIterator[None]:
    """A client that has left, or does not read, ends its request, as where aiohttp notices it; it is no engine that is lost."""
    try:
        async with asyncio.timeout(UNREAD_SECONDS):
            yield
    except (ConnectionError, TimeoutError):
        if request.transport is not None:
            request.transport.abort()
        raise asyncio.CancelledError from None


class Once:
    """Tells the counters of one request, once, with its times."""

    def __init__(self, ended: Ended) -> None:
        self._ended, self._clock = ended, asyncio.get_running_loop().time
        self._begun = self._clock()
        self._first: float | None = None
        self._done = False

    def first(self) -> None:
        self._first = self._first if self._first is not None else self._clock() - self._begun

    def __call__(self, reading: answers.Reading, result: answers.Result) -> None:
        if not self._done:
            self._done = True
            self._ended(reading, result, self._clock() - self._begun, self._first)


def prepared(sent: dict[str, Any], target: Target, path: str) -> tuple[bytes, bool]:
    """The document for the engine, and whether the client has requested the numbers of tokens at the end of a stream."""
    body = {**sent, "model": target.engine}
    if target.template is not None and path == "chat/completions":
        body["chat_template"] = target.template
    options = body.get("stream_options")
    options = options if isinstance(options, dict) else {}
    usage = bool(options.get("include_usage"))
    if body.get("stream"):
        body["stream_options"] = {**options, "include_usage": True}
    return answers.dump(body), usage


Handler = Callable[[web.Request], Any]


def refusals(count: Callable[[int], None]) -> Any:
    """A middleware: every error of our own in OpenAI's form, and counted by its status."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response: web.StreamResponse = await handler(request)
        except Exception as error:
            refusal = error if isinstance(error, Refusal) else _refusal(request, error)
            count(refusal.status)
            return refusal.response()
        return response

    return middleware


def _refusal(request: web.Request, error: Exception) -> Refusal:
    """For an error of aiohttp's; anything else is a defect, which is logged, and whose details are not the clients'."""
    if isinstance(error, web.HTTPException):
        message = f"{request.method} {request.path[:200]} is not part of this API"
        return Refusal(error.status, message if error.status in (404, 405) else error.reason, "not_found")
    log.exception("a request failed by a defect")
    return Refusal(500, "an internal error of the gateway; its log has the details", "internal_error")
