"""How Retrieved and Optimized are asked in the evaluation: as before training where that was measured, else as
trying on validation examples shows."""

import dataclasses

from finetune_api import job, run
from finetune_trainer.data import dataset
from finetune_trainer.evaluation import answers, contenders, optimized, scoreboard, selection
from finetune_trainer.process import machine
from finetune_trainer.store import storage


def retrieved(
    spec: run.Run,
    store: storage.Storage,
    runner: answers.ModelRunner,
    examples: list[dataset.Example],
    found: scoreboard.Findings,
    limits: selection.Budget,
    pace: selection.Pace,
) -> bool:
    """How many examples Retrieved gets: as before training where that was measured, else by trying. False: no time for any."""
    before = scoreboard.retrieved_before_training(spec, store)
    if before is None:
        choice = selection.choose(runner, few_of_validation(spec), limits, pace, spec.evaluation.stated, examples)
        before = choice.found if choice else None
    if before is None:
        return False
    runner.script = dataclasses.replace(runner.script, retrieved=before.examples)
    found.retrieved = before.model_copy(update={"copies": selection.copies(runner, examples)})
    return True


def prompt(
    spec: run.Run,
    store: storage.Storage,
    runner: answers.ModelRunner,
    examples: list[dataset.Example],
    found: scoreboard.Findings,
    limits: selection.Budget,
    pace: selection.Pace,
) -> bool:
    """Which prompt Optimized gets: as before training where that was measured, else by trying. False: no time for any."""
    shown = found.retrieved is not None
    before = scoreboard.optimized_before_training(spec, store)
    if before is None or (before.examples is job.Contender.RETRIEVED and not shown):
        few, gates = few_of_validation(spec), spec.evaluation.stated
        choice = optimized.choose(runner, few, limits, pace, gates, examples, retrieved=shown)
        before = choice.found if choice else None
    if before is None:
        return False
    optimized.again(runner, before)
    found.optimized = before
    return True


def few_of_validation(spec: run.Run) -> list[dataset.Example]:
    """The validation examples on which prompts are compared, drawn by the seed."""
    validation = dataset.stream(machine.work() / "data" / "validation.jsonl")
    few = [one for one in validation if one.answer is not None]
    return contenders.choose(few, selection.EXAMPLES, spec.training.seed)
