"""Gates on public benchmarks, pure: refused before training where none or every model would pass, checked after it.

The same evidence as for gates on metrics (`gates`), paired by question. A measure that has no values of single questions (an F1
over all of them, a corpus BLEU) cannot give any: its value alone decides, and only against a minimum or a maximum.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from finetune_api import job, status
from finetune_trainer.evaluation import evidence, gates, power

NO_FILTER = "none"
"""lm-evaluation-harness's name where a task has only one way to read an answer."""

RIGHT = ("acc", "exact_match", "em")
"""What a measure of right and wrong answers is called, or begins with: acc_norm, exact_match. Known before any model answers."""

FIELD = "evaluation.harness.gates"

Key = tuple[str, str]
"""A measure and a filter."""


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of a task before any model has answered; in preflight.json as its fields."""

    questions: int
    """Those that there are, of which evaluation.harness.maximumExamples are asked at most."""
    measures: dict[str, bool]
    """What the task measures, and whether that has values of single questions."""
    filters: list[str]

    @property
    def keys(self) -> list[Key]:
        return [(measure, filter_) for measure in self.measures for filter_ in self.filters]


@dataclasses.dataclass(frozen=True)
class Measured:
    """One measure of a task, of the base model and of the tuned one."""

    base: float
    tuned: float
    columns: tuple[evidence.Column, evidence.Column] | None
    """Both models' values of single questions; None: there are none."""
    higher_is_better: bool = True


Found = Mapping[str, Mapping[Key, Measured]]
"""By task; a task that could not be run is missing."""


# --- Before training ---


def problem(rules: job.Harness, known: Mapping[str, Known]) -> str | None:
    """The first gate that cannot be decided, that no model could pass, or that every model passes: its field, why, and what to
    do. None where all can."""
    for number, gate in enumerate(rules.required):
        if gate.task in known:
            key = chosen(gate, known[gate.task].keys)
            text = key if isinstance(key, str) else _undecidable(gate, key, known[gate.task], rules.maximum_examples)
            if text:
                return f"{FIELD}[{number}]: {gate.task} {text}"
    return None


def chosen(gate: job.TaskGate, keys: Collection[Key]) -> Key | str:
    """The measure and the filter that a gate means, or why that is not clear."""
    for place, field in enumerate(("measure", "filter")):
        named = getattr(gate, field)
        there = list(dict.fromkeys(key[place] for key in keys))
        listed = ", ".join(there)
        if named is not None and named not in there:
            return f"has no {field} {named}; it has {listed}"
        if named is None and len(there) > 1:
            return f"has several: name one of {listed} in {field}"
        keys = [key for key in keys if named is None or key[place] == named]
    return next(iter(keys), "was not measured")


def _undecidable(gate: job.TaskGate, key: Key, known: Known, limit: int) -> str | None:
    measure = key[0]
    if not known.measures[measure]:
        why = f"{measure} is one value for all questions, without values of single ones, so that there is no evidence"
        if gate.improvement is not None or gate.margin is not None:
            return f"{why} of a difference: set minimum or maximum in place of improvement and margin"
        if gate.confidence > gates.POINT:
            return f"{why} for a confidence of {gate.confidence:g}: set confidence: 0.5, and its value alone decides"
        return None
    if not is_share(measure):
        return None
    if text := _trivial(gate, measure):
        return text
    questions = min(known.questions, limit)
    # Bounded from above alone: passed, if by any, by a model that is always wrong.
    above = gate.minimum is None and gate.improvement is None and gate.margin is None
    extreme = gate if above else gate.model_copy(update={"maximum": None})
    passed, observed = decide(extreme, _extreme(questions, 0.0 if above else 1.0))
    if passed:
        return None
    answers = "wrong" if above else "right"
    return f"`{requirement(gate)}` cannot be passed by any model: with every answer {answers} it is {observed}"


def is_share(measure: str) -> bool:
    """Whether a measure is known to be a share of right answers."""
    return measure in RIGHT or measure.startswith(tuple(f"{one}_" for one in RIGHT))


def _trivial(gate: job.TaskGate, measure: str) -> str | None:
    """Bounds of a share that no model meets, or every model does."""
    share = f"{measure} is a share from 0 to 1"
    for name in ("minimum", "improvement"):
        value = getattr(gate, name)
        if value is not None and value > 1:
            return f"{share}: no model reaches {name}: {value:g}"
    if gate.maximum is not None and gate.maximum < 0:
        return f"{share}: no model gets down to maximum: {gate.maximum:g}"
    always = [
        f"minimum: {gate.minimum:g}" if gate.minimum is not None and gate.minimum <= 0 else "",
        f"maximum: {gate.maximum:g}" if gate.maximum is not None and gate.maximum >= 1 else "",
        f"margin: {gate.margin:g}" if gate.margin is not None and gate.margin >= 1 else "",
    ]
    stated = [gate.minimum, gate.maximum, gate.margin, gate.improvement]
    if sum(one is not None for one in stated) == sum(map(bool, always)):
        return f"{share}: every model passes {' and '.join(filter(None, always))}"
    return None


