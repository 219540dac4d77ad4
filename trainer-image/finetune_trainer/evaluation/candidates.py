"""The models of evaluation.candidates: other models, at endpoints that the job names, which answer the same questions untrained.

Each gets the prompt that did best with the base model, as chat requests. Nothing is known of its probabilities, so it has the
metrics of its answers alone. A question that it does not answer is left out; `problem` says why a candidate is no longer asked.
"""

import dataclasses
import functools
import json
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from finetune_api import evaluation, job, reasons, results, run
from finetune_trainer.data import dataset, toolcalls
from finetune_trainer.evaluation import answers, contenders, endpoint, metrics, selection
from finetune_trainer.process import errors, log

LONGEST = 3600.0
"""Seconds for all questions to a candidate that a gate needs."""

REASONING = re.compile(r"\A\s*<think>.*?</think>\s*", re.DOTALL)
"""What a model thinks before its answer, where the endpoint does not keep it apart."""

CHECK = [{"role": "user", "content": "What is two and two? Answer with one word."}]
"""Asked first, before a model is loaded: a candidate that cannot answer this has a problem that waiting does not solve."""


def of(spec: run.Run, *, deciding: bool) -> list["Candidate"]:
    """The job's candidates; each has answered once, or has a problem. deciding: whether gates are decided now, so that one that a
    gate needs has to answer: Failure is raised if it does not."""
    made = []
    for rules in spec.contending:
        needed = deciding and any(
            gate.over in (rules.name, evaluation.BEST_ALTERNATIVE) for gate in spec.evaluation.stated
        )
        made.append(connected(spec, rules, needed=needed))
    return made


def connected(spec: run.Run, rules: job.Candidate, *, needed: bool) -> "Candidate":
    """The candidate, with its key; it has answered once, or has a problem. Raises Failure where it is needed."""
    key = os.environ.get(run.candidate_key(rules.name), "").strip()
    made = Candidate(rules, spec, key, needed=needed)
    made.check()
    return made


def best_prompt(required: Sequence[job.Gate], measured: dict[job.Contender, metrics.Columns]) -> job.Contender:
    """Whose prompt did best with the base model, the cheapest of equals; Prompt where nothing was measured."""
    there = {which: measured[which] for which in contenders.PROMPTS if measured.get(which)}
    return selection.of(required, there)[0] if there else job.Contender.PROMPT


