"""Forgetting, replay, the search of a learning rate and the learning curve, in memory: numbers that are made so that the right
verdict is known before, and what the product says of them."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from finetune_api import job, status
from finetune_trainer.data import dataset
from finetune_trainer.evaluation import forgetting, gates
from finetune_trainer.planning import learning_curve, learning_rate
from finetune_trainer.training import batches, trials

TUNED, BASE = job.Contender.TUNED, job.Contender.BASE
TOKENS, CHOICES = 20, 4

# --- Forgetting ---


@dataclasses.dataclass(frozen=True)
class Change:
    """What training did to the loss of general questions."""

    name: str
    questions: int
    right: Callable[[np.random.Generator, int], np.ndarray]
    """Factors of the right answers' losses."""
    wrong: float
    """That of the wrong answers' losses."""
    passes: bool
    """Whether the gate of a job that states none passes."""
    knows_less: bool
    """Whether fewer questions are answered rightly."""

    def __str__(self) -> str:
        return self.name


def about(factor: float, spread: float = 0.01) -> Callable[[np.random.Generator, int], np.ndarray]:
    return lambda draw, count: factor * (1 + draw.normal(0, spread, count))


def a_tenth_is_lost(draw: np.random.Generator, count: int) -> np.ndarray:
    """Nine tenths as before, one tenth with three times the loss: a language, say, that the task does not use."""
    return np.where(np.arange(count) % 10 == 0, 3.0, 1.0)


CHANGES = (
    Change("nothing is forgotten", 100, about(1.0), 1.0, passes=True, knows_less=False),
    Change("a little, within the bound", 100, about(1.03), 1.0, passes=True, knows_less=False),
    Change("all of it, a little beyond the bound", 100, about(1.08), 1.08, passes=False, knows_less=False),
    Change("one subject of ten", 100, a_tenth_is_lost, 1.0, passes=False, knows_less=True),
    Change("everything", 100, about(2.5), 1.0, passes=False, knows_less=True),
    Change("general questions go better than before", 100, about(0.9), 1.0, passes=True, knows_less=False),
)


def measured(change: Change) -> gates.Values:
    """The values as the evaluation measures them: 2 nats a token for right answers of the base model, 4 for the wrong ones."""
    draw = np.random.default_rng(1)
    nothing = dataset.Example("a", (dataset.Message("user", "?"), dataset.Message("assistant", "!")))
    questions = forgetting.Questions([nothing] * change.questions * CHOICES, CHOICES)

    def asked(right: np.ndarray, wrong: float) -> forgetting.Asked:
        each = [[2.0 * one, *[4.0 * wrong] * (CHOICES - 1)] for one in right]
        return forgetting.Asked([(TOKENS * loss, TOKENS) for row in each for loss in row], [])

    before, after = np.ones(change.questions), change.right(draw, change.questions)
    return forgetting.measure(questions, asked(before, 1.0), asked(after, change.wrong))


def decided(gate: dict[str, object] | None, values: gates.Values) -> status.GateResult:
    required = gates.default(None, values) if gate is None else [job.Gate.model_validate(gate)]
    (found,) = gates.check(required, values)
    return found


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_forgetting_is_judged_by_the_loss_on_general_questions(change: Change) -> None:
    values = measured(change)
    assert decided(None, values).passed is change.passes
    right = {who: values[who][job.Metric.GENERAL_ACCURACY].value for who in (BASE, TUNED)}
    assert (right[TUNED] < right[BASE]) is change.knows_less


def test_a_bound_on_forgetting_that_a_job_states_takes_evidence() -> None:
    """4 % with a bound of 5 %: ten questions that differ cannot show it, three hundred can."""
    gate = {"metric": "Forgetting", "maximum": 0.05}
    uneven = Change("uneven", 10, lambda _, count: 1.04 + 0.05 * (-1.0) ** np.arange(count), 1.0, True, False)
    few, many = (measured(dataclasses.replace(uneven, questions=count)) for count in (10, 300))
    assert all(decided(None, values).passed for values in (few, many)), "by its value it is within the bound"
    assert not decided(gate, few).passed
    assert "too few examples" in decided(gate, few).observed
    assert decided(gate, many).passed


