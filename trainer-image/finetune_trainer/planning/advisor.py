"""Is fine-tuning the right tool? A list of rules, each a pure function named as a fact, asked before a GPU is taken.

run.Run, facts.Facts -> advise -> Advice, the weightiest first -> `verdict`

Each rule answers None where its fact is not so. Its name is in preflight.json with what it said. The thinking behind them is in
docs/guides/when-to-fine-tune.md.
"""

import dataclasses
import enum
from collections.abc import Callable, Iterator
from typing import Any

from finetune_api import job, run
from finetune_api.reasons import Reason
from finetune_trainer.planning import effort, measurements
from finetune_trainer.process import progress

FEW = 0.25
"""Share of dataset.minimumExamples below which different examples are a few dozen and not hundreds."""

COPIED = 0.5
"""Share of the examples that must be near copies before the advisor speaks of them."""

COUNTED = 1000
"""Examples up to which near copies are counted; of more a sample is seen, which shows few large groups and no small ones."""

CONSTANT, ENOUGH = 0.99, 20
"""Share of one answer from which there is nothing else to learn, and examples from which it is said."""

FACTUAL = 0.5
"""Share of answers that carry facts from which the data look like knowledge."""

LARGE, USUAL = 20_000_000_000, 8_000_000_000
"""Parameters from which a base model is a large one, and of the one to start with."""

DAY = 86_400.0

OFTEN = (job.ChangeFrequency.DAILY, job.ChangeFrequency.WEEKLY)
UNFIT = frozenset({job.Goal.KNOWLEDGE, job.Goal.GENERAL_CAPABILITY})
"""Goals that fine-tuning does not reach."""


class Weight(enum.IntEnum):
    """What an advice does to the verdict."""

    NOTE = 0
    """Nothing."""
    CAUTION = 1
    AGAINST = 2
    """NotRecommended; under Enforce the job ends."""


@dataclasses.dataclass(frozen=True)
class Advice:
    """What a rule says."""

    text: str
    weight: Weight = Weight.NOTE
    reason: Reason = Reason.FINE_TUNING_NOT_RECOMMENDED
    """Why the job ends, where it does."""
    rule: str = ""

    def document(self) -> dict[str, Any]:
        """The advice for preflight.json."""
        return {"rule": self.rule, "weight": self.weight.name.capitalize(), "reason": self.reason, "text": self.text}


Rule = Callable[[run.Run, measurements.Facts], Advice | None]


def advise(spec: run.Run, found: measurements.Facts) -> list[Advice]:
    """What there is to say, the weightiest first, the three questions last; nothing under Ignore."""
    if spec.intent.advice is job.Advice.IGNORE:
        return []
    return [*sorted(_said(spec, found, RULES), key=lambda one: -one.weight), *_said(spec, found, QUESTIONS)]


def _said(spec: run.Run, found: measurements.Facts, rules: tuple[Rule, ...]) -> Iterator[Advice]:
    for rule in rules:
        said = rule(spec, found)
        if said is not None:
            yield dataclasses.replace(said, rule=rule.__name__)


# -- enough data --


def examples_are_too_few(spec: run.Run, found: measurements.Facts) -> Advice | None:
    least = spec.dataset.minimum_examples
    if found.train >= least:
        return None
    text = (
        f"{found.train} training examples are fewer than the {least} of dataset.minimumExamples: collect hundreds, or use a "
        "prompt with a few of them as examples."
    )
    return Advice(text, Weight.AGAINST, Reason.TOO_FEW_EXAMPLES)


def examples_are_near_copies(spec: run.Run, found: measurements.Facts) -> Advice | None:
    least = spec.dataset.minimum_examples
    if found.distinct is None or not _copied(spec, found):
        return None
    text = (
        f"Of {found.train} training examples about {_about(found.distinct)} differ in more than a word or a number: what repeats "
        "teaches once. Collect different cases, or use a prompt with one example of each kind."
    )
    few = found.distinct < FEW * least
    return Advice(text, Weight.AGAINST if few else Weight.CAUTION, Reason.TOO_FEW_EXAMPLES)


def _copied(spec: run.Run, found: measurements.Facts) -> bool:
    most = min(spec.dataset.minimum_examples, COPIED * found.train)
    return found.distinct is not None and found.train >= spec.dataset.minimum_examples and found.distinct < most


def answer_is_always_the_same(spec: run.Run, found: measurements.Facts) -> Advice | None:
    if found.top_answer is None or found.top_answer < CONSTANT or found.train < ENOUGH:
        return None
    text = (
        f"{found.top_answer:.0%} of the answers are the same: a task with one answer needs no model. Check that the right field "
        "is the answer."
    )
    return Advice(text, Weight.AGAINST, Reason.FINE_TUNING_NOT_RECOMMENDED)


# -- the right reason --


def goal_is_knowledge(spec: run.Run, found: measurements.Facts) -> Advice | None:
    if job.Goal.KNOWLEDGE not in spec.intent.goals:
        return None
    text = (
        "Knowledge is not learned well by fine-tuning: it changes how a model behaves, facts stay vague and grow old. Retrieve "
        "the documents and put them into the prompt (RAG)"
    )
    return _goal(spec, text, "fine-tune for how to answer from them")


