"""Is fine-tuning the right tool? A list of rules, each a pure function named as a fact, applied before a GPU is requested.

run.Run, measurements.Measurements -> advise -> Advice, the weightiest first -> `verdict`

A rule returns None where its fact is not true. preflight.json has its name and its text. docs/guides/when-to-fine-tune.md
explains the reasons.
"""

import dataclasses
import enum
from collections.abc import Callable, Iterator
from typing import Any

from finetune_api import candidates, job, run
from finetune_api.reasons import Reason
from finetune_trainer.planning import effort, measurements
from finetune_trainer.process import progress

FEW = 0.25
"""Share of dataset.minimumExamples below which the different examples count as too few."""

COPIED = 0.5
"""Share of near copies among the examples from which the advisor mentions them."""

COUNTED = 1000
"""Examples up to which near copies are counted exactly; of more, a sample shows large groups only."""

CONSTANT, ENOUGH = 0.99, 20
"""Share of one answer from which there is nothing to learn, and the examples that it takes to say so."""

FACTUAL = 0.5
"""Share of answers with facts from which the data look like knowledge."""

USUAL = 8_000_000_000
"""Parameters of the usual base model to start with."""

DAY = 86_400.0

OFTEN = (job.ChangeFrequency.DAILY, job.ChangeFrequency.WEEKLY)
UNFIT = frozenset({job.Goal.KNOWLEDGE, job.Goal.GENERAL_CAPABILITY})
"""Goals that fine-tuning does not reach."""


class Weight(enum.IntEnum):
    """The effect of advice on the verdict."""

    NOTE = 0
    """None."""
    CAUTION = 1
    AGAINST = 2
    """NotRecommended; under Enforce the job ends."""


@dataclasses.dataclass(frozen=True)
class Advice:
    """The advice of a rule."""

    text: str
    weight: Weight = Weight.NOTE
    reason: Reason = Reason.FINE_TUNING_NOT_RECOMMENDED
    """Why the job ends, if it does."""
    rule: str = ""

    def document(self) -> dict[str, Any]:
        """The advice for preflight.json."""
        return {"rule": self.rule, "weight": self.weight.name.capitalize(), "reason": self.reason, "text": self.text}


Rule = Callable[[run.Run, measurements.Measurements], Advice | None]


def advise(spec: run.Run, measured: measurements.Measurements) -> list[Advice]:
    """All advice, the weightiest first, the three questions last; empty under Ignore."""
    if spec.intent.advice is job.Advice.IGNORE:
        return []
    return [*sorted(_advice(spec, measured, RULES), key=lambda one: -one.weight), *_advice(spec, measured, QUESTIONS)]


def _advice(spec: run.Run, measured: measurements.Measurements, rules: tuple[Rule, ...]) -> Iterator[Advice]:
    for rule in rules:
        advice = rule(spec, measured)
        if advice is not None:
            yield dataclasses.replace(advice, rule=rule.__name__)


# -- enough data --


def examples_are_too_few(spec: run.Run, measured: measurements.Measurements) -> Advice | None:
    least = spec.dataset.minimum_examples
    if measured.train >= least:
        return None
    text = (
        f"{measured.train} training examples are fewer than the {least} of dataset.minimumExamples: collect hundreds, or use a "
        "prompt with a few of them as examples."
    )
    return Advice(text, Weight.AGAINST, Reason.TOO_FEW_EXAMPLES)


def examples_are_near_copies(spec: run.Run, measured: measurements.Measurements) -> Advice | None:
    least = spec.dataset.minimum_examples
    if measured.distinct is None or not _mostly_copies(spec, measured):
        return None
    text = (
        f"Of {measured.train} training examples about {_two_digits(measured.distinct)} differ in more than a word or "
        "a number: copies add little. Collect different cases, or use a prompt with one example of each kind."
    )
    few = measured.distinct < FEW * least
    return Advice(text, Weight.AGAINST if few else Weight.CAUTION, Reason.TOO_FEW_EXAMPLES)


