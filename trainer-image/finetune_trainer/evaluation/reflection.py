"""The prompt optimizer of intent.prompt.optimizer: a language model rewrites the best written instruction, by what the base model
got wrong. The search is GEPA's (Agrawal et al. 2025), by the package gepa.

It reads questions, expected answers and the base model's answers of training examples; whether a new instruction is better is
decided on validation examples, which it never sees. Whatever happens at its endpoint ends the search with a sentence, and the
instructions found so far stay.
"""

import dataclasses
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from finetune_api import job, reasons, results, run
from finetune_trainer.data import dataset
from finetune_trainer.evaluation import answers, candidates, endpoint, instructions, metrics, retrieval, selection
from finetune_trainer.process import errors, log

BATCH = 4
"""Training examples that one new instruction is written from, and first tried on."""

MOST = 6
"""Instructions that are tried on the validation examples, at most: each takes a part of the level of the gates."""

REQUESTS = 24
"""Requests to the endpoint, at most."""

USELESS = 3
"""Replies without an instruction, one after the other, that end the search."""

TOKENS = 4096
"""Of a reply, at most; some models think before they answer."""

COMPONENT = "instruction"
"""What GEPA calls the text that it changes."""

BLOCK = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)

Asker = Callable[[instructions.Variant, Sequence[dataset.Example]], answers.Answers]


