"""The largest micro-batch is tried before the first step. Where a GPU's memory runs out, then or later, all processes of a
training take half the micro-batch together, instead of ending.

    fits(loop, passes) -> a vote of all processes -> halve(loop) -> the passes again

Where the trainer's own passes fail at that size in another way, which the comparison at start has not seen, all take those of
transformers.

Where the frozen layers are sharded, the others wait within the pass for the one that ran out: the attempt ends, and the next one
halves.
"""

import dataclasses
import functools
import gc
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from finetune_api import job
from finetune_trainer.data import corpus
from finetune_trainer.engine import prefix_tree
from finetune_trainer.planning import memory
from finetune_trainer.process import errors, log, signals
from finetune_trainer.training import checkpoint

if TYPE_CHECKING:
    from finetune_trainer.training import loop


FITS, SHORT, FAILED = 0, 1, 2
"""What the largest micro-batch did, in the order of what it takes."""


def settle(training: "loop.Loop") -> None:
    """Passes and micro-batch with which the training begins, in all processes. Raises torch.OutOfMemoryError where none fits, and
    what passes raise that no others can replace."""
    while worst := training.group.maximum(tried(training)):
        if worst == FAILED and training.standard is not None:
            release(training)
            training.engine, training.setup = training.standard()
            training.standard = None
            log.warning("all processes train through transformers' passes", tokens=training.setup.tokens)
        else:
            halve(training)


def tried(training: "loop.Loop") -> int:
    """Runs the largest micro-batch in this process."""
    try:
        return FITS if fits(training, functools.partial(try_largest, training)) else SHORT
    except Exception as problem:
        if training.standard is None or isinstance(problem, errors.Failure):
            raise
        log.warning("the trainer's own passes failed", problem=errors.describe(problem)[:300])
    return FAILED


def try_largest(training: "loop.Loop") -> None:
    """Runs the largest possible micro-batch and discards the result: a lack of memory shows in the first minute."""
    begun, lengths = time.monotonic(), training.data.train.lengths
    examples = sorted(range(training.data.train.examples), key=lambda index: -training.length(index, lengths))
    rows: list[prefix_tree.TokenRow] = []
    size = 0
    for index in examples[: training.plan.batch_size]:
        if size and size + training.length(index, lengths) > training.setup.tokens:
            break
        rows += training.rows(training.data.train, index)
        size += training.length(index, lengths)
    # The first tokens differ, so that nothing is shared.
    distinct = [prefix_tree.TokenRow(np.concatenate([[at], row.ids[1:]]), row.learned) for at, row in enumerate(rows)]
    random = checkpoint.randomness()
    signals.check()
    try:
        units = max(1, training.objective.units(distinct))
        training.objective.learn(training.engine, distinct, units)
    finally:
        training.optimizer.zero_grad(set_to_none=True)
        checkpoint.restore_randomness(random)
    log.info("the largest micro-batch fits", tokens=size, seconds=round(time.monotonic() - begun, 2))


def fits(training: "loop.Loop", passes: Callable[[], None]) -> bool:
    """Runs passes that exchange nothing with other processes; whether memory sufficed for them in this one. Raises what they
    raise, also for a lack of memory where the frozen layers are sharded."""
    try:
        passes()
    except Exception as problem:
        if training.sharded or not errors.out_of_memory(problem):
            raise
        log.warning("memory is short", tokens=training.setup.tokens, problem=errors.describe(problem)[:300])
    else:
        return True
    release(training)
    return False


def release(training: "loop.Loop") -> None:
    """Frees what passes have left."""
    training.optimizer.zero_grad(set_to_none=True)
    training.engine.release()
    gc.collect()
    if training.where.type == "cuda":
        torch.cuda.empty_cache()


def halve(training: "loop.Loop") -> None:
    """Half the micro-batch from now on, and activations computed again, where the job allows it; to be called by all processes,
    whose micro-batches may differ. Raises torch.OutOfMemoryError in all where it is one example in any of them already."""
    smaller = halved(training.setup, training.spec.training.gradient_checkpointing, longest(training))
    if not training.group.every(smaller is not None) or smaller is None:
        raise torch.OutOfMemoryError(
            f"the smallest micro-batch, {training.setup.tokens} tokens, does not fit one of the processes"
        )
    release(training)
    if smaller.checkpointing and not training.setup.checkpointing:
        training.engine.checkpoint()
    training.setup = smaller
    log.warning("all processes take half the micro-batch", tokens=smaller.tokens, checkpointing=smaller.checkpointing)
    added = f"in micro-batches of {smaller.tokens} tokens, since memory was short for larger ones"
    before = (training.engine.note or "").partition("in micro-batches of")[0].removesuffix("; ")
    training.engine.note = f"{before}; {added}" if before else added


def halved(setup: memory.Setup, wanted: job.GradientCheckpointing, longest: int) -> memory.Setup | None:
    """The next smaller settings; None where there are none. longest: tokens of the longest example, which is never cut."""
    checkpointing = setup.checkpointing or wanted is not job.GradientCheckpointing.DISABLED
    tokens = max(min(longest, setup.tokens), setup.tokens // 2)
    if (tokens, checkpointing) == (setup.tokens, setup.checkpointing):
        return None
    return dataclasses.replace(setup, tokens=tokens, checkpointing=checkpointing)


def longest(training: "loop.Loop") -> int:
    """Tokens of the longest example, of the task or general."""
    sources: Sequence[corpus.Corpus | None] = (training.data.train, getattr(training.data, "replay", None))
    return max(
        training.length(index, source.lengths)
        for source in sources
        if source is not None
        for index in range(source.examples)
    )
