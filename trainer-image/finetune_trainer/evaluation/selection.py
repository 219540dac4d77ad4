"""How many training examples Retrieved gets before each question, chosen on validation examples, within a budget of time.

Used by the baseline stage and by the evaluation. Retrieved, Optimized, ManyShot and RAG have long prompts: what
they would take is estimated from what was measured so far, and what the budget does not allow is left out and named.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeVar

from finetune_api import job, results
from finetune_trainer.data import dataset
from finetune_trainer.engine import prefixes
from finetune_trainer.evaluation import answers, contenders, evidence, headline, metrics, retrieval
from finetune_trainer.process import log

Key = TypeVar("Key")

BUDGETED = (job.Contender.RETRIEVED, job.Contender.OPTIMIZED, job.Contender.MANY_SHOT, job.Contender.RAG)

EXAMPLES = 32
"""Validation examples on which the numbers are compared."""

LEAST = 30.0
"""Seconds that the budget has at least."""

TRAINED = 2.0
"""Time of training on a token, divided by that of reading it: a frozen weight takes two operations forward and two backward."""

SAMPLED = 8
"""Prompts whose length is measured for an estimate."""


@dataclasses.dataclass(frozen=True)
class Pace:
    """How fast one device answers: seconds for each answer, and tokens read a second."""

    answer: float = 0.0
    rate: float = float("inf")

    def after(self, asked: answers.Answers) -> "Pace":
        """That of the contender that was asked last: before Retrieved it is the one with the most similar prompts and answers. A
        base model without examples often writes until its answer is cut."""
        if not asked.prompts or not asked.prefill:
            return self
        tokens = sum(map(len, asked.prompts))
        own = tokens - (len(asked.prompts) - 1) * prefixes.of_all(asked.prompts)
        reading = tokens / asked.prefill
        return Pace(max(0.0, asked.seconds - 2 * reading) / len(asked.prompts), own / max(reading, 1e-9))

    def seconds(self, runner: answers.ModelRunner, which: job.Contender, examples: Sequence[dataset.Example]) -> float:
        """The time that a contender's answers to these examples will take: each prompt is read twice, for the answer and for
        the loss, and what all begin with once."""
        asked = [one for one in examples if one.answer is not None]
        if not asked:
            return 0.0
        rows = [runner.encoder.prompt(runner.script.ask(one, which)) for one in asked[:SAMPLED]]
        prefix = prefixes.of_all(rows)
        own = sum(map(len, rows)) / len(rows) - prefix
        return len(asked) * self.answer + 2 * (prefix + len(asked) * own) / self.rate


@dataclasses.dataclass
class Budget:
    """Seconds for the contenders with long prompts."""

    seconds: float
    spent: float = 0.0
    left_out: list[str] = dataclasses.field(default_factory=list)

    @property
    def rest(self) -> float:
        """Seconds for the next candidate, whose speed nobody knows before it is asked: what is left, LEAST at least."""
        return max(LEAST, self.seconds - self.spent)

    def allows(self, what: str, expected: float) -> bool:
        """Whether there is time; where there is not, what is left out is noted."""
        if self.spent + expected <= self.seconds:
            return True
        rest = max(0.0, self.seconds - self.spent)
        self.left_out.append(
            f"{what}: it would take about {expected:.0f} s, {rest:.0f} s of {self.seconds:.0f} are left"
        )
        log.info("left out", what=what, expected=round(expected, 1), left=round(rest, 1))
        return False


def budget(rules: job.Evaluation, training: float | None) -> Budget:
    """training: device seconds of the training; None: unknown."""
    return Budget(max(LEAST, rules.baseline_budget * (training or 0.0)))


def training_seconds(pace: Pace, tokens: float) -> float:
    """Device seconds that training on so many tokens takes, by the pace at which they are read."""
    return TRAINED * tokens / pace.rate


@dataclasses.dataclass(frozen=True)
class Choice:
    """The number that did best, and its answers to the validation examples; None: nothing was tried."""

    found: results.Retrieved
    given: answers.Answers | None = None


def name(count: int) -> str:
    return f"Retrieved with {'as many examples as fit' if count == contenders.OPTIONS[-1] else f'{count} examples'}"


def choose(
    runner: answers.ModelRunner,
    examples: Sequence[dataset.Example],
    limits: Budget,
    pace: Pace,
    required: Sequence[job.Gate],
    later: Sequence[dataset.Example] = (),
) -> Choice | None:
    """Tries each number of retrieved examples on these validation examples, and sets the best in the runner's script.

    later: the questions that the winner gets afterwards, for which time is reserved. None: there is no time for any.
    """
    asked: dict[int, answers.Answers] = {}
    which, shown = job.Contender.RETRIEVED, 0
    for place, count in enumerate(contenders.OPTIONS):
        runner.script = dataclasses.replace(runner.script, retrieved=count)
        longest = max((len(runner.script.shown(one, which)) for one in [*examples, *later][:SAMPLED]), default=0)
        if longest <= shown:  # no more of them fit, or there are no more
            break
        shown = longest
        if not limits.allows(name(count), pace.seconds(runner, which, [*examples, *later])):
            limits.left_out += [f"{name(more)}: more than the above" for more in contenders.OPTIONS[place + 1 :]]
            break
        if not examples:
            return Choice(results.Retrieved(examples=count))
        asked[count] = answers.ask(runner, which, list(examples))
        limits.spent += asked[count].seconds
        pace = pace.after(asked[count])
    if not asked:
        return None
    measured = {count: metrics.measure(one.answers, runner.rules) for count, one in asked.items()}
    best, metric = of(required, measured)
    runner.script = dataclasses.replace(runner.script, retrieved=best)
    log.info("retrieved examples", chosen=best, metric=metric, tried=list(asked))
    tried = [tried_value(count, columns.get(metric) if metric else None) for count, columns in measured.items()]
    return Choice(results.Retrieved(examples=best, metric=metric, tried=tried), asked[best])


def of(required: Sequence[job.Gate], measured: Mapping[Key, metrics.Columns]) -> tuple[Key, job.Metric | None]:
    """What is best by the telling metric, the first of equals."""
    available = set.intersection(*(set(columns) for columns in measured.values()))
    metric = headline.telling(required, available, measured.values())
    if metric is None:
        return next(iter(measured)), None
    sign = -1 if metric in job.LOWER_IS_BETTER else 1
    return max(measured, key=lambda one: sign * measured[one][metric].value), metric


def tried_value(count: int, column: evidence.Column | None) -> results.Tried:
    low, high = (column and evidence.interval(column)) or (None, None)
    return results.Tried(
        examples=count,
        value=column.value if column else None,
        low=low,
        high=high,
        asked=column.examples if column else 0,
    )


def copies(runner: answers.ModelRunner, examples: Sequence[dataset.Example]) -> int:
    """Questions among whose retrieved examples one has the same question, up to case and punctuation."""

    def same(one: dataset.Example) -> bool:
        wanted = metrics.normalized(retrieval.question(one))
        shown = runner.script.shown(one, job.Contender.RETRIEVED)
        return any(metrics.normalized(retrieval.question(other)) == wanted for other in shown)

    return sum(map(same, examples))
