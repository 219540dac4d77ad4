"""A teacher answers every example before training (training.teacher): sequence-level distillation.

frozen split without answers -> answers of the base model with intent.prompt.system, or of one of evaluation.candidates -> the
same split with them in `taught/`, which training, baseline and evaluation read in place of it. Written once; the manifest names
split, prompt and limit. Answers are stored as they come, so that an attempt that ended does not ask, or pay, for them again.

An answer that was cut or is empty teaches nothing, and is left out of all splits.
"""

import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence

from finetune_api import job, reasons, run
from finetune_trainer.data import corpus, dataset, tokens
from finetune_trainer.evaluation import answers, candidates, contenders
from finetune_trainer.process import errors, log, machine
from finetune_trainer.store import folders, storage

Teacher = Callable[[Sequence[dataset.Example]], list[str]]
"""Its answer to each question; empty where it gives none, or does not end it."""

TOGETHER = 128
"""Examples that are answered, and stored, at once."""

LEFT_OUT, EXAMPLES = "leftOut", "examples"
"""In the manifest: how many answers were cut or empty, of how many."""


def written(spec: run.Run, store: storage.Storage) -> bool:
    """Whether the answers to the present split are there."""
    found = folders.manifest(store, spec.layout.taught)
    return found is not None and folders.made_of(store, found, spec.layout.data)


def note(spec: run.Run, store: storage.Storage) -> str:
    """How many answers were left out, and what to do; empty where none was."""
    found = folders.manifest(store, spec.layout.taught)
    left, number = (found.extra[LEFT_OUT], found.extra[EXAMPLES]) if found else (0, 0)
    if not left:
        return ""
    return (
        f"; {left} of {number} answers are refused, empty or longer than "
        f"{spec.evaluation.generation.max_new_tokens} tokens and are left out: raise evaluation.generation.maxNewTokens "
        "(and then run again)"
    )


def named(spec: run.Run) -> str:
    """Whose answers these are, for messages."""
    if (candidate := spec.teaching) is None:
        return "the base model with intent.prompt.system"
    prompt = " with intent.prompt.system" if spec.intent.prompt.system else ""
    return f"the candidate {candidate.name} ({candidate.model}){prompt}"


def prompted(runner: answers.ModelRunner) -> Teacher:
    """The base model with intent.prompt.system."""

    def texts(examples: Sequence[dataset.Example]) -> list[str]:
        asked = [runner.script.ask(one, job.Contender.PROMPT) for one in examples]
        found = runner.engine.greedy(
            job.Contender.PROMPT,
            [runner.encoder.prompt(one) for one in asked],
            runner.ending(job.Contender.PROMPT),
            lambda count: None,
        )
        ended = [bool(ids) and ids[-1] in runner.encoder.stops for ids in found]
        return [
            answers.decode_answer(runner.encoder, one, ids)[0] if whole else ""
            for one, ids, whole in zip(examples, found, ended, strict=True)
        ]

    return texts


def candidate(spec: run.Run, rules: job.Candidate) -> Teacher:
    """A model of evaluation.candidates. Raises Failure where it does not answer."""
    other = candidates.connected(spec, rules, needed=True)
    script = contenders.Script(spec.intent.prompt)
    return lambda examples: other.texts(script, examples)


