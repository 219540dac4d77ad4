"""Structured: the best prompt with the base model, its answers held to evaluation.outputSchema while they are written.

It shows what a request with the schema gives without training, so that valid JSON alone is no reason to train. The prompts are
compared by answers that were not held to the schema, so a metric decides that is not about form.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from finetune_api import evaluation, job
from finetune_trainer.data import dataset
from finetune_trainer.evaluation import answers, metrics, selection

LAST = (*selection.BUDGETED, job.Contender.STRUCTURED)
"""Baselines that are asked after the others: what they may take, and how they are asked, follows from these."""

FORM = frozenset({job.Metric.JSON_VALID, job.Metric.JSON_SCHEMA})
"""Metrics that the schema decides."""


def choose(
    runner: answers.ModelRunner,
    required: Sequence[job.Gate],
    measured: Mapping[job.Contender, metrics.Columns],
    examples: Sequence[dataset.Example],
    limits: selection.Budget,
    pace: selection.Pace,
) -> job.Contender:
    """Whose prompt Structured gets, also set in the runner's script: the best one; the best short one where there is no time for
    that."""
    prompt = _use(runner, best_prompt(required, measured))
    if not is_limited(runner, job.Contender.STRUCTURED):
        return prompt
    expected = pace.seconds(runner, job.Contender.STRUCTURED, examples)
    if limits.allows(f"{job.Contender.STRUCTURED} with the prompt of {prompt}", expected):
        return prompt
    short = {which: columns for which, columns in measured.items() if which not in selection.BUDGETED}
    return _use(runner, best_prompt(required, short))


def best_prompt(required: Sequence[job.Gate], measured: Mapping[job.Contender, metrics.Columns]) -> job.Contender:
    """The baseline that is best by another metric than those of FORM, the cheapest of equals; Prompt where none was measured."""
    there = {
        which: {metric: column for metric, column in measured[which].items() if metric not in FORM}
        for which in evaluation.BASELINES
        if which is not job.Contender.STRUCTURED and which in measured
    }
    gates = [gate for gate in required if gate.metric not in FORM]
    return selection.of(gates, there)[0] if there else job.Contender.PROMPT


def is_limited(runner: answers.ModelRunner, which: job.Contender) -> bool:
    """Whether evaluation.baselineBudget limits this contender: by its prompt."""
    return (runner.script.structured if which is job.Contender.STRUCTURED else which) in selection.BUDGETED


def _use(runner: answers.ModelRunner, prompt: job.Contender) -> job.Contender:
    runner.script = dataclasses.replace(runner.script, structured=prompt)
    return prompt
