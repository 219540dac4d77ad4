"""Gates on public benchmarks: on which evidence they pass, and which are refused before training."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from finetune_api import benchmarks, job
from finetune_trainer.evaluation import evidence, power, task_gates

ACC = ("acc", "none")
ARC = task_gates.Known(1_000, {"acc": True, "acc_norm": True}, ["none"])
KNOWN = {
    "arc_easy": ARC,
    "gsm8k": task_gates.Known(1_300, {"exact_match": True}, ["strict-match", "flexible-extract"]),
    "squad": task_gates.Known(500, {"f1": False}, ["none"]),
    "few": task_gates.Known(10, {"acc": True}, ["none"]),
}


def rules(limit: int = 200, **gate: Any) -> job.Harness:
    """Of one gate, on arc_easy's acc unless it names another."""
    full = {"task": "arc_easy"} | ({} if "task" in gate else {"measure": "acc"}) | gate
    tasks = [{"name": name} for name in KNOWN]
    return job.Harness.model_validate({"tasks": tasks, "maximumExamples": limit, "gates": [full]})


def shares(questions: int, wins: int, losses: int, both: int) -> task_gates.Measured:
    """A task's share of right answers: so many of the tuned model alone, of the base model alone, and of both."""
    neither = questions - wins - losses - both
    tuned = [1.0] * wins + [0.0] * losses + [1.0] * both + [0.0] * neither
    base = [0.0] * wins + [1.0] * losses + [1.0] * both + [0.0] * neither
    columns = evidence.mean(base, share=True), evidence.mean(tuned, share=True)
    return task_gates.Measured(columns[0].value, columns[1].value, columns)


def checked(one: task_gates.Measured, **gate: Any) -> tuple[bool, str]:
    """Whether the gate passes, and what it says of what was measured."""
    (found,) = task_gates.check(rules(**gate).required, {"arc_easy": {ACC: one}})
    assert (found.task, found.metric) == ("arc_easy", None)
    return found.passed, found.observed


# --- After training ---


def test_a_margin_passes_only_with_evidence_that_no_more_is_lost() -> None:
    passed, observed = checked(shares(400, 15, 15, 200), margin=0.05)
    assert (passed, "Base 0.5375" in observed) == (True, True)
    passed, observed = checked(shares(60, 2, 2, 30), margin=0.05)
    assert not passed
    assert "too few examples to be sure: a model that is worse by the margin gets this far in" in observed
    assert checked(shares(60, 2, 2, 30), margin=0.05, confidence=0.5)[0], "the value alone"
    assert not checked(shares(400, 5, 35, 200), margin=0.05)[0], "it lost more"


@pytest.mark.parametrize("questions, passes", [(1, False), (4, False), (5, True)])
def test_few_questions_of_a_perplexity_are_no_evidence(questions: int, passes: bool) -> None:
    parts = np.column_stack([np.linspace(-3, -1, questions), np.ones(questions)])
    column = evidence.Column(parts, lambda sums: np.exp(-evidence.ratio(sums)), np.ones(questions, dtype=bool))
    same = task_gates.Measured(column.value, column.value, (column, column), higher_is_better=False)
    passed, observed = checked(same, margin=0.1)
    assert passed == passes
    assert passes or f"gets this far in {100 if questions == 1 else 6.2} of 100 cases" in observed


def test_an_improvement_passes_only_with_evidence_of_a_gain() -> None:
    assert checked(shares(200, 40, 10, 100), improvement=0)[0]
    assert not checked(shares(200, 12, 10, 100), improvement=0)[0]
    assert not checked(shares(200, 0, 0, 100), improvement=0, confidence=0.5)[0], "a model that changed nothing"
    assert checked(shares(200, 40, 10, 100), improvement=0.05)[0]
    assert not checked(shares(200, 40, 10, 100), improvement=0.12)[0]


def test_bounds_hold_with_the_evidence_of_all_gates() -> None:
    assert checked(shares(200, 0, 0, 180), minimum=0.8)[0]
    assert not checked(shares(200, 0, 0, 165), minimum=0.8)[0]
    assert not checked(shares(200, 0, 0, 150), minimum=0.8)[0]
    assert checked(shares(200, 0, 0, 20), maximum=0.2)[0]
    assert not checked(shares(200, 0, 0, 39), maximum=0.2)[0]


def test_lower_is_better_where_the_task_says_so() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(3.0, 1.0, 200)
    base, tuned = evidence.mean(values), evidence.mean(values - 0.5 + rng.normal(0, 0.1, 200))
    falls = task_gates.Measured(base.value, tuned.value, (base, tuned), higher_is_better=False)
    rises = task_gates.Measured(tuned.value, base.value, (tuned, base), higher_is_better=False)
    assert checked(falls, improvement=0.4)[0]
    assert not checked(rises, improvement=0)[0]
    assert not checked(rises, margin=0.45)[0]
    assert checked(rises, margin=0.6)[0]


