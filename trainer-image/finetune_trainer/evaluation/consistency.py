"""Consistency: how often sampled answers to one question agree, of base and tuned model."""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from finetune_api import job
from finetune_trainer.data import dataset
from finetune_trainer.evaluation import answers, evidence, metrics


def agreement(texts: list[str], folded: Callable[[str], str] = metrics.normalized) -> float:
    """The share of pairs that are equal once folded; by default without case, punctuation and white space."""
    pairs = list(itertools.combinations(map(folded, texts), 2))
    return sum(one == other for one, other in pairs) / len(pairs)


def measure(
    asked: answers.ModelRunner,
    which: job.Contender,
    examples: list[dataset.Example],
    rules: job.Consistency,
    seed: int,
    done: Callable[[float], None],
) -> evidence.Column:
    """A row for each example: those beyond rules.maximumExamples, and plain texts, are not asked."""
    chosen = [place for place, example in enumerate(examples) if example.answer is not None][: rules.maximum_examples]
    prompts = [asked.encoder.prompt(asked.script.ask(examples[place], which)) for place in chosen]
    found = asked.engine.sample(
        which, prompts, asked.ending(which), rules, seed, lambda count: done(count / max(1, len(prompts)))
    )
    folded = metrics.label if asked.rules.labels else metrics.normalized
    values = np.full(len(examples), np.nan)
    for place, samples in zip(chosen, found, strict=True):
        decoded = (asked.encoder.tokenizer.decode(ids, skip_special_tokens=True) for ids in samples)
        texts = [answers.without_reasoning(text, examples[place]) for text in decoded]
        values[place] = agreement(texts, folded)
    return dataclasses.replace(evidence.mean(values), bounded=True)
