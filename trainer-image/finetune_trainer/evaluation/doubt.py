"""How the doubt that a gate allows is shared in the baseline, and how many examples a prompt takes there. Pure.

Each contender, each of the ways in which it may be asked, and each look at its results may pass by chance. The
contenders share the doubt equally (Bonferroni); one whose prompt is chosen by results divides its share among all prompts that
it may get. So a search makes nothing stricter but itself.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from finetune_api import course, evaluation, job, run
from finetune_trainer.evaluation import contenders, evidence, gates, power

ROUNDS = (32, 64, 128, 256, 512)
"""Numbers of examples after which the gates are checked."""


def looks(examples: Any) -> Any:
    """How often the gates are checked on so many examples."""
    return np.searchsorted(ROUNDS, examples) + 1


@dataclasses.dataclass(frozen=True)
class Doubt:
    """The shares of these contenders."""

    ways: Mapping[job.Contender, int]
    """In how many ways each may be asked."""

    def gate(self, gate: job.Gate, which: job.Contender, examples: int) -> job.Gate:
        """The gate as a prompt must pass it: only its bounds, at the confidence of its share."""
        confidence = gate.confidence
        if confidence > gates.POINT:
            confidence = 1 - (1 - confidence) / (self._shares(which) * int(looks(examples)))
        return gate.model_copy(update={"over": None, "improvement": None, "confidence": confidence})

    def needed(
        self, gate: job.Gate, which: job.Contender, planned: int, share: float | None = None, beyond: int = 0
    ) -> int | None:
        """The fewest examples, more than `beyond`, with which this share of them passes, or any does; None: more than power.MOST.
        planned: examples of the baseline, which is looked at as often as they allow."""
        from scipy import stats

        counts = np.arange(beyond + 1, power.MOST + 1)
        passes = np.ones(len(counts), dtype=bool)
        taken = np.zeros(len(counts))
        allowed = (1 - gate.confidence) / (self._shares(which) * looks(np.maximum(counts, planned)))
        for hits, bound in ((True, gate.minimum), (False, gate.maximum)):
            if bound is None or not 0 < bound < 1:
                continue
            least = stats.binom.isf(allowed, counts, bound if hits else 1 - bound) + 1
            taken += least
            if share is not None:
                passes &= np.floor((share if hits else 1 - share) * counts + evidence.ROUNDING) >= least
        found = np.flatnonzero(passes & (taken <= counts))
        return int(counts[found[0]]) if len(found) else None

    def _shares(self, which: job.Contender) -> int:
        return len(self.ways) * self.ways[which]


def among(open_: Sequence[job.Contender], written: int = 0) -> Doubt:
    """Retrieved may be asked with each number of examples, Optimized with each of so many prompts, Structured and another model
    with the prompt that did best with the base model."""
    searched = {job.Contender.RETRIEVED: len(contenders.OPTIONS), job.Contender.OPTIMIZED: max(1, written)}
    ways = {which: searched.get(which, 1) for which in open_}
    prompts = [one for one in evaluation.BASELINES if one is not job.Contender.STRUCTURED]
    for which in open_:
        if which is job.Contender.STRUCTURED or which.is_candidate:
            may_have = contenders.PROMPTS if which.is_candidate else prompts
            ways[which] = max(1, sum(ways.get(one, 0) for one in may_have))
    return Doubt(ways)


def met(required: Sequence[job.Gate], values: gates.Values, which: job.Contender) -> bool:
    """Whether a contender meets the gates' bounds by its values alone."""
    by_value = {"over": None, "improvement": None, "confidence": gates.POINT}
    return all(one.passed for one in gates.check([one.model_copy(update=by_value) for one in required], values, which))


@dataclasses.dataclass(frozen=True)
class Undecided:
    """A contender that meets the bounds by its values, on too few examples to be sure."""

    which: job.Contender
    examples: int
    needed: int | None
    """With so many it would pass if its values stayed as they are; None: more than power.MOST, or not known."""
    unit: str


def undecided(shared: Doubt, required: Sequence[job.Gate], values: gates.Values, planned: int) -> list[Undecided]:
    """Those for which the fewest more examples would do come first. planned: as in `Doubt.needed`."""
    made = [
        _undecided(shared, required, values[which], which, planned) for which in values if met(required, values, which)
    ]
    return sorted(made, key=lambda one: one.needed or power.MOST + 1)


def _undecided(
    shared: Doubt,
    required: Sequence[job.Gate],
    columns: Mapping[job.Metric, evidence.Column],
    which: job.Contender,
    planned: int,
) -> Undecided:
    there = [(gate, columns[gate.metric]) for gate in required]
    needed: list[int | None] = []
    for gate, column in there:
        strict = shared.gate(gate, which, planned)
        if not gates.check([strict], {which: dict(columns)}, which)[0].passed:
            counted, _ = power.independent(column)
            needed.append(shared.needed(gate, which, planned, column.value, counted) if column.share else None)
    known = [one for one in needed if one is not None]
    _, unit = power.independent(there[0][1])
    examples = min(column.examples for _, column in there)
    return Undecided(which, examples, max(known) if len(known) == len(needed) and known else None, unit)


def short(spec: run.Run, shares: Collection[job.Metric], validation: int) -> list[str]:
    """Each gate on one of these shares for which no prompt can be shown to be enough on so many validation examples, whatever it
    answers, if each contender that may take part does."""
    if not course.measures_a_baseline(spec.intent, spec.evaluation):
        return []
    asked = min(validation, spec.evaluation.maximum_examples)
    shared = among(_taking_part(spec))
    texts = []
    for gate in spec.evaluation.absolute:
        if gate.metric not in shares or gate.confidence <= gates.POINT:
            continue
        needed = shared.needed(gate, job.Contender.BASE, asked)
        if needed is None or needed > asked:
            takes = f"{needed:,}" if needed else f"more than {power.MOST:,}"
            takes = f"{takes} validation examples where every contender is asked"
            texts.append(f"{gates.requirement(gate)} takes {takes}, and there are {asked:,}")
    return texts


def _taking_part(spec: run.Run) -> list[job.Contender]:
    """The baselines that the job has a prompt for, as far as its spec shows, and its candidates."""
    prompt, rules = spec.intent.prompt, spec.evaluation
    missing = {
        job.Contender.PROMPT: prompt.system is None,
        job.Contender.FEW_SHOT: not prompt.few_shot,
        job.Contender.RAG: spec.intent.retrieval is None,
        job.Contender.STRUCTURED: rules.output_schema is None,
    }
    asked = [which for which in evaluation.BASELINES if which in rules.baselines and not missing.get(which)]
    return list(dict.fromkeys([job.Contender.BASE, *asked, *(job.Contender(one.name) for one in rules.others)]))
