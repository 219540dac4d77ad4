"""Replay: general examples among the task's, so that the tuned model forgets less (`training.replay`).

general prompts (replay.txt) -> answers that the base model draws at temperature 1 -> a corpus beside the data in storage

The base model's own answers need no data set and no licence, and pull the tuned model towards nothing but the base model: where
both are equal, the expected gradient is zero. They are drawn once, before the adapter exists, and stored; every later attempt
reads them. An answer that was cut at LENGTH tokens has no stop token, so that it does not teach to stop there.
"""

import hashlib
import itertools
import json
import pathlib
from typing import Any

import torch

from finetune_api import reasons, run
from finetune_trainer.data import corpus, dataset, tokens
from finetune_trainer.engine import generate, model
from finetune_trainer.planning import epoch_count
from finetune_trainer.process import errors, log, machine
from finetune_trainer.store import folders, storage
from finetune_trainer.training import processes

PROMPTS = pathlib.Path(__file__).with_name("replay.txt")
"""One a line, none of them a question of the evaluation."""

LENGTH = epoch_count.REPLAY_TOKENS
"""Tokens of an answer, at most."""

REPEATS = 4
"""Answers to one prompt, at most; a job that needs more examples sees the same ones again."""

KEY = "madeFrom"
"""In the folder's manifest: a hash of what decides the answers."""


def load(
    spec: run.Run,
    store: storage.Storage,
    group: processes.ProcessGroup,
    base: Any,
    folder: pathlib.Path,
    where: torch.device,
    examples: int,
) -> corpus.Corpus | None:
    """The general examples of a training with `examples` of its own; None where the job wants none. Raises Failure.

    base: the model without an adapter, on the device `where`; folder: its files.
    """
    count = epoch_count.replayed(examples, spec.training)
    if not count:
        return None
    encoder = tokens.load(folder, spec.training)
    made_from = key(spec, encoder, count)
    if group.first and not stored(store, spec, made_from):
        write(spec, store, encoder, base, where, count, made_from)
    group.wait()
    local = machine.work() / "replay"
    folders.load(store, spec.layout.replay, local)
    return corpus.read(local)


def key(spec: run.Run, encoder: tokens.Encoder, count: int) -> str:
    parts = [
        PROMPTS.read_text(),
        encoder.identity,
        spec.base_model.source,
        spec.base_model.revision,
        spec.training.seed,
    ]
    return hashlib.sha256(json.dumps([*parts, count, LENGTH]).encode()).hexdigest()


def stored(store: storage.Storage, spec: run.Run, made_from: str) -> bool:
    """Whether an earlier attempt stored these answers."""
    found = folders.manifest(store, spec.layout.replay)
    return found is not None and found.extra.get(KEY) == made_from


def write(
    spec: run.Run,
    store: storage.Storage,
    encoder: tokens.Encoder,
    base: Any,
    where: torch.device,
    count: int,
    made_from: str,
) -> None:
    """Draws the answers and stores them as a corpus."""
    texts = PROMPTS.read_text(encoding="utf-8").splitlines()
    prompts = [encoder.prompt(dataset.Example("replay", _asked(text))) for text in texts]
    prompts = [prompt for prompt in prompts if len(prompt) < encoder.max_length]
    if not prompts:
        raise errors.Failure(
            reasons.Reason.INVALID_SPEC,
            f"no general prompt fits into {encoder.max_length} tokens; raise training.maxSequenceLength, or remove "
            "training.replay",
        )
    wanted = min(count, REPEATS * len(prompts))
    chosen = list(itertools.islice(itertools.cycle(prompts), wanted))
    log.info("the base model answers general prompts", answers=wanted, tokens=LENGTH)
    answers = generate.sample(
        base,
        model.head(base),
        chosen,
        encoder.stops,
        LENGTH,
        where,
        samples=1,
        temperature=1.0,
        seed=spec.training.seed,
    )
    local = machine.work() / "replay-made"
    writer = corpus.Writer(local)
    for prompt, [answer] in zip(chosen, answers, strict=True):
        ids = [*prompt, *answer][: encoder.max_length]
        writer.add(ids, [False] * len(prompt) + [True] * (len(ids) - len(prompt)), len(ids) < len(prompt) + len(answer))
    writer.finish(made_from, pairs=False, template=encoder.tokenizer.chat_template)
    folders.save(store, local, spec.layout.replay, {KEY: made_from})


def _asked(text: str) -> tuple[dataset.Message, ...]:
    return dataset.Message("user", text), dataset.Message("assistant", "")
