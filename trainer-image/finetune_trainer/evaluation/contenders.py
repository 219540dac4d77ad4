"""Contenders, pure: the same question put to each as it would be in use.

Base and the tuned models are asked as the examples are written; a tuned one that was trained with a system prompt of the job gets
that. Prompt is the base model with the system prompt of intent.prompt in place of the examples' own; RAG has passages of
documents before the question, too. FewShot, Retrieved and ManyShot have examples of the training split before it: a few, those
most similar to the question, or as many as fit. Optimized has an instruction on the form of the answer, with or without such
examples. Structured is asked like the best of them.
"""

import dataclasses
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from finetune_api import job
from finetune_trainer.data import dataset, prompted, tokens
from finetune_trainer.evaluation import documents, instructions, metrics, retrieval

CANDIDATES = 256
"""Training examples from which the few are chosen."""

T = TypeVar("T")

MARGIN = 0.5
"""The share of the model's positions that the examples before a question may take."""

MOST = 8192
"""Tokens that they take at most: few servers are given room for more."""

DRAWN = 4096
"""Training examples from which ManyShot's are chosen."""

SHOWN = frozenset({job.Contender.FEW_SHOT, job.Contender.RETRIEVED, job.Contender.MANY_SHOT})
"""Contenders with examples before the question."""

PROMPTED = SHOWN | {job.Contender.PROMPT, job.Contender.OPTIMIZED, job.Contender.RAG}
"""Contenders with the system prompt of intent.prompt."""

PROMPTS = (
    job.Contender.BASE,
    job.Contender.PROMPT,
    job.Contender.FEW_SHOT,
    job.Contender.RETRIEVED,
    job.Contender.OPTIMIZED,
    job.Contender.RAG,
)
"""Contenders whose prompt a candidate may get. ManyShot's thousands of tokens would be paid with every question."""

OPTIONS = (4, 16, 256)
"""Numbers of retrieved examples that are tried; the last one stands for as many as fit."""


@dataclasses.dataclass(frozen=True)
class Script:
    """How the baselines' questions are written."""

    prompt: job.Prompt
    shots: tuple[dataset.Example, ...] = ()
    inline: bool = False
    """Whether the model's template has no system turn, so that its text is put before the question."""
    many: tuple[dataset.Example, ...] = ()
    index: retrieval.Index[dataset.Example] | None = None
    retrieved: int = 4
    """Examples that are retrieved for each question, within `room` tokens."""
    room: int = 0
    passages: retrieval.Index[str] | None = None
    """Of the documents of intent.retrieval; `looked_up` of them come before each question."""
    looked_up: int = 4
    variants: tuple[instructions.Variant, ...] = ()
    """The prompts among which Optimized's is chosen."""
    optimized: instructions.Variant | None = None
    """The one that was chosen; None: the first of them."""
    optimizer: instructions.Optimizer | None = None
    """The model that improves the best of them."""
    trained: Mapping[job.Contender, str] = dataclasses.field(default_factory=dict)
    """The system prompts that adapters were trained with, and are asked with (training.prompt)."""
    taught: bool = False
    """Whether the answers with the system prompt are the reference (training.teacher Prompt): Base alone is compared with."""
    structured: job.Contender = job.Contender.PROMPT
    """Whose prompt Structured gets."""

    def shown(self, example: dataset.Example, which: job.Contender) -> Sequence[dataset.Example]:
        """The examples before a question."""
        if which is job.Contender.OPTIMIZED:
            return self.shown(example, self._variant.examples if self._variant else job.Contender.PROMPT)
        if which is job.Contender.RETRIEVED and self.index is not None:
            return self.index.nearest(retrieval.question(example), self.retrieved, self.room)
        return {job.Contender.FEW_SHOT: self.shots, job.Contender.MANY_SHOT: self.many}.get(which, ())

    def ask(self, example: dataset.Example, which: job.Contender) -> dataset.Example:
        """The example as this contender gets it; only its last answer counts."""
        if which is job.Contender.STRUCTURED:
            return self.ask(example, self.structured)
        if which in self.trained:
            return prompted.with_system(example, self.trained[which], inline=self.inline)
        if which not in PROMPTED or not example.messages:
            return example
        own = example.messages[0] if example.messages[0].role == "system" else None
        system = dataset.Message("system", self.prompt.system) if self.prompt.system else own
        turns = example.messages[1:] if own else example.messages
        if which is job.Contender.OPTIMIZED and self._variant is not None:
            system, turns = self._instructed(system, turns, self._variant)
        if which is job.Contender.RAG:
            turns = self._with_passages(turns, retrieval.question(example))
        shown = self.shown(example, which)
        before = [dataclasses.replace(turn, learned=False) for shot in shown for turn in without_system(shot)]
        if system and self.inline:
            first = turns[0] if not before else before[0]
            joined = dataclasses.replace(first, content=f"{system.content}\n\n{first.content}")
            before, turns = ([joined, *before[1:]], turns) if before else (before, (joined, *turns[1:]))
            system = None
        return dataclasses.replace(example, messages=(*([system] if system else []), *before, *turns))

    def _with_passages(self, turns: tuple[dataset.Message, ...], question: str) -> tuple[dataset.Message, ...]:
        """The turns with passages of the documents in the last question."""
        last = _last_question(turns)
        if last is None or self.passages is None:
            return turns
        found = self.passages.nearest(question, self.looked_up, self.room)
        asked = dataclasses.replace(turns[last], content=documents.before(turns[last].content, found))
        return (*turns[:last], asked, *turns[last + 1 :])

    @property
    def _variant(self) -> instructions.Variant | None:
        return self.optimized or next(iter(self.variants), None)

    def _instructed(
        self, system: dataset.Message | None, turns: tuple[dataset.Message, ...], variant: instructions.Variant
    ) -> tuple[dataset.Message | None, tuple[dataset.Message, ...]]:
        """System turn and other turns with the variant's instruction in one of them."""
        last = _last_question(turns)
        if variant.placement == "Question" and last is not None:
            asked = dataclasses.replace(turns[last], content=f"{turns[last].content}\n\n{variant.instruction}")
            return system, (*turns[:last], asked, *turns[last + 1 :])
        before = f"{system.content}\n\n" if system else ""
        return dataset.Message("system", f"{before}{variant.instruction}"), turns


