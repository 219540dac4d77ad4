"""Optimized: which of a few written prompts is the best with the base model, chosen on validation examples.

Each variant is an instruction on the form of the answer (`instructions`) with a choice of examples. All are asked a few
validation examples at once, the best of them the others, within the budget of the long prompts. Where the job names
intent.prompt.optimizer, that model then improves the best one's instruction (`reflection`).
"""

import dataclasses
import functools
import textwrap
import time
from collections.abc import Mapping, Sequence

from finetune_api import job, results
from finetune_trainer.data import dataset
from finetune_trainer.evaluation import answers, evidence, instructions, metrics, reflection, selection
from finetune_trainer.process import log

FIRST = 16
"""Validation examples that every variant is asked."""

FINALISTS = 3
"""Variants that are asked the others."""

SHARE = 0.5
"""Of the time that is left, what the search may take: the longer prompts come after it."""


SHORT = 160
"""Characters of an instruction in a message."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """The variant that did best, and its answers to the validation examples; None: nothing was tried."""

    found: results.Optimized
    given: answers.Answers | None = None


@dataclasses.dataclass
class _Tried:
    variant: instructions.Variant
    given: answers.Answers
    columns: metrics.Columns
    by: str | None = None
    """The optimizer's model, where that wrote the instruction."""


def choose(
    runner: answers.ModelRunner,
    examples: Sequence[dataset.Example],
    limits: selection.Budget,
    pace: selection.Pace,
    required: Sequence[job.Gate],
    later: Sequence[dataset.Example] = (),
    *,
    retrieved: bool = True,
) -> Choice | None:
    """Tries the variants on these validation examples, all with answers, and sets the best in the runner's script.

    later: the questions that the winner gets afterwards, for which time is reserved. retrieved: whether it was chosen how many
    examples Retrieved gets. None: there is no time for any variant.
    """
    everyone = [one for one in runner.script.variants if retrieved or one.examples is not job.Contender.RETRIEVED]
    first, others = examples[:FIRST], examples[FIRST:]
    taken = _affordable(runner, everyone, first, [*others, *later], limits, pace)
    if not taken:
        return None
    if not examples:
        return Choice(_found(use(runner, taken[0])))
    tried = _ask(runner, taken, first)
    limits.spent += sum(one.given.seconds for one in tried)
    metric = selection.of(required, {one.variant: one.columns for one in tried})[1]
    finalists = sorted(tried, key=functools.partial(_rank, metric))[:FINALISTS]
    if others:
        more = _ask(runner, [one.variant for one in finalists], others)
        limits.spent += sum(one.given.seconds for one in more)
        finalists = [_together(runner, *pair) for pair in zip(finalists, more, strict=True)]
        metric = selection.of(required, {one.variant: one.columns for one in finalists})[1]
    best = min(finalists, key=functools.partial(_rank, metric))
    improved, done = _improved(runner, best, examples, later, limits, pace, metric)
    best = min([best, *improved], key=functools.partial(_rank, metric))
    use(runner, best.variant)
    final = {one.variant: one for one in [*tried, *finalists, *improved]}
    log.info("optimized prompt", metric=metric, tried=len(final), placement=best.variant.placement, by=best.by)
    return Choice(_found(best.variant, metric, final).model_copy(update={"reflection": done}), best.given)


def _improved(
    runner: answers.ModelRunner,
    best: _Tried,
    examples: Sequence[dataset.Example],
    later: Sequence[dataset.Example],
    limits: selection.Budget,
    pace: selection.Pace,
    metric: job.Metric | None,
) -> tuple[list[_Tried], results.Reflection | None]:
    """What the optimizer makes of the best prompt within SHARE of the time that is left; nothing where the job names none."""
    optimizer = runner.script.optimizer
    if optimizer is None or metric is None:
        return [], None
    reserved = pace.seconds(runner, job.Contender.OPTIMIZED, later)
    seconds = max(selection.LEAST, SHARE * (limits.seconds - limits.spent - reserved))
    an_answer = best.given.seconds / max(1, len(best.given.answers))
    if not reflection.time_for(examples, limits, seconds, an_answer):
        return [], None

    def ask(variant: instructions.Variant, asked: Sequence[dataset.Example]) -> answers.Answers:
        return _ask(runner, [variant], asked)[0].given

    search = reflection.Search(optimizer, runner, ask, examples, metric, seconds, an_answer)
    begun = time.monotonic()
    search.run(best.variant, best.given)
    limits.spent += time.monotonic() - begun
    by, rules = optimizer.rules.model, runner.rules
    made = [_Tried(one, given, metrics.measure(given.answers, rules), by) for one, given in search.found.items()]
    return made, reflection.finished(search, limits)


