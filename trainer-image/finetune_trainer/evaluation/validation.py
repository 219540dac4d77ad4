"""How good the answers to validation examples are while the adapter trains, by the metric that decides about it.

Used by the training stage: of the adapters at its validations it keeps the one with the best score, and of equal ones the one
with the lowest loss. A score takes answers, which cost more than a loss, so only a training that is long enough has one.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from finetune_api import job, run
from finetune_trainer.data import dataset, tokens
from finetune_trainer.engine import loss
from finetune_trainer.evaluation import answers, contenders, feasible, headline, in_process, metrics, retrieval
from finetune_trainer.process import errors, log, machine
from finetune_trainer.store import storage

SHARE = 0.1
"""The share of the training's work that all answers together may take."""

LEAST = 16
"""Validation examples on which a score says something."""

READ, WRITTEN = 1 / 3, 2.0
"""The work of reading a token of a prompt, and of writing one of an answer, in that of training on a token. Reading is the
forward pass alone; a written token reads all weights again, for a few rows at once."""

SAMPLED = 8
"""Prompts whose length is measured for the estimate."""

NO_ANSWER = (job.Metric.LOSS, job.Metric.PERPLEXITY)
"""What the loss says already."""

WORDS = 12
"""An answer of more words, other than JSON and one that others repeat, is hardly ever given word for word."""

VERBATIM = frozenset({job.Metric.EXACT_MATCH, job.Metric.NORMALIZED_MATCH})

CALLS = (job.Metric.TOOL_CALL_MATCH, job.Metric.TOOL_CALL_VALID)
"""Defined where examples have tools."""


@dataclasses.dataclass(frozen=True)
class Scorer:
    """The adapter that trains, and the validation examples that it answers."""

    runner: answers.ModelRunner
    examples: list[dataset.Example]
    metric: job.Metric

    def __call__(self) -> float | None:
        """The metric of the answers now, negated where lower is better; None: it is not defined for them, or memory is short."""
        try:
            given = answers.ask(self.runner, job.Contender.TUNED, self.examples)
        except torch.OutOfMemoryError as error:
            log.warning("no score of the validation examples: memory is short", problem=errors.describe(error))
            return None
        column = metrics.measure(given.answers, self.runner.rules, frozenset({self.metric})).get(self.metric)
        return None if column is None else self.sign * column.value

    @property
    def sign(self) -> int:
        return -1 if self.metric in job.LOWER_IS_BETTER else 1

    def curve(self, validations: Sequence[dict[str, float]]) -> dict[str, Any]:
        """The metric's name and its values at the validations, as the results have them."""
        shown = [one | {"score": self.sign * one["score"]} if "score" in one else one for one in validations]
        return {"scored_by": self.metric, "validations": shown}


def of(
    spec: run.Run,
    store: storage.Storage,
    encoder: tokens.Encoder,
    tuned: Any,
    head: loss.Head,
    where: torch.device,
    trained: float,
    validations: int,
) -> Scorer | None:
    """The scorer of a training; None where the loss decides.

    tuned: the model with the adapter that trains; trained: tokens that training reads in all; validations: how often it is
    validated.
    """
    if spec.training.objective is not job.Objective.SFT or not encoder.tokenizer.chat_template:
        return None
    answers.fetch(spec, store, {"validation.jsonl"})
    found = [one for one in dataset.frozen(machine.work() / "data" / "validation.jsonl") if one.answer is not None]
    rules = feasible.scoring(spec, store)
    metric = deciding(rules, found)
    if metric is None:
        return None
    trained_with = {job.Contender.TUNED: spec.trained_prompt} if spec.trained_prompt is not None else {}
    script = contenders.Script(spec.intent.prompt, inline=not encoder.takes_system, trained=trained_with)
    engine = in_process.InProcess(tuned, head, where, spec, encoder.tokenizer)
    runner = answers.ModelRunner(engine, encoder, script, rules)
    if answers.obstacle(runner, job.Contender.TUNED, found) is not None:
        return None
    lengths = [len(encoder.prompt(script.ask(one, job.Contender.TUNED))) for one in found[:SAMPLED]]
    each = READ * sum(lengths) / len(lengths) + WRITTEN * rules.generation.max_new_tokens
    count = min(affordable(trained, validations, each), len(found), rules.maximum_examples)
    if count < LEAST:
        log.info("the adapter with the lowest validation loss is kept: there is time for few answers", answers=count)
        return None
    chosen = contenders.choose(found, count, spec.training.seed)
    log.info("the adapter with the best answers is kept", metric=metric, examples=len(chosen))
    return Scorer(runner, chosen, metric)


def affordable(trained: float, validations: int, each: float) -> int:
    """Examples whose answers are worth SHARE of a training on `trained` tokens. each: an answer's work, in trained tokens."""
    return int(SHARE * trained / (max(1, validations) * each))


def deciding(rules: job.Evaluation, examples: Sequence[dataset.Example]) -> job.Metric | None:
    """The metric of the first gate that answers have; without gates the most telling one of the task, for free text its
    similarity. None: the loss decides."""
    if not examples:
        return None
    required = [gate for gate in rules.gates or [] if gate.metric not in headline.ELSEWHERE]
    right = metrics.measure([metrics.Answer(one.answer, one.answer, 0.0, 0) for one in examples], rules)
    called = {metric for metric in CALLS if any(example.tools for example in examples)}
    plausible = {
        metric: column for metric, column in right.items() if metric not in VERBATIM or not free_text(examples)
    }
    metric = headline.telling(required, {*right, *NO_ANSWER, *called}, [plausible])
    return None if metric in NO_ANSWER else metric


def free_text(examples: Sequence[dataset.Example]) -> bool:
    """Whether most expected answers are long, no JSON, and of no other example."""
    given = [one.answer for one in examples if one.answer]
    repeated = collections.Counter(given)
    free = [
        one
        for one in given
        if repeated[one] == 1 and len(retrieval.words(one)) > WORDS and not metrics.json_valid(one, "")
    ]
    return 2 * len(free) > len(given)