def _last_question(turns: Sequence[dataset.Message]) -> int | None:
    """The place of the user's last turn before the answer; None where there is none."""
    return max((place for place, turn in enumerate(turns[:-1]) if turn.role == "user"), default=None)


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
        job.Contender.RETRIEVED: chats and script.index is not None,
        job.Contender.OPTIMIZED: chats and bool(script.variants),
        job.Contender.MANY_SHOT: chats and len(script.many) > len(script.shots),
        job.Contender.RAG: chats and script.passages is not None,
        job.Contender.STRUCTURED: chats and spec.output_schema is not None,
    }
    allowed = {job.Contender.BASE} if script.taught else set(possible)
    return [which for which in job.Contender if which in allowed.intersection(spec.baselines) and possible[which]]


def showable(training: Sequence[dataset.Example]) -> list[dataset.Example]:
    """Examples that can be shown before a question: one question and its answer; with tools they would call what the question
    does not have."""
    return [one for one in training if one.messages and one.tools is None and len(without_system(one)) == 2]


def size(example: dataset.Example, encoder: tokens.Encoder) -> int:
    """Tokens of an example that is shown."""
    return len(encoder.encode(dataclasses.replace(example, messages=without_system(example), rejected=None)).ids)


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
    chats = showable(training)
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
            needed = size(example, encoder)
            if used + needed <= room:
                chosen.append(example)
                seen.add(answer)
                used += needed
    return tuple(chosen)


def many(
    training: Sequence[dataset.Example], seed: int, *, room: int, encoder: tokens.Encoder
) -> tuple[dataset.Example, ...]:
    """As many examples as `room` tokens hold, drawn by the seed; where answers recur, such as labels, as many of each."""
    chats = showable(training)
    draw = random.Random(f"{seed}:many-shot")  # noqa: S311
    chosen: list[dataset.Example] = []
    for example in _balanced(draw.sample(chats, min(len(chats), DRAWN))):
        needed = size(example, encoder)
        if needed > room:
            break
        chosen.append(example)
        room -= needed
    draw.shuffle(chosen)
    return tuple(chosen)


def _balanced(examples: Sequence[dataset.Example]) -> Iterator[dataset.Example]:
    """In turns one of each answer, as long as it has any left."""
    groups: dict[str, list[dataset.Example]] = {}
    for example in examples:
        groups.setdefault(metrics.label(example.answer or ""), []).append(example)
    for turn in range(max(map(len, groups.values()), default=0)):
        yield from (group[turn] for group in groups.values() if turn < len(group))