class Candidate:
    """One of them."""

    def __init__(self, rules: job.Candidate, spec: run.Run, key: str, *, needed: bool = False) -> None:
        self.rules, self.needed = rules, needed
        self.which = job.Contender(rules.name)
        self.prompt: job.Contender | None = None
        """Whose prompt it gets, once that is known."""
        self.problem: str | None = None
        self._seed = spec.training.seed
        limit = spec.evaluation.generation.max_new_tokens
        body: dict[str, Any] = {"temperature": 0, "seed": self._seed, "max_tokens": limit}
        schema = spec.evaluation.output_schema
        compared = (
            rules.name != spec.training.teacher
        )  # an edit of the evaluation changes nothing of what a teacher writes
        if schema is not None and compared and job.Contender.STRUCTURED in spec.evaluation.baselines:
            wanted = {"name": "answer", "schema": schema}
            body |= {"response_format": {"type": "json_schema", "json_schema": wanted}}
        self._endpoint = endpoint.Endpoint(rules, key, body, self._failure)

    def check(self) -> None:
        try:
            self._endpoint.first(CHECK)
        except errors.Failure as failure:
            self._failed(failure)
            return
        log.info("a candidate answers", candidate=self.rules.name, model=self.rules.model, endpoint=self.rules.endpoint)

    def ask(
        self,
        script: contenders.Script,
        examples: Sequence[dataset.Example],
        seconds: float,
        done: Callable[[float], None] = lambda share: None,
    ) -> answers.Answers:
        """Its answers, in an order drawn by the seed, as far as they come within so many seconds. Raises Failure, Stopped."""
        begun = time.monotonic()
        script = dataclasses.replace(
            script, inline=False
        )  # an API has system turns, whatever the base model's template has
        places = [place for place, one in enumerate(examples) if one.answer is not None]
        random.Random(f"{self._seed}:{self.which}").shuffle(places)  # noqa: S311
        calls = {place: functools.partial(self._answer, script, examples[place]) for place in places}
        given: dict[int, endpoint.Reply | None] = {}
        if self.problem is None and calls:
            try:
                self._endpoint.all(calls, LONGEST if self.needed else seconds, given, lambda share: done(0.99 * share))
            except TimeoutError:
                took = time.monotonic() - begun
                self.problem = f"{len(calls) - len(given)} of {len(calls)} answers did not come within {took:.0f} s"
                log.warning("a candidate takes too long", candidate=self.which, problem=self.problem)
            except errors.Failure as failure:
                self._failed(failure)
        done(1.0)
        replies = {place: reply for place, reply in given.items() if reply is not None}
        if len(replies) < len(given) and self.problem is None:
            self.problem = f"{len(given) - len(replies)} of {len(calls)} questions were refused"
        log.info("answered", contender=self.which, answers=len(replies), of=len(calls))
        return answers.Answers(
            [score(one, replies[place]) if place in replies else UNANSWERED for place, one in enumerate(examples)],
            [],
            [],
            seconds=time.monotonic() - begun,
            usage=usage([one.tokens for one in replies.values() if one.tokens]),
        )

    def texts(self, script: contenders.Script, examples: Sequence[dataset.Example]) -> list[str]:
        """Its answers as a teacher, empty where it refused, or ended by the limit of tokens. Raises Failure, Stopped."""
        script = dataclasses.replace(script, inline=False)
        calls = {place: functools.partial(self._taught, script, one) for place, one in enumerate(examples)}
        given: dict[int, str] = {}
        try:
            self._endpoint.all(calls, LONGEST, given)
        except TimeoutError:
            raise self._failure(
                f"{len(calls) - len(given)} of {len(calls)} answers took more than {LONGEST:.0f} s"
            ) from None
        return [given[place] for place in calls]

    def _taught(self, script: contenders.Script, example: dataset.Example) -> str:
        try:
            reply = self._endpoint.ask([turn.wire() for turn in script.ask(example, job.Contender.PROMPT).prompt])
        except endpoint.Refused as refused:
            if refused.passing:
                raise self._failure(str(refused)) from None
            log.warning(
                "the teacher refused a question, which is left out", example=example.source, problem=str(refused)
            )
            return ""
        return REASONING.sub("", reply.text) if reply.finished else ""

    def _answer(self, script: contenders.Script, example: dataset.Example) -> endpoint.Reply | None:
        asked = script.ask(example, self.prompt or job.Contender.PROMPT)
        tools: dict[str, Any] = {} if example.tools is None else {"tools": json.loads(example.tools)}
        try:
            return self._endpoint.ask([turn.wire() for turn in asked.prompt], **tools)
        except endpoint.Refused as refused:
            log.warning(
                "a candidate refused a question, which is left out",
                candidate=self.which,
                example=example.source,
                problem=str(refused),
            )
            return None

    def described(self, found: answers.Answers | None) -> results.Candidate:
        """For results.json."""
        return results.Candidate(
            name=self.rules.name,
            model=self.rules.model,
            endpoint=self.rules.endpoint,
            prompt=self.prompt,
            answered=sum(one.expected is not None for one in found.answers) if found else 0,
            problem=self.problem,
            structured=self._endpoint.sends("response_format"),
        )

    def _failure(self, problem: str) -> errors.Failure:
        return errors.Failure(
            reasons.Reason.CANDIDATE_FAILED,
            f"evaluation.candidates: {self.rules.name} ({self.rules.model} at {self.rules.endpoint}): {problem}. Check endpoint, "
            "model and apiKeySecret, and whether the namespace's network policies allow it.",
        )

    def _failed(self, failure: errors.Failure) -> None:
        """Ends the evaluation where a gate needs the candidate; else the evaluation continues without it."""
        if self.needed:
            raise failure
        self.problem = failure.message
        log.warning("the evaluation continues without a candidate", candidate=self.which, problem=failure.message)


UNANSWERED = metrics.Answer(None, None, 0.0, 0)
"""A question without an answer; no metric counts it."""


def score(example: dataset.Example, reply: endpoint.Reply) -> metrics.Answer:
    """An answer as those of the other contenders are scored."""
    text = REASONING.sub("", reply.text)
    if example.tools is None:
        return metrics.Answer(text, example.answer, 0.0, 0, reply.finished, group=example.group)
    try:
        made = toolcalls.Reply(text, toolcalls.calls(reply.calls, "tool_calls"))
    except toolcalls.Unusable:
        made = toolcalls.Reply(text, broken=True)
    called = toolcalls.score(made, example.messages[-1].calls, example.tools)
    return metrics.Answer(
        toolcalls.written(text, made.calls), example.answer, 0.0, 0, reply.finished, called, example.group
    )


def usage(counted: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Mean tokens of prompts and of answers; None where the endpoint counts none."""
    if not counted:
        return None
    prompts, given = zip(*counted, strict=True)
    return sum(prompts) / len(counted), sum(given) / len(counted)