def _mostly_copies(spec: run.Run, measured: measurements.Measurements) -> bool:
    limit = min(spec.dataset.minimum_examples, COPIED * measured.train)
    return (
        measured.distinct is not None and measured.train >= spec.dataset.minimum_examples and measured.distinct < limit
    )


def answer_is_always_the_same(spec: run.Run, measured: measurements.Measurements) -> Advice | None:
    if measured.top_answer is None or measured.top_answer < CONSTANT or measured.train < ENOUGH:
        return None
    text = (
        f"{measured.top_answer:.0%} of the answers are the same: a task with one answer does not need a model. Check "
        "that the right field is the answer."
    )
    return Advice(text, Weight.AGAINST, Reason.FINE_TUNING_NOT_RECOMMENDED)


# -- the right reason --


def goal_is_knowledge(spec: run.Run, measured: measurements.Measurements) -> Advice | None:
    if job.Goal.KNOWLEDGE not in spec.intent.goals:
        return None
    text = (
        "Knowledge is not learned well by fine-tuning: it changes how a model behaves, facts stay vague and become "
        "outdated. Retrieve the documents and put them into the prompt (RAG)"
    )
    return _goal(spec, text, "fine-tune for how to answer from them")


def goal_is_general_capability(spec: run.Run, measured: measurements.Measurements) -> Advice | None:
    if job.Goal.GENERAL_CAPABILITY not in spec.intent.goals:
        return None
    text = (
        "General capability does not grow by fine-tuning on one task: at other tasks the model tends to get worse. "
        "Choose a better base model"
    )
    return _goal(spec, text, "measure what is forgotten with a gate on Forgetting")


def _goal(spec: run.Run, text: str, instead: str) -> Advice:
    if UNFIT.issuperset(spec.intent.goals):
        return Advice(f"{text}.", Weight.AGAINST)
    return Advice(f"{text}; {instead}.", Weight.CAUTION)


def answers_look_like_facts(spec: run.Run, measured: measurements.Measurements) -> Advice | None:
    if job.Goal.KNOWLEDGE in spec.intent.goals or not _factual(measured):
        return None
    assert measured.novelty is not None
    place = next(iter(measured.novelty["places"]), "")
    text = (
        f"The data look like knowledge: {measured.novelty['share']:.0%} of the answers have numbers, names or rare "
        "words that neither their prompts nor other answers have, or differ for each name that the same question is about"
        f"{f' (such as {place})' if place else ''}. This is a guess from their wording; if the model is to know these answers, "
        "retrieve the facts instead (RAG)."
    )
    return Advice(text, Weight.CAUTION)


def _factual(measured: measurements.Measurements) -> bool:
    return measured.novelty is not None and bool(measured.novelty["share"] >= FACTUAL)


def requirements_change_often(spec: run.Run, measured: measurements.Measurements) -> Advice | None:
    every = spec.intent.change_frequency
    if every not in OFTEN:
        return None
    text = (
        f"Requirements that change {every.lower()} change faster than a model can be trained, measured and rolled out: keep them "
        "in a prompt, or in documents that are retrieved (RAG)."
    )
    return Advice(text, Weight.AGAINST)


def requirements_change_monthly(spec: run.Run, measured: measurements.Measurements) -> Advice | None:
    if spec.intent.change_frequency is not job.ChangeFrequency.MONTHLY:
        return None
    text = (
        "Requirements that change monthly mean training, measuring and rolling out each month: fine-tune what stays, such as "
        "format and style, and keep what changes in the prompt."
    )
    return Advice(text, Weight.CAUTION)


# -- the right size --


