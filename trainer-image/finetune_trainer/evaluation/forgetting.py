"""Forgetting: general questions that the training is not about, asked before and after in the same way.

The trainer's own questions (forgetting.jsonl) are of two kinds: those with four answers, of which the likeliest counts, and
instructions whose answer a program checks. The job's own (evaluation.forgetting.uris) are examples in any format of
dataset.train, of which only the loss is measured.
"""

import dataclasses
import json
import pathlib
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from finetune_api import job, run
from finetune_trainer.data import dataset, rows
from finetune_trainer.evaluation import answers, contenders, engines, evidence, metrics
from finetune_trainer.process import log
from finetune_trainer.store import storage

BUILT_IN = pathlib.Path(__file__).with_name("forgetting.jsonl")

IN_PROCESS = 64
"""Of the trainer's own questions, those that are asked where no server answers: all of them would take a CPU longer than a small
evaluation."""

ANSWER = 48
"""Tokens of an instruction's answer, at most; the longest of the reference answers is shorter."""

INSTRUCTIONS = "instructions"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction on the form of the answer, with a reference answer, and the program that checks answers."""

    example: dataset.Example
    accepts: Callable[[str], bool]


@dataclasses.dataclass(frozen=True)
class Questions:
    """Questions as examples: for each question one example per answer, the right one first. Besides, instructions."""

    examples: list[dataset.Example]
    choices: int
    instructions: list[Instruction] = dataclasses.field(default_factory=list)

    @property
    def questions(self) -> int:
        return len(self.examples) // self.choices

    @property
    def prompts(self) -> list[dataset.Example]:
        """Each question and instruction once, with its right answer."""
        return [*self.examples[:: self.choices], *(one.example for one in self.instructions)]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What one contender makes of the questions."""

    losses: list[tuple[float, int]]
    """Nats and tokens of every example."""
    followed: list[bool]
    """Of every instruction, whether the program accepts the answer."""


def load(spec: run.Run, store: storage.Storage, kind: engines.Kind) -> Questions:
    """The job's own questions, or the trainer's. Raises Failure when a file cannot be read."""
    rules = spec.evaluation.forgetting
    if not rules.uris:
        some = IN_PROCESS if kind is job.EvaluationEngine.IN_PROCESS else None
        return built_in(rules.maximum_questions or some, spec.training.seed)
    examples: list[dataset.Example] = []
    for entry in rows.find(store, rules.uris):
        for one in dataset.parse(rows.read(store, entry.uri), job.Format.AUTO):
            if isinstance(one, rows.Bad):
                log.warning("a row of evaluation.forgetting.uris is left out", source=one.source, problem=one.problem)
            else:
                examples.append(dataclasses.replace(one, rejected=None))
    most = rules.maximum_questions or spec.evaluation.maximum_examples
    return Questions(contenders.choose(examples, most, spec.training.seed), 1)


def built_in(maximum: int | None = None, seed: int = 0) -> Questions:
    """The trainer's own questions; at most `maximum`, of every kind and difficulty as many as their share of all."""
    lines = [json.loads(line) for line in BUILT_IN.read_text(encoding="utf-8").splitlines()]
    numbered = stratified(list(enumerate(lines, start=1)), maximum or len(lines), seed)
    examples, instructions = [], []
    for number, one in numbered:
        source = f"{BUILT_IN.name}:{number}"
        if one["kind"] == INSTRUCTIONS:
            instructions.append(Instruction(_example(source, one["question"], one["right"]), checker(one)))
        else:
            examples += [_example(source, one["question"], answer) for answer in (one["right"], *one["wrong"])]
    return Questions(examples, 4, instructions)


def stratified(lines: list[tuple[int, dict[str, Any]]], maximum: int, seed: int) -> list[tuple[int, dict[str, Any]]]:
    """At most `maximum` lines in their order: every n-th of those sorted by kind and level, and by the seed within these."""
    mixed = lines.copy()
    random.Random(f"{seed}:forgetting").shuffle(mixed)  # noqa: S311
    mixed.sort(key=lambda line: (line[1]["kind"], line[1]["level"]))
    count = min(maximum, len(mixed))
    return sorted((mixed[place * len(mixed) // count] for place in range(count)), key=lambda line: line[0])


def _example(source: str, question: str, answer: str) -> dataset.Example:
    return dataset.Example(source, (dataset.Message("user", question), dataset.Message("assistant", answer)))


def checker(line: dict[str, Any]) -> Callable[[str], bool]:
    """What accepts an answer: a regular expression that all of it must match, or a JSON Schema that it must fit."""
    if "pattern" in line:
        matches = re.compile(line["pattern"])
        return lambda text: matches.fullmatch(text.strip()) is not None
    fits = metrics.validator(line["schema"])
    return lambda text: bool(fits(text))


def ask(runner: answers.ModelRunner, which: job.Contender, questions: Questions) -> Asked:
    """Losses and instructions of one contender."""
    prompts = [runner.encoder.prompt(one.example) for one in questions.instructions]
    ending = engines.Ending(runner.encoder.stops, ANSWER)
    found = runner.engine.greedy(which, prompts, ending) if prompts else []
    texts = [runner.encoder.tokenizer.decode(ids, skip_special_tokens=True) for ids in found]
    followed = [one.accepts(text) for one, text in zip(questions.instructions, texts, strict=True)]
    return Asked(answers.losses_of(runner, which, questions.examples), followed)


def measure(questions: Questions, base: Asked, tuned: Asked) -> dict[job.Contender, metrics.Columns]:
    """How much the tuned model forgot, and of both the shares of right answers and of followed instructions."""
    both = {job.Contender.BASE: base, job.Contender.TUNED: tuned}
    losses = {
        which: np.array(one.losses, dtype=np.float64).reshape(-1, questions.choices, 2) for which, one in both.items()
    }
    before, after = losses.values()
    # The same tokens on both sides, so that the ratio of sums is that of the losses.
    parts = np.stack([after[:, 0, 0], before[:, 0, 0]], 1)
    found: dict[job.Contender, metrics.Columns] = {which: {} for which in both}
    found[job.Contender.TUNED][job.Metric.FORGETTING] = evidence.Column(parts, _rise, before[:, 0, 1] > 0)
    for which, one in both.items():
        if questions.choices > 1:
            each = losses[which][..., 0] / np.maximum(losses[which][..., 1], 1)
            right = (each[:, 0] < each[:, 1:].min(1)).astype(np.float64)
            found[which][job.Metric.GENERAL_ACCURACY] = evidence.mean(right, share=True)
        if one.followed:
            found[which][job.Metric.INSTRUCTION_FOLLOWING] = evidence.mean(one.followed, share=True)
    return found


def _rise(sums: evidence.Array) -> evidence.Array:
    return sums[..., 0] / np.where(sums[..., 1] == 0, np.nan, sums[..., 1]) - 1
