"""The judge of evaluation.judge: a language model behind an OpenAI-compatible endpoint, which compares answers pairwise.

The author of the job chooses the endpoint; it is reached from the pod, as far as the network allows. What the
judge gets: questions, expected answers and answers of the test examples. Its key comes from the environment.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence

from finetune_api import job, reasons, run
from finetune_trainer.data import dataset
from finetune_trainer.evaluation import answers, contenders, endpoint, pairwise
from finetune_trainer.process import errors, log, secrets

LONGEST = 3600.0
"""Seconds for all verdicts; later ones are not counted."""

TOKENS = 1024
"""Of a verdict: a sentence and a letter, with room for models that reason first."""


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
        if asked[which].answers[place].text is not None
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
        self.rules, self._needed = rules, needed
        schema = {"name": "verdict", "strict": True, "schema": pairwise.SCHEMA}
        body = {
            "temperature": 0,
            "seed": seed,
            "max_tokens": TOKENS,
            "response_format": {"type": "json_schema", "json_schema": schema},
        }
        self._endpoint = endpoint.Endpoint(rules, key, body, self._failure, required=["temperature"])
        self.problem: str | None = None

    def check(self) -> None:
        """Asks one easy case."""
        try:
            content = self._endpoint.first(CHECK.messages(self.rules.criteria, swapped=False)).text
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
            calls = {(n, swapped): functools.partial(self._verdict, cases[n], swapped) for n, swapped in orders}
            try:
                self._endpoint.all(calls, LONGEST, verdicts, lambda share: done(0.99 * share))
            except TimeoutError:
                self.problem = (
                    f"{len(orders) - len(verdicts)} of {len(orders)} verdicts did not come within {LONGEST:.0f} s"
                )
                log.warning("the judge takes too long", problem=self.problem)
            except errors.Failure as failure:
                self._failed(failure)
        done(1.0)
        unread = sum(verdict is None for verdict in verdicts.values())
        log.info("judged", cases=len(cases), verdicts=len(verdicts) - unread, unread=unread, of=len(orders))
        return pairwise.Judged(cases, verdicts, self.problem)

    def _verdict(self, case: pairwise.Case, swapped: bool) -> pairwise.Verdict | None:
        try:
            found = pairwise.read(self._endpoint.ask(case.messages(self.rules.criteria, swapped=swapped)).text)
        except endpoint.Refused as refused:
            log.warning(
                "the judge refused a comparison, which is left out",
                example=case.place,
                over=case.over,
                problem=str(refused),
            )
            return None
        return found and dataclasses.replace(found, reason=secrets.redact(found.reason))

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