def base_model_is_large(spec: run.Run, measured: measurements.Measurements) -> Advice | None:
    if measured.parameters is None or measured.parameters <= candidates.LARGE:
        return None
    size = f"The base model has {measured.parameters / 1e9:.0f} billion parameters"
    # The job's own candidates were measured by the same gates.
    found = [one for one in spec.measured or [] if one.job == spec.name] or spec.measured or []
    records = {result: [one for one in found if one.result == result] for result in ("Passed", "Missed", "Undecided")}
    if enough := records["Passed"]:
        text = f"{size}, and on the same data {_reached(enough[-1])} passed the gates of its job: use that one."
        return Advice(text, Weight.CAUTION)
    if missed := records["Missed"]:
        return Advice(f"{size}. On the same data {_reached(missed[0])} was shown to miss a gate: {missed[0].message}")
    undecided = "".join(
        f" On the same data {_reached(one)} missed a gate, but not by evidence." for one in records["Undecided"][:1]
    )
    text = (
        f"{size}: training and serving cost about {measured.parameters / USUAL:.0f} times those of one with 8.{undecided} Go "
        "larger only after measuring that a smaller one is not enough: list both in baseModel.candidates, and the smaller one "
        "is trained first."
    )
    return Advice(text, Weight.CAUTION)


def _reached(one: candidates.Measured) -> str:
    return f"{one.model} ({one.parameters / 1e9:.1f} billion, job {one.job})"


def experts_do_not_learn(spec: run.Run, measured: measurements.Measurements) -> Advice | None:
    if not measured.experts or spec.training.lora.target_modules is job.Modules.ATTENTION:
        return None
    layers = f" ({', '.join(measured.layers[:8])})" if measured.layers else ""
    text = (
        f"The base model is a mixture of {measured.experts} experts: the adapter learns in its linear layers{layers}; the "
        "experts themselves stay as they are. A dense model learns in all of its layers."
    )
    return Advice(text, Weight.CAUTION)


def reasoning_is_left_to_the_answer(spec: run.Run, measured: measurements.Measurements) -> Advice | None:
    if not measured.closed:
        return None
    text = (
        "The base model's chat template begins every answer with an open reasoning block (<think>). Training, evaluation and "
        "server use it without that block: clients receive answers as the data have them, with reasoning where those have it."
    )
    return Advice(text)


def memory_is_short(spec: run.Run, measured: measurements.Measurements) -> Advice | None:
    return Advice(measured.memory_advice, Weight.CAUTION) if measured.memory_advice else None


def training_takes_days(spec: run.Run, measured: measurements.Measurements) -> Advice | None:
    duration = effort.seconds(spec, measured.work)
    if duration is None or duration < DAY:
        return None
    text = (
        f"Training is estimated to take {progress.duration(duration)}: more GPUs, a smaller base model or fewer epochs shorten "
        "it; check that activeDeadlineSeconds allows it."
    )
    return Advice(text)


def test_examples_are_too_few(spec: run.Run, measured: measurements.Measurements) -> Advice | None:
    capped = measured.test > spec.evaluation.maximum_examples
    remedy = "Raise evaluation.maximumExamples" if capped else "Hold out more examples (dataset.test)"
    return _short(measured.short_gates, f"{remedy}, or lower the gate's confidence.")


def validation_examples_are_too_few(spec: run.Run, measured: measurements.Measurements) -> Advice | None:
    if not measured.short_baseline:
        return None
    capped = measured.validation > spec.evaluation.maximum_examples
    remedy = "Raise evaluation.maximumExamples" if capped else "Hold out more of them (dataset.validation)"
    return Advice(
        f"The baseline may be unable to show that a prompt is enough: {measured.short_baseline[0]}. {remedy}, or lower "
        "the gate's confidence."
    )


def benchmark_questions_are_too_few(spec: run.Run, measured: measurements.Measurements) -> Advice | None:
    return _short(
        measured.short_benchmarks,
        "Ask more questions, as far as the task has them (evaluation.harness.maximumExamples), or lower the gate's confidence.",
    )


