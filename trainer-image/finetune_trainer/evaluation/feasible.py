"""Gates that no answer could pass, and gates that a good model could miss by chance: known before training from the test examples
alone.

Each gate is applied to a model that gives every expected answer, beside baselines that give none. A gate that this model does not
pass is not passed by any: the examples are too few for its bound, or the expected answers are not what it measures.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic

from finetune_api import job, reasons, run
from finetune_trainer.data import dataset, toolcalls, values
from finetune_trainer.evaluation import contenders, gates, metrics, power, task_gates
from finetune_trainer.process import errors, log
from finetune_trainer.store import storage

KNOWN = frozenset(
    {
        job.Metric.EXACT_MATCH,
        job.Metric.NORMALIZED_MATCH,
        job.Metric.JSON_VALID,
        job.Metric.JSON_SCHEMA,
        job.Metric.FIELD_F1,
        job.Metric.ACCURACY,
        job.Metric.MACRO_F1,
        job.Metric.INVALID_LABELS,
        job.Metric.TOOL_CALL_MATCH,
        job.Metric.TOOL_CALL_VALID,
        job.Metric.ROUGE_L,
        job.Metric.CHRF,
        job.Metric.BLEU,
    }
)
"""Metrics of which the value for the expected answers is a bound for every model."""


OPEN = frozenset({job.Metric.LOSS, job.Metric.PERPLEXITY, job.Metric.LENGTH_RATIO})
"""Metrics of answers to test examples that have no scale."""

SCORING = "scoring"
"""Key of preflight's result: the rules by which training scores its adapters. The run file of training has no evaluation, so that
an edit of it leaves a training in its queue."""


def check_frozen(spec: run.Run, store: storage.Storage) -> None:
    """Raises Failure(DATASET_INVALID, INVALID_SPEC) for gates that were edited after preflight froze the split, and that no model
    could pass on its test examples, or on the questions of a benchmark. Every stage that needs a GPU calls it first."""
    if spec.evaluation.harness is not None and spec.evaluation.harness.gates:
        check_benchmarks(spec.evaluation.harness, recorded(spec, store))
    if not any(gate.metric in KNOWN for gate in spec.evaluation.stated):
        return
    examples = frozen(spec, store)
    if examples and (text := problem(spec.evaluation, examples)):
        raise errors.Failure(reasons.Reason.DATASET_INVALID, text)


def check_benchmarks(rules: job.Harness, known: Mapping[str, task_gates.Known]) -> None:
    """Raises Failure(INVALID_SPEC) for a gate on a benchmark that cannot be decided, or that no model or every model passes."""
    if text := task_gates.problem(rules, known):
        raise errors.Failure(reasons.Reason.INVALID_SPEC, text)


def recorded(spec: run.Run, store: storage.Storage) -> dict[str, task_gates.Known]:
    """What preflight recorded of the benchmarks; empty where it did not."""
    return task_gates.of_record((_document(spec, store).get("facts") or {}).get("benchmarks"))


def scoring(spec: run.Run, store: storage.Storage) -> job.Evaluation:
    """The rules that preflight recorded for the scores of training; those of the run file where it recorded none, or what this
    version does not know."""
    known = _document(spec, store).get(SCORING)
    try:
        return spec.evaluation if known is None else job.Evaluation.model_validate(known)
    except pydantic.ValidationError as wrong:
        log.warning("preflight recorded other rules than this version knows", problem=str(wrong))
        return spec.evaluation


def _document(spec: run.Run, store: storage.Storage) -> dict[str, Any]:
    """Preflight's result; empty where there is none."""
    try:
        found: dict[str, Any] = json.loads(store.read(spec.layout.preflight))
    except (errors.NotFound, ValueError):
        return {}
    return found


def frozen(spec: run.Run, store: storage.Storage) -> list[dataset.Example]:
    """The test examples that the evaluation will choose of the frozen split; empty where there is none: the stage itself says
    what is missing."""
    try:
        lines = store.read(f"{spec.examples}/test.jsonl").splitlines()
    except errors.NotFound:
        return []
    chosen = contenders.choose(lines, spec.evaluation.maximum_examples, spec.training.seed)
    return [dataset.from_record(json.loads(line)) for line in chosen]