def test_a_value_without_questions_is_no_evidence() -> None:
    whole = task_gates.Measured(0.5, 0.6, None)
    assert checked(whole, minimum=0.55, confidence=0.5) == (True, "0.6000")
    assert not checked(whole, minimum=0.65, confidence=0.5)[0]
    assert not checked(whole, minimum=0.55)[0]
    assert not checked(whole, improvement=0.05, confidence=0.5)[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_model_passes_no_gate(value: float) -> None:
    assert not checked(task_gates.Measured(0.5, value, None), maximum=10, confidence=0.5)[0]
    assert not checked(task_gates.Measured(value, 0.5, None), margin=1, confidence=0.5)[0]


def test_a_task_that_could_not_be_run_passes_no_gate() -> None:
    (found,) = task_gates.check(rules(margin=0.1).required, {})
    assert (found.passed, found.observed) == (False, "arc_easy was not measured")


def test_the_requirement_names_task_measure_and_filter() -> None:
    (gate,) = rules(task="gsm8k", measure="exact_match", filter="strict-match", minimum=0.5, margin=0.02).required
    assert (
        task_gates.requirement(gate)
        == "gsm8k exact_match (strict-match) at least 0.5 and not worse than Base by 0.02 or more"
    )


@pytest.mark.parametrize("questions", [30, 200])
@pytest.mark.parametrize("margin", [0.02, 0.1])
def test_a_model_that_loses_the_margin_seldom_passes(questions: int, margin: float) -> None:
    """Exactly, over all counts of wins and losses, however often the models differ."""
    wins, losses = np.arange(questions + 1)[:, None], np.arange(questions + 1)[None, :]
    there = wins + losses <= questions
    passing = evidence.paired(np.where(there, wins, 0), np.where(there, losses, 0), questions, -margin) <= 0.05
    for won in (0.0, 0.01, 0.05, 0.2):
        lost = won + margin
        weights = stats.binom.pmf(losses, questions, lost) * stats.binom.pmf(wins, questions - losses, won / (1 - lost))
        assert weights[there & passing].sum() <= 0.05


# --- Before training ---


@pytest.mark.parametrize(("margin", "needed"), [(0.02, 1617), (0.05, 285), (0.1, 84)])
def test_a_margin_needs_as_many_questions_as_the_guide_says(margin: float, needed: int) -> None:
    (found,) = power.of_task(benchmarks.TaskGate(task="arc_easy", margin=margin), 200)
    assert (found.needed, found.enough, found.unit) == (needed, needed <= 200, "questions")
    assert "with no loss at all that takes about" in found.text


def test_gates_with_too_few_questions_are_named() -> None:
    (text,) = task_gates.short(rules(margin=0.05), KNOWN)
    assert "with 200 questions a model passes in 80 of 100 cases if it is truly better by 0.0" in text
    assert text.endswith("with no loss at all that takes about 285 questions")
    assert task_gates.short(rules(limit=300, margin=0.05), KNOWN) == []
    (text,) = task_gates.short(rules(limit=300, task="few", margin=0.3), KNOWN)
    assert "with 10 questions" in text, "there are no more"


@pytest.mark.parametrize(
    "gate, words",
    [
        ({"measure": "f1", "minimum": 0.5}, "arc_easy has no measure f1; it has acc, acc_norm"),
        ({"task": "arc_easy", "minimum": 0.5}, "arc_easy has several: name one of acc, acc_norm in measure"),
        ({"task": "gsm8k", "minimum": 0.5}, "gsm8k has several: name one of strict-match, flexible-extract in filter"),
        ({"task": "squad", "margin": 0.1}, "no evidence of a difference: set minimum or maximum in place"),
        ({"task": "squad", "minimum": 0.5}, "no evidence for a confidence of 0.95: set confidence: 0.5"),
        ({"minimum": 50}, "acc is a share from 0 to 1: no model reaches minimum: 50"),
        ({"improvement": 1.5}, "no model reaches improvement: 1.5"),
        ({"minimum": 0}, "every model passes minimum: 0"),
        ({"margin": 1}, "every model passes margin: 1"),
        ({"task": "few", "minimum": 0.9}, "cannot be passed by any model: with every answer right it is 1.0000"),
        ({"task": "few", "maximum": 0.1}, "cannot be passed by any model: with every answer wrong it is 0.0000"),
    ],
)
def test_gates_that_decide_nothing_are_refused_by_their_field(gate: dict[str, Any], words: str) -> None:
    found = task_gates.problem(rules(**gate), KNOWN)
    assert found is not None
    assert found.startswith("evaluation.harness.gates[0]: ")
    assert words in found


@pytest.mark.parametrize(
    "gate",
    [
        {"margin": 0.02},
        {"minimum": 0, "margin": 0.1},
        {"minimum": 0.9},
        {"improvement": 0},
        {"task": "squad", "minimum": 0.5, "confidence": 0.5},
        {"task": "few", "minimum": 0.7},
        {"task": "few", "maximum": 0.5},
    ],
    ids=str,
)
def test_gates_that_can_decide_are_not_refused(gate: dict[str, Any]) -> None:
    assert task_gates.problem(rules(**gate), KNOWN) is None


def test_a_prompt_is_enough_only_where_the_base_model_itself_passes_the_benchmarks() -> None:
    """What benchmarks the base model reaches is not measured before training."""

    def decided(**gate: Any) -> bool:
        harness = rules(**gate).model_dump(by_alias=True, exclude_none=True)
        gates = [{"metric": "ExactMatch", "minimum": 0.5}]
        return job.Evaluation.model_validate({"gates": gates, "harness": harness}).decided_before_training

    assert decided(margin=0.05)
    assert not decided(margin=0.05, minimum=0.5)
    assert not decided(improvement=0)
    assert not decided(maximum=0.5)