def goal_is_general_capability(spec: run.Run, found: measurements.Facts) -> Advice | None:
    if job.Goal.GENERAL_CAPABILITY not in spec.intent.goals:
        return None
    text = (
        "General capability does not grow by fine-tuning on one task: elsewhere the model rather gets worse. Choose a better "
        "base model"
    )
    return _goal(spec, text, "measure what is forgotten with a gate on Forgetting")


def _goal(spec: run.Run, text: str, besides: str) -> Advice:
    if UNFIT.issuperset(spec.intent.goals):
        return Advice(f"{text}.", Weight.AGAINST)
    return Advice(f"{text}; {besides}.", Weight.CAUTION)


def answers_look_like_facts(spec: run.Run, found: measurements.Facts) -> Advice | None:
    if job.Goal.KNOWLEDGE in spec.intent.goals or not _factual(found):
        return None
    assert found.novelty is not None
    place = next(iter(found.novelty["places"]), "")
    text = (
        f"The data look like knowledge: {found.novelty['share']:.0%} of the answers have numbers, names or rare words that "
        f"neither their prompts nor other answers have{f' (such as {place})' if place else ''}. This is a guess from the words; "
        "if the answers shall be known by heart, retrieve the facts instead (RAG)."
    )
    return Advice(text, Weight.CAUTION)


def _factual(found: measurements.Facts) -> bool:
    return found.novelty is not None and bool(found.novelty["share"] >= FACTUAL)


def requirements_change_often(spec: run.Run, found: measurements.Facts) -> Advice | None:
    every = spec.intent.change_frequency
    if every not in OFTEN:
        return None
    text = (
        f"Requirements that change {every.lower()} change faster than a model can be trained, measured and rolled out: keep them "
        "in a prompt, or in documents that are retrieved (RAG)."
    )
    return Advice(text, Weight.AGAINST)


def requirements_change_monthly(spec: run.Run, found: measurements.Facts) -> Advice | None:
    if spec.intent.change_frequency is not job.ChangeFrequency.MONTHLY:
        return None
    text = (
        "Requirements that change monthly mean training, measuring and rolling out each month: fine-tune what stays, such as "
        "format and style, and keep what changes in the prompt."
    )
    return Advice(text, Weight.CAUTION)


# -- the right size --


def base_model_is_large(spec: run.Run, found: measurements.Facts) -> Advice | None:
    if found.parameters is None or found.parameters <= LARGE:
        return None
    text = (
        f"The base model has {found.parameters / 1e9:.0f} billion parameters: training and serving cost about "
        f"{found.parameters / USUAL:.0f} times those of one with 8. Start with 7-8B; go larger only when the smaller one was "
        "measured to be not enough. If it was, set intent.advice: Ignore."
    )
    return Advice(text, Weight.CAUTION)


def memory_is_short(spec: run.Run, found: measurements.Facts) -> Advice | None:
    return Advice(found.memory_advice, Weight.CAUTION) if found.memory_advice else None


def training_takes_days(spec: run.Run, found: measurements.Facts) -> Advice | None:
    duration = effort.seconds(spec, found.work)
    if duration is None or duration < DAY:
        return None
    text = (
        f"Training is estimated to take {progress.duration(duration)}: more GPUs, a smaller base model or fewer epochs shorten "
        "it; see to it that activeDeadlineSeconds allows it."
    )
    return Advice(text)


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
    memory_is_short,
    training_takes_days,
)


# -- the three questions --


def did_you_try_a_prompt(spec: run.Run, found: measurements.Facts) -> Advice | None:
    if spec.intent.prompt.system:
        return Advice("Tried a prompt? The one of intent.prompt competes with the tuned model.")
    return Advice("Tried a prompt? None is stated: put today's into intent.prompt.system, and it will compete.")


def can_retrieval_solve_it(spec: run.Run, found: measurements.Facts) -> Advice | None:
    if job.Goal.KNOWLEDGE in spec.intent.goals or _factual(found):
        return Advice("Can retrieval (RAG) solve it? Probably: try it first.")
    if found.novelty is None:
        return Advice("Can retrieval (RAG) solve it? The data do not tell; it can where answers are facts.")
    share = f"{found.novelty['share']:.0%}"
    return Advice(f"Can retrieval (RAG) solve it? Hardly: {share} of the answers look like facts.")


def is_there_enough_data(spec: run.Run, found: measurements.Facts) -> Advice | None:
    least = spec.dataset.minimum_examples
    answer = "No" if found.train < least else "Hardly" if _copied(spec, found) else "Yes"
    known = found.distinct is not None and (found.train <= COUNTED or _copied(spec, found))
    distinct = f", about {_about(found.distinct or 0)} of them different" if known else ""
    return Advice(f"Enough data? {answer}: {found.train} training examples{distinct}.")


def _about(number: float) -> str:
    """Two figures are known at best."""
    return f"{float(f'{number:.2g}'):,.0f}"


QUESTIONS: tuple[Rule, ...] = (did_you_try_a_prompt, can_retrieval_solve_it, is_there_enough_data)