# --- Replay ---


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def trained_with(share: float | None, examples: int = 600) -> tuple[float, np.ndarray, np.ndarray]:
    """A model trained by the product's own order of task and general examples, and what became of it: the task's loss, and
    the losses of the right answers to 60 general questions before and after.

    Its logits are those of a frozen table, one row a question, and of two adapters: one for the task's question alone, one for
    all questions. The task's answer is always the same, so that both learn it alike; the share of it that the second one learns
    makes all general answers worse, and only general examples, with answers drawn from the base, say so.
    """
    draw, words, answer, rate = np.random.default_rng(5), 12, 3, 0.5
    table = draw.normal(0, 1.5, (61, words))
    rules = job.Training.model_validate(
        {"epochs": 3, "batchSize": 8, **({"replay": {"share": share}} if share else {})}
    )
    plan = batches.plan(examples, rules)
    asked = 1 + np.arange(plan.examples - examples) % 60
    drawn = [int(draw.choice(words, p=one)) for one in softmax(table[asked])]
    of_task, of_all = np.zeros(words), np.zeros(words)
    for step in range(plan.steps):
        chosen = plan.step(step)
        for number in chosen:
            general = number >= examples
            question, right = (asked[number - examples], drawn[number - examples]) if general else (0, answer)
            gradient = softmax(table[question] + of_all + (0 if general else of_task))
            gradient[right] -= 1
            of_all -= rate / len(chosen) * gradient
            of_task -= 0 if general else rate / len(chosen) * gradient
    right = softmax(table[1:]).argmax(1)
    losses = [-np.log(softmax(table[1:] + shift)[np.arange(60), right]) for shift in (np.zeros(words), of_all)]
    return float(-np.log(softmax(table[0] + of_all + of_task)[answer])), *losses


@pytest.mark.parametrize(("share", "passes"), [(None, False), (0.5, True)], ids=["without replay", "half are general"])
def test_a_task_that_is_learned_at_the_cost_of_all_answers_passes_with_replay_alone(
    share: float | None, passes: bool
) -> None:
    loss, before, after = trained_with(share)
    assert loss < 0.1, "the task is learned in either case"
    change = Change("", 60, lambda draw, count: after / before, 1.0, passes, False)
    assert decided(None, measured(change)).passed is passes


# --- The search of a learning rate ---


def bowl(best: float) -> Callable[[float], float | None]:
    """Losses after a trial whose best rate is known; ten times that rate diverges."""
    return lambda rate: None if rate > 10 * best else 1.0 + np.log2(rate / best) ** 2


@pytest.mark.parametrize(
    "loss, center, count, winner, diverged",
    [
        (bowl(1e-3), 1e-3, 3, 1e-3, 0),
        (bowl(2e-3), 1e-3, 3, 2e-3, 0),
        (bowl(5e-4), 1e-3, 4, 5e-4, 0),
        (bowl(1.5e-4), 1e-3, 3, 5e-4, 1),
        (lambda rate: 1.0, 1e-3, 4, 1e-3, 0),
        (lambda rate: None, 1e-3, 3, None, 3),
    ],
    ids=[
        "the formula is right",
        "twice",
        "half",
        "far below: the nearest end",
        "all alike: the formula's",
        "all diverge",
    ],
)
def test_the_search_finds_the_best_of_the_rates_that_it_tries(
    loss: Callable[[float], float | None], center: float, count: int, winner: float | None, diverged: int
) -> None:
    tried = trials.Search(learning_rate.candidates(center, count))
    while not tried.over:
        tried.end(10, loss(tried.rate))
    assert (None if tried.winner is None else tried.rates[tried.winner]) == winner
    assert tried.text().count("diverged") == diverged


# --- The learning curve ---

ROWS, BATCH = 2_000, 8


def history(loss: Callable[[float], float], noise: float, steps: int = ROWS // BATCH) -> list[dict[str, float]]:
    draw = np.random.default_rng(4)
    return [
        {"step": n + 1, "loss": loss(n * BATCH) * (1 + draw.normal(0, noise)), "learningRate": 1e-3}
        for n in range(steps)
    ]


@pytest.mark.parametrize(
    "loss, noise, steps, mixed, answer",
    [
        (lambda rows: 5 * (rows + 50) ** -0.35, 0.02, 250, False, "MoreRows"),
        (lambda rows: 0.5 + 2 * np.exp(-rows / 100), 0.02, 250, False, "NoMore"),
        (lambda rows: 2.0, 0.02, 250, False, "NoMore"),
        (lambda rows: 5 * (rows + 50) ** -0.35, 0.02, 6, False, "CannotTell"),
        (lambda rows: 5 * (rows + 50) ** -0.35, 0.02, 250, True, "CannotTell"),
    ],
    ids=["a power law", "learned after some hundred rows", "facts: nothing to learn", "six steps", "replay beside it"],
)
def test_whether_more_data_would_help(
    loss: Callable[[float], float], noise: float, steps: int, mixed: bool, answer: str
) -> None:
    found = learning_curve.of_training(history(loss, noise, steps), BATCH, ROWS, mixed=mixed)
    assert found.answer == answer, found.text


@pytest.mark.parametrize(
    "losses, says",
    [([2.0, 1.5, 1.2], "More steps"), ([2.0, 1.2, 1.19], None), ([2.0, 1.2, 1.4], None)],
    ids=["still falling", "flat", "rising again"],
)
def test_what_may_help_a_model_that_missed_its_gate(losses: list[float], says: str | None) -> None:
    validations = [{"step": float(n), "loss": loss} for n, loss in enumerate(losses)]
    no_more = learning_curve.of_training(history(lambda rows: 2.0, 0.02), BATCH, ROWS)
    found = learning_curve.remedy(no_more, validations, {"examples": ROWS})
    assert (found is None) == (says is None)
    assert found is None or found.text.startswith(says or "")