class Search:
    """One search, from a written prompt whose answers to the validation examples are known."""

    def __init__(
        self,
        optimizer: instructions.Optimizer,
        runner: answers.ModelRunner,
        ask: Asker,
        examples: Sequence[dataset.Example],
        metric: job.Metric,
        seconds: float,
        an_answer: float,
    ) -> None:
        """ask: the base model's answers. seconds: what the search may take. an_answer: seconds that one of them takes."""
        self.optimizer, self.runner, self.ask = optimizer, runner, ask
        self.examples, self.metric = examples, metric
        self.found: dict[instructions.Variant, answers.Answers] = {}
        """The new prompts, with their answers to the validation examples."""
        self.calls = self.requests = self._useless = 0
        self.problem: str | None = None
        self._failed: Exception | None = None
        self._until = time.monotonic() + seconds
        self._an_answer = an_answer
        body = {"max_tokens": TOKENS, "seed": optimizer.seed}
        self._endpoint = endpoint.Endpoint(
            optimizer.rules, os.environ.get(run.OPTIMIZER_KEY, "").strip(), body, self._failure
        )

    def run(self, start: instructions.Variant, given: answers.Answers) -> None:
        """Tries new instructions in the place of `start`'s. Raises Failure when the base model cannot answer, Stopped."""
        from gepa import api

        self._start, self._known = start, {(start.instruction, True): given}
        held = [one for one in self.optimizer.training if one not in self.runner.script.shots]
        if not held:
            self.problem = "there are no training examples to learn from"
            return
        api.optimize(
            seed_candidate={COMPONENT: start.instruction},
            trainset=[(one, False) for one in held],
            valset=[(one, True) for one in self.examples],
            adapter=self,
            reflection_lm=self._reflect,
            reflection_prompt_template=self._template(),
            reflection_minibatch_size=min(BATCH, len(held)),
            perfect_score=1.0,
            skip_perfect_score=self.metric in job.SHARES,
            stop_callbacks=self._over,
            logger=Quiet(),
            seed=self.optimizer.seed,
        )

    def described(self) -> results.Reflection:
        """For results.json."""
        rules = self.optimizer.rules
        return results.Reflection(
            model=rules.model, endpoint=rules.endpoint, requests=self.requests, calls=self.calls, problem=self.problem
        )

    # -- GEPA's adapter --

    propose_new_texts = None

    def evaluate(
        self, batch: list[tuple[dataset.Example, bool]], candidate: dict[str, str], capture_traces: bool = False
    ) -> Any:
        from gepa.core import adapter

        examples = [one for one, _ in batch]
        try:
            given = self._answers(candidate[COMPONENT], examples, validation=all(held for _, held in batch))
        except Exception as error:
            self._failed = error  # GEPA continues after an exception
            raise
        traces = list(zip(examples, given.answers, strict=True))
        scores = [self._score(one) for one in given.answers]
        return adapter.EvaluationBatch([one.text for one in given.answers], scores, traces if capture_traces else None)

    def make_reflective_dataset(
        self, candidate: dict[str, str], eval_batch: Any, components_to_update: list[str]
    ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        shown = [
            {
                "Question": retrieval.question(example),
                "Answer given": given.text or "",
                "Answer expected": example.answer or "",
            }
            for example, given in eval_batch.trajectories
        ]
        return dict.fromkeys(components_to_update, shown)

    # -- parts --

    def _answers(self, text: str, examples: Sequence[dataset.Example], *, validation: bool) -> answers.Answers:
        if validation and (text, True) in self._known:
            return self._known[text, True]
        variant = dataclasses.replace(self._start, instruction=text)
        given = self.ask(variant if validation else self._without_retrieval(variant), examples)
        self.calls += len(examples)
        if validation:
            self._known[text, True] = self.found[variant] = given
        return given

    def _without_retrieval(self, variant: instructions.Variant) -> instructions.Variant:
        """How training examples are asked: each would be retrieved for itself, with its answer."""
        if variant.examples is not job.Contender.RETRIEVED:
            return variant
        few = job.Contender.FEW_SHOT if self.runner.script.shots else job.Contender.PROMPT
        return dataclasses.replace(variant, examples=few)

    def _score(self, answer: metrics.Answer) -> float:
        """Of one answer, higher is better."""
        column = metrics.measure([answer], self.runner.rules).get(self.metric)
        value = column.value if column is not None and column.examples else 0.0
        return -value if self.metric in job.LOWER_IS_BETTER else value

    def _template(self) -> str:
        system = self.runner.script.prompt.system
        context = f"The system prompt, which stays as it is:\n```\n{system}\n```\n\n" if system else ""
        return (
            "A small language model answers questions with an instruction that you are to improve.\n\n"
            f"{context}The instruction:\n```\n<curr_param>\n```\n\n"
            "What it answered with this instruction, and what was expected:\n\n<side_info>\n\n"
            "Find out from the expected answers what the task is, which form an answer has, and by which rules it is chosen. "
            "Write a better instruction: short, concrete, and true of other questions than these. Reply with the new "
            "instruction alone, between two lines of ```."
        )

    def _reflect(self, prompt: Any) -> str:
        """GEPA's reflection_lm. A reply without an instruction raises: GEPA then draws other examples."""
        if self.problem is not None:  # GEPA asks once more after an exception
            raise ValueError(self.problem)
        self.requests += 1
        text = self._reply([{"role": "user", "content": prompt}])
        block = BLOCK.search(candidates.REASONING.sub("", text))
        written = block.group(1).strip() if block else ""
        if not written or not self.optimizer.fits(written):
            self._useless += 1
            if self._useless >= USELESS:
                fault = (
                    "longer than a quarter of the room for examples"
                    if written
                    else "not to be found between ``` and ```"
                )
                self.problem = f"{USELESS} replies in a row were of no use: the instruction was {fault}"
            raise ValueError("a reply of no use")
        self._useless = 0
        return f"```\n{written}\n```"

    def _reply(self, messages: list[dict[str, Any]]) -> str:
        into: dict[int, endpoint.Reply] = {}
        seconds = max(1.0, self._until - time.monotonic())
        try:
            self._endpoint.all({0: lambda: self._endpoint.first(messages)}, seconds, into)
        except TimeoutError:
            self.problem = f"the endpoint gave no answer in the {seconds:.0f} s that were left"
        except errors.Failure as failure:
            self.problem = failure.message
        if self.problem is not None:
            raise ValueError(self.problem)
        return into[0].text

    def _over(self, state: Any) -> bool:
        """GEPA's stopping rule: whether something ended the search, or the next step may be beyond a limit."""
        if self._failed is not None:
            raise self._failed
        following = 2 * BATCH + len(self.examples)
        late = time.monotonic() + following * self._an_answer > self._until
        return (
            self.problem is not None
            or late
            or self.calls + following > self.optimizer.rules.calls
            or len(self.found) >= MOST
            or max(self.requests, state.i + 1) >= REQUESTS
        )

    def _failure(self, problem: str) -> errors.Failure:
        rules = self.optimizer.rules
        return errors.Failure(
            reasons.Reason.CANDIDATE_FAILED,
            f"intent.prompt.optimizer ({rules.model} at {rules.endpoint}): {problem}. Check endpoint, model and apiKeySecret, "
            "and whether the namespace's network policies allow it",
        )


class Quiet:
    """GEPA's logger: nothing of a prompt or an answer goes to the pod's log."""

    def log(self, message: str) -> None: ...


def time_for(examples: Sequence[dataset.Example], limits: selection.Budget, left: float, an_answer: float) -> bool:
    """Whether there is time for one step at least; where there is not, what is left out is noted."""
    needed = (2 * BATCH + len(examples)) * an_answer
    if needed <= left:
        return True
    limits.left_out.append(
        f"Optimized by reflection: a step would take about {needed:.0f} s, {left:.0f} s of {limits.seconds:.0f} may be used"
    )
    return False


def finished(search: Search, limits: selection.Budget) -> results.Reflection:
    """What was done, logged; a problem is named among what is left out."""
    made = search.described()
    if made.problem is not None:
        limits.left_out.append(
            f"Optimized by reflection ended early: {made.problem}; the best prompt found until then stays"
        )
    log.info(
        "prompt optimizer", requests=made.requests, calls=made.calls, tried=len(search.found), problem=made.problem
    )
    return made