def _extreme(questions: int, value: float) -> Measured:
    """A model that is always right or never is, beside one that is the opposite."""
    tuned, base = (evidence.mean(np.full(questions, one), share=True) for one in (value, 1 - value))
    return Measured(1 - value, value, (base, tuned))


def short(rules: job.Harness, known: Mapping[str, Known]) -> list[str]:
    """Each gate on a share of right answers for which the questions are too few, with what they can show and how many it
    takes."""
    texts = []
    for gate in rules.required:
        key = chosen(gate, known[gate.task].keys) if gate.task in known else "unknown"
        if isinstance(key, str) or not is_share(key[0]) or not known[gate.task].measures[key[0]]:
            continue
        found = power.of_task(gate, min(known[gate.task].questions, rules.maximum_examples))
        texts += [f"{requirement(gate)}: {one.text}" for one in found if not one.enough]
    return texts


def of_record(found: Mapping[str, Any] | None) -> dict[str, Known]:
    """What preflight recorded, by task."""
    return {task: Known(**fields) for task, fields in (found or {}).items()}


# --- After training ---


def check(required: Sequence[job.TaskGate], found: Found) -> list[status.GateResult]:
    """Each gate with what was measured."""
    results = []
    for gate in required:
        there = found.get(gate.task, {})
        key = chosen(gate, list(there))
        passed, observed, shown = False, f"{gate.task} was not measured", ""
        if there:
            passed, observed = (False, f"{gate.task} {key}") if isinstance(key, str) else decide(gate, there[key])
            shown = "" if isinstance(key, str) else _power(gate, there[key])
        results.append(
            status.GateResult(
                task=gate.task,
                requirement=requirement(gate),
                observed=observed,
                passed=passed,
                power=shown or None,
            )
        )
    return results


def decide(gate: job.TaskGate, one: Measured) -> tuple[bool, str]:
    """Whether a gate passes, and what was measured."""
    relative = gate.improvement is not None or gate.margin is not None
    if not math.isfinite(one.tuned) or (relative and not math.isfinite(one.base)):
        return False, "the value is not a number: a model is broken"
    if one.columns is None:
        if relative or gate.confidence > gates.POINT:
            return False, f"{one.tuned:.4f}; there are no values of single questions, and so no evidence"
        low = gate.minimum is not None and one.tuned < gate.minimum - gates.TOLERANCE
        high = gate.maximum is not None and one.tuned > gate.maximum + gates.TOLERANCE
        return not (low or high), f"{one.tuned:.4f}"
    tuned = one.columns[1]
    passed, observed = True, gates.value_text(tuned)
    for good, words in (gates.above(gate, tuned), gates.below(gate, tuned), _against_base(gate, one)):
        passed &= good
        observed += words
    return passed, observed


def _against_base(gate: job.TaskGate, one: Measured) -> tuple[bool, str]:
    if one.columns is None or (gate.improvement is None and gate.margin is None):
        return True, ""
    base, tuned = one.columns
    words = f", {job.Contender.BASE} {base.value:.4f}"
    least = gate.improvement if gate.margin is None else -gate.margin
    assert least is not None
    found = evidence.compare(tuned, base, lower_is_better=not one.higher_is_better, margin=least)
    # Better by any amount means better: a model that changed nothing does not pass.
    if found.gain < least - gates.TOLERANCE or (least == 0 and found.gain <= gates.TOLERANCE):
        return False, words
    if gate.confidence <= gates.POINT:
        return True, words
    event = "a model that is worse by the margin gets this far" if least < 0 else "so large a gain comes by chance"
    good, doubt = gates.sure(gate, found.p_value, event)
    return good, words + doubt


def _power(gate: job.TaskGate, one: Measured) -> str:
    if one.columns is None or not all(column.share for column in one.columns):
        return ""
    return "; ".join(each.text for each in power.of_task(gate, one.columns[1].examples))


def requirement(gate: job.TaskGate) -> str:
    """For example: arc_easy acc_norm at least 0.5 and not worse than Base by more than 0.02."""
    named = " ".join(part for part in (gate.task, gate.measure, gate.filter and f"({gate.filter})") if part)
    parts = []
    if gate.minimum is not None:
        parts.append(f"at least {gate.minimum:g}")
    if gate.maximum is not None:
        parts.append(f"at most {gate.maximum:g}")
    if gate.improvement is not None:
        parts.append(f"better than Base{f' by at least {gate.improvement:g}' if gate.improvement else ''}")
    if gate.margin is not None:
        parts.append(f"not worse than Base by {gate.margin:g} or more")
    return f"{named} {' and '.join(parts)}"
