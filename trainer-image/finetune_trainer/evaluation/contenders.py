"""Contenders, pure: the same question put to each as it would be in use.

Base and the tuned models are asked as the examples are written. Prompt is the base model with the system prompt of
intent.prompt in place of the examples' own; FewShot has examples of the training split before the question, too.
"""

import dataclasses
import random
import statistics
from collections.abc import Sequence
from typing import TypeVar

from finetune_api import job
from finetune_trainer.data import dataset, tokens
from finetune_trainer.evaluation import metrics

CANDIDATES = 256
"""Training examples from which the few are chosen."""

T = TypeVar("T")

MARGIN = 0.5
"""The share of the model's positions that the few examples may take."""


@dataclasses.dataclass(frozen=True)
class Script:
    """How the baselines' questions are written."""

    prompt: job.Prompt
    shots: tuple[dataset.Example, ...] = ()
    inline: bool = False
    """Whether the model's template has no system turn, so that its text is put before the question."""

    def ask(self, example: dataset.Example, which: job.Contender) -> dataset.Example:
        """The example as this contender gets it; only its last answer counts."""
        if which not in {job.Contender.PROMPT, job.Contender.FEW_SHOT} or not example.messages:
            return example
        own = example.messages[0] if example.messages[0].role == "system" else None
        system = dataset.Message("system", self.prompt.system) if self.prompt.system else own
        turns = example.messages[1:] if own else example.messages
        before: list[dataset.Message] = []
        if which is job.Contender.FEW_SHOT:
            before = [dataclasses.replace(turn, learned=False) for shot in self.shots for turn in without_system(shot)]
        if system and self.inline:
            first = turns[0] if not before else before[0]
            joined = dataclasses.replace(first, content=f"{system.content}\n\n{first.content}")
            before, turns = ([joined, *before[1:]], turns) if before else (before, (joined, *turns[1:]))
            system = None
        return dataclasses.replace(example, messages=(*([system] if system else []), *before, *turns))


def choose(examples: list[T], maximum: int, seed: int) -> list[T]:
    """At most `maximum` of them, drawn by the seed, in their order."""
    if len(examples) <= maximum:
        return examples
    drawn = random.Random(f"{seed}:evaluation").sample(range(len(examples)), maximum)  # noqa: S311
    return [examples[index] for index in sorted(drawn)]


def without_system(example: dataset.Example) -> tuple[dataset.Message, ...]:
    return tuple(turn for turn in example.messages if turn.role != "system")


def taking_part(spec: job.Evaluation, script: Script, examples: Sequence[dataset.Example]) -> list[job.Contender]:
    """The baselines that the job requests and has a prompt or examples for."""
    chats = any(example.messages for example in examples)
    possible = {
        job.Contender.BASE: True,
        job.Contender.PROMPT: chats and script.prompt.system is not None,
        job.Contender.FEW_SHOT: chats and bool(script.shots),
    }
    return [which for which in job.Contender if which in spec.baselines and possible[which]]


def few(
    training: Sequence[dataset.Example],
    count: int,
    labels: Sequence[str] | None,
    seed: int,
    *,
    room: int,
    encoder: tokens.Encoder,
) -> tuple[dataset.Example, ...]:
    """At most `count` examples to show, drawn by the seed: short ones, different answers first, together within `room` tokens."""
    # One with tools would call what the question does not have.
    chats = [one for one in training if one.messages and one.tools is None and len(without_system(one)) == 2]
    if not chats or not count:
        return ()
    draw = random.Random(f"{seed}:few-shot")  # noqa: S311
    candidates = draw.sample(chats, min(len(chats), CANDIDATES))
    longest = 2 * statistics.median(example.size for example in candidates)
    candidates = [example for example in candidates if example.size <= longest]
    known = {metrics.label(label) for label in labels or ()}
    chosen: list[dataset.Example] = []
    seen: set[str] = set()
    used = 0
    # First those whose answer was not shown yet, then whatever is left: with labels, each label once before any twice.
    for repeat in (False, True):
        for example in candidates:
            answer = metrics.label(example.answer or "")
            if (
                len(chosen) == count
                or example in chosen
                or (not repeat and (answer in seen or (known and answer not in known)))
            ):
                continue
            size = len(encoder.encode(dataclasses.replace(example, messages=without_system(example))).ids)
            if used + size <= room:
                chosen.append(example)
                seen.add(answer)
                used += size
    return tuple(chosen)
