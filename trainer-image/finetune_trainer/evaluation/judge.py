"""The judge of evaluation.judge: a language model behind an OpenAI-compatible endpoint, which compares answers pairwise.

The author of the job chooses the endpoint; it is reached from the pod, as far as the network allows. What the
judge gets: questions, expected answers and answers of the test examples. Its key comes from the environment.
"""

import concurrent.futures
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from finetune_api import job, reasons, run
from finetune_trainer.data import dataset
from finetune_trainer.evaluation import answers, contenders, pairwise
from finetune_trainer.process import errors, http, log, secrets, signals

AT_ONCE = 8
"""Requests at the same time."""

TIMEOUT = 120.0
"""Seconds for one request."""

PATIENCE = 300.0
"""Seconds in which a request is repeated."""

LONGEST = 3600.0
"""Seconds for all of them; later verdicts are not counted."""

TOKENS = 1024
"""Of a verdict: a sentence and a letter, with room for models that reason first."""

SIZE = 1 << 20
"""Bytes of an answer that are read."""

NEVER = frozenset({301, 302, 303, 307, 308, 401, 403, 404, 405})
"""Status codes that every request would get: a wrong key, a wrong address, a wrong model."""


BASE_URL = "is this the base URL of an OpenAI-compatible API?"


class Refused(Exception):
    """This one request gets no verdict; another may."""


def of(spec: run.Run) -> "Judge | None":
    """The judge that the job names, if any; it has answered once, or has a problem. Raises Failure when a gate needs it and it
    does not answer."""
    rules = spec.evaluation.judge
    if rules is None:
        return None
    needed = any(gate.metric is job.Metric.JUDGE_WIN_RATE for gate in spec.evaluation.stated)
    made = Judge(rules, spec.training.seed, os.environ.get(run.JUDGE_KEY, "").strip(), needed=needed)
    made.check()
    return made


def cases(
    rules: job.Judge, examples: list[dataset.Example], asked: Mapping[job.Contender, answers.Answers], seed: int
) -> list[pairwise.Case]:
    """The chosen examples' answers by the tuned model, against each other contender's; all of one example together."""
    numbered = [(place, example) for place, example in enumerate(examples) if example.answer is not None]
    chosen = contenders.choose(numbered, rules.maximum_examples, seed)
    others = [which for which in asked if which is not job.Contender.TUNED]
    return [
        pairwise.Case(
            place,
            which,
            example.prompt,
            example.answer or "",
            asked[job.Contender.TUNED].answers[place].text or "",
            asked[which].answers[place].text or "",
            example.tools,
        )
        for place, example in chosen
        for which in others
    ]


CHECK = pairwise.Case(
    -1,
    job.Contender.BASE,
    (dataset.Message("user", "What is two and two?"),),
    "Four.",
    "It is four.",
    "It is the colour blue.",
)
"""Asked first, before a model is loaded: a judge that cannot answer this has a problem that waiting does not solve."""