def short(rules: job.Evaluation, examples: Sequence[dataset.Example]) -> list[str]:
    """Each gate on a share for which these test examples are too few, with what they can show and how many it takes; of a job
    that states no gates, the one that compares with the baselines. Of losses those for which so few prove nothing."""
    answered = [one for one in examples if one.answer is not None]
    measured = metrics.measure([_answer(one, one.answer) for one in answered], rules, KNOWN | {job.Metric.STOPPED})
    if job.Metric.STOPPED not in measured:
        return []
    every, unit = power.independent(measured[job.Metric.STOPPED])
    if rules.gates is None:
        default = job.Gate(metric=job.Metric.EXACT_MATCH, over="BestBaseline")
        named = "better than the best baseline in right answers"
        if every < gates.FEWEST:
            return [f"{named}: {every} {unit} prove nothing, and the values alone decide"]
        return [f"{named}: {one.text}" for one in power.before(default, every, unit) if not one.enough]
    texts = []
    for gate in rules.gates:
        if gate.metric in measured and measured[gate.metric].share:
            counted, _ = power.independent(measured[gate.metric])
        elif gate.metric in job.PAIRWISE and rules.judge is not None:
            counted = min(every, rules.judge.maximum_examples)
        else:
            least = _fewest(gate)
            if every < least:
                texts.append(f"{gates.requirement(gate)}: {every} {unit} prove nothing; it takes {least} at least")
            continue
        found = power.before(gate, counted, unit)
        texts += [f"{gates.requirement(gate)}: {one.text}" for one in found if not one.enough]
    return texts


def _fewest(gate: job.Gate) -> int:
    """The fewest test examples that prove anything of a metric without a scale; 0 where none are required."""
    bounded = gate.minimum is not None or gate.maximum is not None
    if gate.metric not in OPEN or gate.confidence <= gates.POINT or (gates.replaces(gate) and not bounded):
        return 0
    return math.ceil(math.log2(1 / (1 - gate.confidence)) - gates.TOLERANCE)


def shares(rules: job.Evaluation, examples: Sequence[dataset.Example]) -> set[job.Metric]:
    """The metrics of these examples that are shares of answers."""
    found = metrics.measure([_answer(one, one.answer) for one in examples if one.answer is not None], rules, KNOWN)
    return {metric for metric, column in found.items() if column.share}


def problem(rules: job.Evaluation, examples: Sequence[dataset.Example]) -> str | None:
    """Which gates cannot pass on these test examples, why, and what to do; None where all can."""
    known = [gate for gate in rules.stated if gate.metric in KNOWN]
    if not known:
        return None
    measured = frozenset(gate.metric for gate in known)
    best = metrics.measure([_answer(one, one.answer) for one in examples], rules, measured)
    worst = metrics.measure([_answer(one, "") for one in examples], rules, measured)
    found: gates.Values = dict.fromkeys([*job.Contender, *(job.Contender(one.name) for one in rules.others)], worst)
    found[job.Contender.TUNED] = best
    failed = [
        (gate, result)
        for gate, result in zip(known, gates.check([_bounded(gate) for gate in known], found), strict=True)
        if not result.passed
    ]
    if not failed:
        return None
    gate, result = failed[0]
    why = _why(gate.metric, rules, examples)
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    return (
        f"the gate `{gates.requirement(gate)}`{more} cannot be passed by any model: with every answer as expected it is "
        f"{result.observed}{why and f'. {why}'}"
    )


def _answer(example: dataset.Example, text: str | None) -> metrics.Answer:
    called = None
    if example.tools is not None and example.messages:
        right = text is not None and text == example.answer
        called = toolcalls.CallScore(right, right if example.messages[-1].calls else None)
    return metrics.Answer(text, example.answer, 0.0, 0, called=called, group=example.group)


def _bounded(gate: job.Gate) -> job.Gate:
    """The gate without what is not known here, or not best for a model that is always right: a revision that serves, and bounds
    on the other side."""
    beside = "minimum" if gate.metric in job.LOWER_IS_BETTER else "maximum"
    changes: dict[str, None] = {beside: None}
    if gate.over is job.Contender.SERVING:
        changes |= {"over": None, "improvement": None}
    return gate.model_copy(update=changes)


def _why(metric: job.Metric, rules: job.Evaluation, examples: Sequence[dataset.Example]) -> str:
    """The first expected answer that is not what the metric measures, and what to do."""
    for one in examples:
        if one.answer is not None and (text := _unlike(metric, rules, one.answer)):
            return f"{one.source}: the expected answer {text}. Correct the answers, or the gate"
    return ""


def _unlike(metric: job.Metric, rules: job.Evaluation, expected: str) -> str:
    shown = repr(expected if len(expected) <= 40 else expected[:39] + "…")
    if metric in {job.Metric.ACCURACY, job.Metric.MACRO_F1, job.Metric.INVALID_LABELS}:
        known = {metrics.label(one) for one in rules.labels or ()}
        return "" if metrics.label(expected) in known else f"{shown} is none of evaluation.labels"
    if metric not in {job.Metric.JSON_VALID, job.Metric.JSON_SCHEMA, job.Metric.FIELD_F1}:
        return ""
    try:
        value = values.parsed(expected)
    except ValueError:
        return f"{shown} is not JSON"
    if metric is job.Metric.JSON_SCHEMA and rules.output_schema is not None:
        misfit = values.misfit(rules.output_schema, value)
        return f"{shown} does not fit evaluation.outputSchema: {misfit}" if misfit else ""
    if metric is job.Metric.FIELD_F1 and not isinstance(value, dict | list):
        return f"{shown} has no fields"
    return ""
