"""Runs the tasks with both models on the same questions: scores, and paired differences."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from finetune_api import job, results
from finetune_trainer.evaluation import answers, evidence, task_gates
from finetune_trainer.harness import measures, tasks
from finetune_trainer.process import errors, log

BOTH = (job.Contender.BASE, job.Contender.TUNED)

Key = task_gates.Key


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """One model's results in a task."""

    values: dict[Key, float]
    """As the package aggregates them."""
    each: dict[Key, list[Any]]
    """Of each question; None where the metric does not use it."""
    aggregations: dict[str, Callable[..., float]]
    better: dict[str, bool]


def measure(
    runner: answers.ModelRunner,
    listed: Sequence[tasks.Task],
    problems: Sequence[str],
    rules: job.Harness,
    done: Callable[[float], None],
) -> tuple[results.Harness, task_gates.Found]:
    """Every task, by the base model and by the tuned one, and the same as gates need it; `problems` are those of tasks that are
    not available.

    `done` is called with the share that is done. Raises Stopped.
    """
    found: list[results.Benchmark] = []
    gated: dict[str, dict[Key, task_gates.Measured]] = {}
    missing = list(problems)
    for number, task in enumerate(listed):

        def share(part: float, before: int = number) -> None:
            # Only `measure` reports 1: a finished part counts once.
            done(min(0.999, (before + part) / len(listed)))

        try:
            base, tuned = run_both(runner, task, rules, share)
            found += comparisons(task, base, tuned)
            gated[task.name] = measured(base, tuned)
        except (RuntimeError, MemoryError, errors.Failure):
            raise  # of the device or of storage: another attempt may succeed
        except Exception as error:
            missing.append(f"{task.name} could not be run: {errors.describe(error)}")
            log.exception("the evaluation continues without a benchmark")
            continue
        log.info("benchmark done", task=task.name)
    done(1.0)
    harness = results.Harness(
        release=tasks.release(), chat_template=rules.chat_template, benchmarks=found, problems=missing
    )
    return harness, gated


def run_both(
    runner: answers.ModelRunner, task: tasks.Task, rules: job.Harness, done: Callable[[float], None]
) -> Iterator[TaskResult]:
    """The results of the base model and of the tuned one."""
    for turn, who in enumerate(BOTH):

        def share(part: float, before: int = turn) -> None:
            done((before + part) / len(BOTH))

        yield run_task(runner, who, task, rules, share)


def run_task(
    runner: answers.ModelRunner,
    which: job.Contender,
    task: tasks.Task,
    rules: job.Harness,
    done: Callable[[float], None] = lambda share: None,
) -> TaskResult:
    """A contender's results."""
    from lm_eval import evaluator

    from finetune_trainer.harness import player

    task.built.set_fewshot_seed(tasks.FEW_SHOT_SEED)
    with tasks.silenced():
        found = evaluator.evaluate(
            lm=player.Player(runner, which, done),
            task_dict={"tasks": {task.name: task.built}},
            bootstrap_iters=0,
            apply_chat_template=rules.chat_template,
            fewshot_as_multiturn=rules.chat_template,
        )
    values = {}
    for name, value in found["results"][task.name].items():
        metric, _, way = name.partition(",")
        if way and not metric.endswith("_stderr"):
            values[metric, way] = value
    each: dict[Key, list[Any]] = {key: [None] * task.questions for key in values}
    for sample in found["samples"][task.name]:
        for metric in sample["metrics"]:
            each[metric, sample["filter"]][sample["doc_id"]] = sample[metric]
    return TaskResult(values, each, task.built.aggregation(), task.built.higher_is_better())


# --- Numbers ---


def measured(base: TaskResult, tuned: TaskResult) -> dict[Key, task_gates.Measured]:
    """Each metric that is a number."""
    found = {}
    for key, value in base.values.items():
        if isinstance(value, int | float) and isinstance(tuned.values.get(key), int | float):
            higher = base.better.get(key[0]) is not False
            found[key] = task_gates.Measured(value, tuned.values[key], pair(base, tuned, key), higher)
    return found


def comparisons(task: tasks.Task, base: TaskResult, tuned: TaskResult) -> list[results.Benchmark]:
    """A row for each metric that is a number."""
    found = []
    for key, value in base.values.items():
        metric, way = key
        if not isinstance(value, int | float) or key not in tuned.values:
            continue
        higher = base.better.get(metric) is not False
        columns = pair(base, tuned, key)
        gain = tuned.values[key] - value if higher else value - tuned.values[key]
        interval: dict[str, float] = {}
        if columns is not None and min(one.examples for one in columns) > 1:
            better = evidence.compare(columns[1], columns[0], lower_is_better=not higher)
            worse = evidence.compare(columns[0], columns[1], lower_is_better=not higher)
            interval = {
                "low": better.low,
                "high": better.high,
                "p_value": min(1.0, 2 * min(better.p_value, worse.p_value)),
            }
        found.append(
            results.Benchmark(
                task=task.name,
                version=task.version,
                metric=metric,
                filter=None if way == task_gates.NO_FILTER else way,
                few_shot=task.shots,
                examples=task.questions,
                higher_is_better=higher,
                base=score(value, columns and columns[0], base.each[key]),
                tuned=score(tuned.values[key], columns and columns[1], tuned.each[key]),
                gain=_finite(gain),
                **{name: _finite(one) for name, one in interval.items()},
            )
        )
    return found


def pair(base: TaskResult, tuned: TaskResult, key: Key) -> tuple[evidence.Column, evidence.Column] | None:
    """Both models' columns of a metric; None where it is not a function of sums over questions."""
    from lm_eval.api import metrics

    kind = measures.function(base.aggregations.get(key[0], metrics.mean))
    before, after = base.each[key], tuned.each[key]
    if kind is None:
        return None
    if kind is evidence.ratio:
        numbers = _numbers(before), _numbers(after)
        if numbers[0] is None or numbers[1] is None:
            return None
        share = all(set(one[~np.isnan(one)].tolist()) <= {0.0, 1.0} for one in numbers if one is not None)
        return evidence.mean(numbers[0], share=share), evidence.mean(numbers[1], share=share)
    if None in before or None in after:
        return None
    of_one = base.aggregations[key[0]] is metrics.perplexity
    return _column(before, kind, of_one=of_one), _column(after, kind, of_one=of_one)


def _numbers(listed: list[Any]) -> evidence.Array | None:
    try:
        return np.array([math.nan if one is None else float(one) for one in listed], dtype=np.float64)
    except (TypeError, ValueError):
        return None


def _column(
    listed: list[Any], of: Callable[[evidence.Array], evidence.Array], *, of_one: bool = False
) -> evidence.Column:
    """A column of log-probabilities [n], with the numbers of their words or bytes where they have them."""
    parts = np.array([(one, 1.0) if of_one else one for one in listed], dtype=np.float64)
    return evidence.Column(parts, of, np.ones(len(parts), dtype=bool))


def score(value: float, column: evidence.Column | None, each: list[Any]) -> results.Score:
    if column is None or column.examples < 2:
        return results.Score(value=_finite(value))
    low, high = evidence.interval(column) or (None, None)
    error = None
    if column.of is evidence.ratio:
        known = np.array([one for one in each if one is not None], dtype=np.float64)
        error = _finite(float(known.std(ddof=1) / math.sqrt(len(known))))
    return results.Score(value=_finite(value), low=_finite(low), high=_finite(high), stderr=error)


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