def described(found: results.Optimized | None) -> str:
    """A prompt within a sentence, its instruction shortened."""
    if found is None:
        return "the best of the written prompts"
    examples = {
        job.Contender.FEW_SHOT: ", with a few examples before the question",
        job.Contender.RETRIEVED: ", with the training examples most similar to the question before it",
    }.get(found.examples, "")
    place = "after the question" if found.placement == "Question" else "in the system prompt"
    return f'"{textwrap.shorten(found.instruction, SHORT, placeholder=" ...")}" {place}{examples}'


def use(runner: answers.ModelRunner, variant: instructions.Variant) -> instructions.Variant:
    """From now on the runner asks Optimized like this."""
    runner.script = dataclasses.replace(runner.script, optimized=variant)
    return variant


def again(runner: answers.ModelRunner, found: results.Optimized) -> None:
    """Asks Optimized as it was asked before."""
    use(runner, instructions.Variant(found.instruction, found.placement, found.examples))


def _affordable(
    runner: answers.ModelRunner,
    everyone: Sequence[instructions.Variant],
    first: Sequence[dataset.Example],
    others: Sequence[dataset.Example],
    limits: selection.Budget,
    pace: selection.Pace,
) -> list[instructions.Variant]:
    """The variants that there is time to try, and to ask the other questions if they win; what is left out is named."""
    which, left = job.Contender.OPTIMIZED, max(0.0, limits.seconds - limits.spent)
    search, missed, taken = 0.0, 0.0, []
    for variant in everyone:
        use(runner, variant)
        needed, after = pace.seconds(runner, which, first), pace.seconds(runner, which, others)
        if search + needed <= SHARE * left and search + needed + after <= left:
            taken.append(variant)
            search += needed
        else:
            missed = missed or needed + after
    if len(taken) < len(everyone):
        some = f" with {len(everyone) - len(taken)} of {len(everyone)} prompts" if taken else ""
        limits.left_out.append(
            f"{which}{some}: it would take about {missed:.0f} s, {left:.0f} s of {limits.seconds:.0f} are left"
        )
    return taken


def _ask(
    runner: answers.ModelRunner, variants: Sequence[instructions.Variant], examples: Sequence[dataset.Example]
) -> list[_Tried]:
    """Every variant's answers, in one batch."""
    count, which = len(examples), job.Contender.OPTIMIZED
    scripts = [dataclasses.replace(runner.script, optimized=variant) for variant in variants]
    asked = [script.ask(example, which) for script in scripts for example in examples]
    whole = answers.ask(runner, which, [*examples] * len(variants), written=asked)
    tried = []
    for place, variant in enumerate(variants):
        part = slice(place * count, (place + 1) * count)
        given = answers.Answers(
            whole.answers[part],
            whole.generated[part],
            whole.prompts[part],
            whole.prefill,
            whole.seconds / len(variants),
            answering=whole.answering / len(variants),
        )
        tried.append(_Tried(variant, given, metrics.measure(given.answers, runner.rules)))
    return tried


def _together(runner: answers.ModelRunner, one: _Tried, more: _Tried) -> _Tried:
    given = one.given.and_then(more.given)
    return _Tried(one.variant, given, metrics.measure(given.answers, runner.rules))


def _rank(metric: job.Metric | None, one: _Tried) -> tuple[float, float]:
    """The best is the lowest: by the metric, of equals by the loss."""
    sign = 1 if metric in job.LOWER_IS_BETTER else -1
    loss = one.columns.get(job.Metric.LOSS)
    return sign * one.columns[metric].value if metric else 0.0, loss.value if loss else 0.0


def _found(
    best: instructions.Variant,
    metric: job.Metric | None = None,
    tried: Mapping[instructions.Variant, _Tried] | None = None,
) -> results.Optimized:
    return results.Optimized(
        instruction=best.instruction,
        placement=best.placement,
        examples=best.examples,
        metric=metric,
        tried=[_value(one, metric) for one in (tried or {}).values()],
    )


def _value(one: _Tried, metric: job.Metric | None) -> results.TriedPrompt:
    column = one.columns.get(metric) if metric else None
    low, high = (column and evidence.interval(column)) or (None, None)
    return results.TriedPrompt(
        instruction=one.variant.instruction,
        placement=one.variant.placement,
        examples=one.variant.examples,
        value=column.value if column else None,
        low=low,
        high=high,
        asked=len(one.given.answers),
        by=one.by,
    )