class Judge:
    """The endpoint. `problem` says why it is no longer asked; a judge that a gate needs raises Failure instead."""

    def __init__(self, rules: job.Judge, seed: int, key: str, *, needed: bool = False) -> None:
        self.rules, self._seed, self._needed = rules, seed, needed
        self._server = http.Server(rules.endpoint, key, seconds=TIMEOUT, size=SIZE, outside=True)
        self._body: dict[str, Any] = {
            "model": rules.model,
            "temperature": 0,
            "seed": seed,
            "max_tokens": TOKENS,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "verdict", "strict": True, "schema": pairwise.SCHEMA},
            },
        }
        self._over = threading.Event()
        self._last_answer = 0.0
        """When the endpoint last answered, by the monotonic clock."""
        self.problem: str | None = None

    def check(self) -> None:
        """Asks one easy case; parameters that the endpoint does not know are dropped from all later requests."""
        messages = CHECK.messages(self.rules.criteria, swapped=False)
        try:
            while True:
                try:
                    content = self._patiently(messages)
                    break
                except Refused as refused:
                    if not self._simpler(str(refused)):
                        raise self._failure(str(refused)) from None
            if pairwise.read(content) is None:
                raise self._failure(
                    f"its answer is not a verdict such as {{'reason': '...', 'winner': 'A'}}: {secrets.redact(content[:200])!r}"
                )
        except errors.Failure as failure:
            self._failed(failure)
            return
        log.info("the judge answers", judge=self.rules.model, endpoint=self.rules.endpoint)

    def compare(
        self, cases: Sequence[pairwise.Case], done: Callable[[float], None] = lambda share: None
    ) -> pairwise.Judged:
        """Both orders of every case whose answers differ. `done` is called with the share that is done. Raises Failure,
        Stopped."""
        orders = [(n, swapped) for n, case in enumerate(cases) if not case.same for swapped in (False, True)]
        verdicts: dict[tuple[int, bool], pairwise.Verdict | None] = {}
        if self.problem is None and orders:
            self._over.clear()
            pool = concurrent.futures.ThreadPoolExecutor(AT_ONCE, "judge")
            try:
                waiting = {pool.submit(self._verdict, cases[n], swapped): (n, swapped) for n, swapped in orders}
                for future in concurrent.futures.as_completed(waiting, LONGEST):
                    signals.check()
                    verdicts[waiting[future]] = future.result()
                    done(0.99 * len(verdicts) / len(orders))
            except TimeoutError:
                self.problem = (
                    f"{len(orders) - len(verdicts)} of {len(orders)} verdicts did not come within {LONGEST:.0f} s"
                )
                log.warning("the judge takes too long", problem=self.problem)
            except errors.Failure as failure:
                self._failed(failure)
            finally:
                # Without waiting: pending requests end on their own, and their answers are ignored.
                self._over.set()
                pool.shutdown(wait=False, cancel_futures=True)
        done(1.0)
        unread = sum(verdict is None for verdict in verdicts.values())
        log.info("judged", cases=len(cases), verdicts=len(verdicts) - unread, unread=unread, of=len(orders))
        return pairwise.Judged(cases, verdicts, self.problem)

    def _verdict(self, case: pairwise.Case, swapped: bool) -> pairwise.Verdict | None:
        try:
            found = pairwise.read(self._patiently(case.messages(self.rules.criteria, swapped=swapped)))
        except Refused as refused:
            log.warning(
                "the judge refused a comparison, which is left out",
                example=case.place,
                over=case.over,
                problem=str(refused),
            )
            return None
        return found and dataclasses.replace(found, reason=secrets.redact(found.reason))

    def _patiently(self, messages: list[dict[str, str]]) -> str:
        """The judge's answer. Raises Refused; Failure when it refuses every request, or answers none."""
        begun = time.monotonic()
        try:
            found = self._server.ask(
                "/chat/completions", {**self._body, "messages": messages}, patience=PATIENCE, pause=self._pause
            )
            content = found["choices"][0]["message"]["content"]
        except http.Failed as failed:
            if failed.status in NEVER:
                raise self._failure(str(failed)) from None
            if failed.transient and self._last_answer < begun:
                raise self._failure(f"no answer in {PATIENCE:.0f} s; the last: {failed}") from None
            if not failed.transient:
                self._last_answer = time.monotonic()
            raise Refused(f"{failed}; {BASE_URL}" if failed.status == 200 else str(failed)) from None
        except (LookupError, TypeError):
            raise Refused(f"the answer is not a chat completion; {BASE_URL}") from None
        self._last_answer = time.monotonic()
        return content if isinstance(content, str) else ""

    def _pause(self, seconds: float) -> None:
        if self._over.wait(seconds):
            raise Refused("the evaluation no longer waits")

    def _simpler(self, refusal: str) -> bool:
        """Drops a parameter that the endpoint does not know; returns whether there was one. The temperature stays."""
        if "temperature" in refusal:
            return False
        if "max_completion_tokens" in refusal and "max_tokens" in self._body:
            self._body["max_completion_tokens"] = self._body.pop("max_tokens")
        elif "seed" in refusal and "seed" in self._body:
            del self._body["seed"]
        elif "response_format" in self._body:
            # Older servers refuse it with very different messages, or with none.
            del self._body["response_format"]
        else:
            return False
        log.info("the judge refuses a parameter; requests are sent without it", problem=refusal)
        return True

    def _failure(self, problem: str) -> errors.Failure:
        return errors.Failure(
            reasons.Reason.JUDGE_FAILED,
            f"evaluation.judge: {self.rules.model} at {self.rules.endpoint}: {problem}. Check endpoint, model "
            "and apiKeySecret, and whether the namespace's network policies allow it.",
        )

    def _failed(self, failure: errors.Failure) -> None:
        """Ends the evaluation where a gate needs the judge; else the evaluation continues without it."""
        if self._needed:
            raise failure
        self.problem = failure.message
        log.warning("the evaluation continues without the judge", problem=failure.message)