def write(
    spec: run.Run,
    store: storage.Storage,
    teacher: Teacher,
    encoder: tokens.Encoder,
    done: Callable[[int, int], None],
) -> None:
    """Answers every example of the frozen split and stores the result. done: called with answered and all examples. Raises
    Failure where too few answers are usable."""
    raw, local = machine.work() / "questions", machine.work() / "taught"
    split = folders.load(store, spec.layout.data, raw, only={f"{name}.jsonl" for name in dataset.SPLITS})
    local.mkdir(parents=True, exist_ok=True)
    total = sum(1 for name in dataset.SPLITS for _ in dataset.stream(raw / f"{name}.jsonl"))
    log.info("a teacher answers", teacher=named(spec), examples=total)
    parts = Parts(spec, store, teacher)
    answered = taught = 0
    for name in dataset.SPLITS:
        with (local / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            stream = dataset.stream(raw / f"{name}.jsonl")
            while batch := list(itertools.islice(stream, TOGETHER)):
                usable = with_answers(batch, parts.answers(batch))
                file.writelines(one.line() for one in usable)
                answered, taught = answered + len(batch), taught + len(usable)
                done(answered, total)
    check(spec, local, answered, taught)
    for name in dataset.SPLITS[:2]:
        made = corpus.build(local / f"{name}.jsonl", encoder, machine.work() / "corpus")
        corpus.write(local, name, made, encoder)
    extra = {
        "encoder": encoder.identity,
        LEFT_OUT: answered - taught,
        EXAMPLES: answered,
        folders.MADE_OF: split.sha256,
    }
    folders.save(store, local, spec.layout.taught, extra)
    parts.discard()


class Parts:
    """The answers to one batch after another, each stored as soon as it is there, under a name made of all that it depends on.

    Those of another model stay for later revisions of the job, which then pay for none of them again.
    """

    def __init__(self, spec: run.Run, store: storage.Storage, teacher: Teacher) -> None:
        asked = spec.teaching
        self._stays = asked is not None
        self._folder = spec.layout.answers if asked else f"{spec.layout.taught}-parts"
        who = [asked.endpoint, asked.model] if asked else []
        self._made_of = [spec.intent.prompt.system, spec.evaluation.generation.max_new_tokens, *who]
        self._store, self._teacher, self._uris = store, teacher, list[str]()

    def answers(self, batch: Sequence[dataset.Example]) -> list[str]:
        """The answers to the next batch: those of an earlier attempt, or the teacher's."""
        made_of = [*self._made_of, *(one.line() for one in batch)]
        uri = f"{self._folder}/{hashlib.sha256(json.dumps(made_of).encode()).hexdigest()}.json"
        self._uris.append(uri)
        try:
            found: list[str] = json.loads(self._store.read(uri))
        except errors.NotFound:
            found = self._teacher(batch)
            self._store.write(uri, json.dumps(found).encode())
        return found

    def discard(self) -> None:
        """Removes those of the base model: the split has them now."""
        for uri in [] if self._stays else self._uris:
            folders.discard(self._store, uri)


def with_answers(examples: Sequence[dataset.Example], texts: Sequence[str]) -> list[dataset.Example]:
    """The examples with the answer to each, without those that have none."""
    return [
        dataclasses.replace(one, messages=(*one.prompt, dataset.Message("assistant", text)))
        for one, text in zip(examples, texts, strict=True)
        if text.strip()
    ]


def check(spec: run.Run, local: pathlib.Path, answered: int, taught: int) -> None:
    """Raises Failure(DATASET_INVALID) where no example is left to learn from, or most answers are unusable."""
    train = next(iter(dataset.stream(local / "train.jsonl")), None)
    if train is not None and 2 * taught >= answered:
        return
    raise errors.Failure(
        reasons.Reason.DATASET_INVALID,
        f"training.teacher: {answered - taught} of {answered} answers of {named(spec)} are refused, empty or "
        f"longer than {spec.evaluation.generation.max_new_tokens} tokens, so that there is not enough to learn; ask for short "
        "answers in the prompt, raise evaluation.generation.maxNewTokens, or choose a larger model",
    )


def reference(runner: answers.ModelRunner, examples: Iterable[dataset.Example]) -> answers.Answers:
    """The teacher's answers to test examples as those of a contender, for their tokens; they are not asked again."""
    asked = [runner.script.ask(one, job.Contender.PROMPT) for one in examples]
    prompts = [runner.encoder.prompt(one) for one in asked]
    whole = [runner.encoder.answered(one) for one in asked]
    return answers.Answers([], [one.ids[len(prompt) :] for one, prompt in zip(whole, prompts, strict=True)], prompts)
