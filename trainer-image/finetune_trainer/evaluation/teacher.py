"""The base model with its prompt answers every example, before training (training.teacher): sequence-level distillation.

frozen split without answers -> greedy answers with intent.prompt.system -> the same split with them in `taught/`, which training,
baseline and evaluation read in place of it. Written once; the manifest names split, prompt and limit.

An answer that was cut or is empty teaches nothing, and is left out of all splits.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterable

from finetune_api import job, reasons, run
from finetune_trainer.data import corpus, dataset
from finetune_trainer.evaluation import answers
from finetune_trainer.process import errors, log, machine
from finetune_trainer.store import folders, storage

TOGETHER = 512
"""Examples that are answered at once."""

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
        f"; {left} of {number} answers with the prompt are empty or longer than {spec.evaluation.generation.max_new_tokens} "
        "tokens and are left out: raise evaluation.generation.maxNewTokens (and then run again)"
    )


def write(spec: run.Run, store: storage.Storage, runner: answers.ModelRunner, done: Callable[[int, int], None]) -> None:
    """Answers every example of the frozen split and stores the result. done: called with answered and all examples. Raises
    Failure where too few answers are usable."""
    raw, local = machine.work() / "questions", machine.work() / "taught"
    split = folders.load(store, spec.layout.data, raw, only={f"{name}.jsonl" for name in dataset.SPLITS})
    local.mkdir(parents=True, exist_ok=True)
    encoder = runner.encoder
    total = sum(1 for name in dataset.SPLITS for _ in dataset.stream(raw / f"{name}.jsonl"))
    log.info("the base model answers with the prompt", examples=total)
    answered = taught = 0
    for name in dataset.SPLITS:
        with (local / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            stream = dataset.stream(raw / f"{name}.jsonl")
            while batch := list(itertools.islice(stream, TOGETHER)):
                usable = answer(runner, batch)
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


def answer(runner: answers.ModelRunner, examples: list[dataset.Example]) -> list[dataset.Example]:
    """The examples with the base model's answer to each, without those that it does not end, or gives none to."""
    asked = [runner.script.ask(one, job.Contender.PROMPT) for one in examples]
    found = runner.engine.greedy(
        job.Contender.PROMPT,
        [runner.encoder.prompt(one) for one in asked],
        runner.ending(job.Contender.PROMPT),
        lambda count: None,
    )
    made = []
    for one, ids in zip(examples, found, strict=True):
        text, _ = answers.decode_answer(runner.encoder, one, ids)
        if text.strip() and ids[-1] in runner.encoder.stops:
            made.append(dataclasses.replace(one, messages=(*one.prompt, dataset.Message("assistant", text))))
    return made


def check(spec: run.Run, local: pathlib.Path, answered: int, taught: int) -> None:
    """Raises Failure(DATASET_INVALID) where no example is left to learn from, or most answers are unusable."""
    train = next(iter(dataset.stream(local / "train.jsonl")), None)
    if train is not None and 2 * taught >= answered:
        return
    raise errors.Failure(
        reasons.Reason.DATASET_INVALID,
        f"training.teacher: {answered - taught} of {answered} answers of the base model with intent.prompt.system are empty or "
        f"longer than {spec.evaluation.generation.max_new_tokens} tokens, so that there is not enough to learn; ask for short "
        "answers in the prompt, raise evaluation.generation.maxNewTokens, or choose a larger base model",
    )


def reference(runner: answers.ModelRunner, examples: Iterable[dataset.Example]) -> answers.Answers:
    """The teacher's answers to test examples as those of a contender, for their tokens; they are not asked again."""
    asked = [runner.script.ask(one, job.Contender.PROMPT) for one in examples]
    prompts = [runner.encoder.prompt(one) for one in asked]
    whole = [runner.encoder.answered(one) for one in asked]
    return answers.Answers([], [one.ids[len(prompt) :] for one, prompt in zip(whole, prompts, strict=True)], prompts)
