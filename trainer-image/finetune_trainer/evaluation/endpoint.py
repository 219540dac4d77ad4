"""Chat requests to a language model behind an OpenAI-compatible endpoint that the job names: the judge, candidates, and the
prompt optimizer.

The author of the job chooses the endpoint; it is reached from the pod, as far as the network allows. Its key comes from the
environment. What they have in common is here: retries, several requests at a time, and parameters that an endpoint does not know.
"""

import concurrent.futures
import dataclasses
import threading
import time
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any, TypeVar

from finetune_api import job
from finetune_trainer.process import errors, http, log, signals

AT_ONCE = 8
"""Requests at the same time."""

TIMEOUT = 120.0
"""Seconds for one request."""

PATIENCE = 300.0
"""Seconds in which a request is repeated."""

SIZE = 1 << 20
"""Bytes of an answer that are read."""

NEVER = frozenset({301, 302, 303, 307, 308, 401, 403, 404, 405})
"""Status codes that every request would get: a wrong key, a wrong address, a wrong model."""

BASE_URL = "is this the base URL of an OpenAI-compatible API?"

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class Refused(Exception):
    """This one request gets no answer; another may. passing: it may get one later."""

    def __init__(self, problem: str, *, passing: bool = False) -> None:
        super().__init__(problem)
        self.passing = passing


@dataclasses.dataclass(frozen=True)
class Reply:
    """A chat completion."""

    text: str
    calls: Any
    """The field tool_calls, unchecked."""
    finished: bool
    """Whether the model ended it, not the limit of tokens."""
    tokens: tuple[float, float] | None
    """Of prompt and answer, as the endpoint counts them; None where it does not say."""


class Endpoint:
    """The model, asked with `body` besides the messages. `failure` turns a problem that every request has into the error of the
    caller. required: parameters without which it must not be asked."""

    def __init__(
        self,
        rules: job.Judge | job.Candidate | job.Optimizer,
        key: str,
        body: Mapping[str, Any],
        failure: Callable[[str], errors.Failure],
        required: Collection[str] = (),
    ) -> None:
        self.failure = failure
        self._rules, self._required = rules, required
        self._server = http.Server(rules.endpoint, key, seconds=TIMEOUT, size=SIZE, outside=True)
        self._body: dict[str, Any] = {"model": rules.model, **body}
        self._over = threading.Event()
        self._last_answer = 0.0
        """When the endpoint last answered, by the monotonic clock."""

    def sends(self, parameter: str) -> bool:
        """Whether requests have this parameter; `first` drops what the endpoint does not know."""
        return parameter in self._body

    def first(self, messages: list[dict[str, Any]]) -> Reply:
        """The first answer; parameters that the endpoint does not know are dropped from all later requests. Raises Failure."""
        while True:
            try:
                return self.ask(messages)
            except Refused as refused:
                if not self._simpler(str(refused)):
                    raise self.failure(str(refused)) from None

    def ask(self, messages: list[dict[str, Any]], **more: Any) -> Reply:
        """Raises Refused; Failure when the endpoint refuses every request, or answers none."""
        begun = time.monotonic()
        try:
            found = self._server.ask(
                "/chat/completions", {**self._body, "messages": messages, **more}, patience=PATIENCE, pause=self._pause
            )
            reply = _reply(found)
        except http.Failed as failed:
            if failed.status in NEVER:
                raise self.failure(str(failed)) from None
            if failed.transient and self._last_answer < begun:
                raise self.failure(f"no answer in {PATIENCE:.0f} s; the last: {failed}") from None
            if not failed.transient:
                self._last_answer = time.monotonic()
            problem = f"{failed}; {BASE_URL}" if failed.status == 200 else str(failed)
            raise Refused(problem, passing=failed.transient) from None
        except (LookupError, TypeError, AttributeError):
            raise Refused(f"the answer is not a chat completion; {BASE_URL}") from None
        self._last_answer = time.monotonic()
        return reply

    def all(
        self,
        calls: Mapping[Key, Callable[[], Result]],
        seconds: float,
        into: dict[Key, Result],
        done: Callable[[float], None] = lambda share: None,
    ) -> None:
        """Makes these calls in their order, several at a time; what each returns is put into `into`. `done` is called with the
        share that is done. Raises TimeoutError after so many seconds, Failure, Stopped."""
        self._over.clear()
        pool = concurrent.futures.ThreadPoolExecutor(AT_ONCE, "endpoint")
        try:
            waiting = {pool.submit(call): key for key, call in calls.items()}
            for future in concurrent.futures.as_completed(waiting, seconds):
                signals.check()
                into[waiting[future]] = future.result()
                done(len(into) / len(calls))
        finally:
            # Without waiting: pending requests end on their own, and their answers are ignored.
            self._over.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _pause(self, seconds: float) -> None:
        if self._over.wait(seconds):
            raise Refused("the evaluation no longer waits")

    def _simpler(self, refusal: str) -> bool:
        """Drops a parameter that the endpoint does not know; returns whether there was one."""
        if any(name in refusal for name in self._required):
            return False
        if "max_completion_tokens" in refusal and "max_tokens" in self._body:
            self._body["max_completion_tokens"] = self._body.pop("max_tokens")
        elif named := next((name for name in ("seed", "temperature") if name in refusal and name in self._body), None):
            del self._body[named]
        elif "response_format" in self._body:
            # Older servers refuse it with very different messages, or with none.
            del self._body["response_format"]
        else:
            return False
        log.info(
            "an endpoint refuses a parameter; requests are sent without it", model=self._rules.model, problem=refusal
        )
        return True


def _reply(found: Any) -> Reply:
    choice = found["choices"][0]
    message, usage = choice["message"], found.get("usage")
    content = message["content"] if "tool_calls" not in message else message.get("content")
    counted = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else []
    numbers = [float(one) for one in counted if isinstance(one, int | float)]
    return Reply(
        content if isinstance(content, str) else "",
        message.get("tool_calls"),
        choice.get("finish_reason") != "length",
        (numbers[0], numbers[1]) if len(numbers) == 2 else None,
    )