def _short(gates: list[str], remedy: str) -> Advice | None:
    if not gates:
        return None
    more = len(gates) - 1
    others = f" ({more} more gate{'s' if more > 1 else ''} likewise)" if more else ""
    return Advice(f"A good model may miss a gate by chance. {gates[0]}{others}. {remedy}")


def answers_are_the_teachers(spec: run.Run, measured: measurements.Measurements) -> Advice | None:
    if spec.training.teacher is None:
        return None
    return Advice(
        f"training.teacher: {_teacher(spec)} before training; those of the rows are not used. Tokens and memory are of the "
        "questions alone."
    )


def _teacher(spec: run.Run) -> str:
    if (asked := spec.teaching) is None:
        return "the base model with intent.prompt.system writes the answers"
    return f"all questions are sent to {asked.endpoint}, where the model {asked.model} writes the answers,"


RULES: tuple[Rule, ...] = (
    examples_are_too_few,
    examples_are_near_copies,
    answer_is_always_the_same,
    goal_is_knowledge,
    goal_is_general_capability,
    requirements_change_often,
    requirements_change_monthly,
    answers_look_like_facts,
    base_model_is_large,
    experts_do_not_learn,
    reasoning_is_left_to_the_answer,
    memory_is_short,
    training_takes_days,
    test_examples_are_too_few,
    validation_examples_are_too_few,
    benchmark_questions_are_too_few,
    answers_are_the_teachers,
)


# -- the three questions --


def did_you_try_a_prompt(spec: run.Run, measured: measurements.Measurements) -> Advice | None:
    if spec.intent.prompt.system and job.Contender.PROMPT not in spec.evaluation.baselines:
        return Advice("Tried a prompt? It is not measured alone: evaluation.baselines leaves Prompt out.")
    if spec.intent.prompt.system:
        return Advice("Tried a prompt? The evaluation compares the tuned model with the prompt of intent.prompt.")
    return Advice(
        "Tried a prompt? The job has none: put the one in use into intent.prompt.system, and the evaluation compares "
        "the tuned model with it."
    )


def can_retrieval_solve_it(spec: run.Run, measured: measurements.Measurements) -> Advice | None:
    if spec.intent.retrieval is not None and job.Contender.RAG not in spec.evaluation.baselines:
        return Advice(
            "Can retrieval (RAG) solve it? It is not measured: evaluation.baselines leaves RAG out, so that nothing uses "
            "intent.retrieval."
        )
    if spec.intent.retrieval is not None:
        return Advice(
            "Can retrieval (RAG) solve it? The evaluation measures it with the documents of intent.retrieval."
        )
    if job.Goal.KNOWLEDGE in spec.intent.goals or _factual(measured):
        return Advice("Can retrieval (RAG) solve it? Probably: name the documents in intent.retrieval to measure it.")
    if measured.novelty is None:
        return Advice("Can retrieval (RAG) solve it? The data do not show it; it can where answers are facts.")
    share = f"{measured.novelty['share']:.0%}"
    return Advice(f"Can retrieval (RAG) solve it? Hardly: {share} of the answers look like facts.")


def is_there_enough_data(spec: run.Run, measured: measurements.Measurements) -> Advice | None:
    least = spec.dataset.minimum_examples
    answer = "No" if measured.train < least else "Hardly" if _mostly_copies(spec, measured) else "Yes"
    known = measured.distinct is not None and (measured.train <= COUNTED or _mostly_copies(spec, measured))
    distinct = f", about {_two_digits(measured.distinct or 0)} of them different" if known else ""
    return Advice(f"Enough data? {answer}: {measured.train} training examples{distinct}.")


def _two_digits(number: float) -> str:
    """Rounded to two digits: it is an estimate."""
    return f"{float(f'{number:.2g}'):,.0f}"


QUESTIONS: tuple[Rule, ...] = (did_you_try_a_prompt, can_retrieval_solve_it, is_there_enough_data)
