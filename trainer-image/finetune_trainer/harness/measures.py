"""What a task measures, before any model has answered. Without torch: preflight asks for it."""

import math
from collections.abc import Callable

import numpy as np

from finetune_trainer.evaluation import evidence, task_gates
from finetune_trainer.harness import tasks


def known(task: tasks.Task) -> task_gates.Known:
    """What a task will measure."""
    listed = task.built.config.filter_list
    return task_gates.Known(
        questions=task.available,
        measures={name: function(of) is not None for name, of in task.built.aggregation().items()},
        filters=[one["name"] for one in listed] if listed else [task_gates.NO_FILTER],
    )


def function(aggregation: Callable[..., float]) -> Callable[[evidence.Array], evidence.Array] | None:
    """The function of sums over questions that an aggregation of the package is; None: it is none."""
    from lm_eval.api import metrics

    if aggregation in (metrics.mean, metrics.nanmean):
        return evidence.ratio
    if aggregation in (metrics.perplexity, metrics.weighted_perplexity):
        return _perplexity
    return _bits if aggregation is metrics.bits_per_byte else None


def _perplexity(sums: evidence.Array) -> evidence.Array:
    found: evidence.Array = np.exp(-evidence.ratio(sums))
    return found


def _bits(sums: evidence.Array) -> evidence.Array:
    return -evidence.ratio(sums) / math.log(2)
