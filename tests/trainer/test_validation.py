"""The adapter that is kept: that of the validation with the best answers, where a training is long enough to ask for them."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from tests.report import example as shown
from tests.trainer import loops

from finetune_api import evaluation, job, reasons, results, run
from finetune_operator.manifests import stages
from finetune_trainer import report
from finetune_trainer.data import dataset
from finetune_trainer.engine import passes
from finetune_trainer.evaluation import feasible, validation
from finetune_trainer.process import errors
from finetune_trainer.report import parts
from finetune_trainer.stages import preflight, train
from finetune_trainer.store import storage
from finetune_trainer.training import checkpoint, loop, processes

World = Callable[..., run.Run]

TRAINING = {"maxSteps": 10, "learningRate": 0.01, "lora": {"rank": 8, "alpha": 16, "dropout": 0.1}}
RULES = {"gates": [{"metric": "RougeL", "minimum": 0.1}], "generation": {"maxNewTokens": 8}}


@pytest.fixture(autouse=True)
def enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny training is worth a few answers."""
    monkeypatch.setattr(validation, "SHARE", 50.0)
    monkeypatch.setattr(validation, "LEAST", 1)


def curves(spec: run.Run) -> dict[str, Any]:
    folder = pathlib.Path(spec.layout.adapter.removeprefix("file://"))
    found: dict[str, Any] = json.loads((folder / "training.json").read_text())
    return found


def trained(spec: run.Run) -> dict[str, Any]:
    preflight.preflight(spec)
    train.train(spec, 1, 1.0)
    return curves(spec)


def test_a_better_score_wins_and_of_equal_ones_the_lower_loss() -> None:
    state = checkpoint.State(best_loss=0.5, best_score=0.8)
    assert state.is_better(0.9, 0.81)
    assert not state.is_better(0.1, 0.79)
    assert state.is_better(0.4, 0.8)
    assert not state.is_better(0.5, 0.8)
    assert checkpoint.State().is_better(9.0, None)
    assert checkpoint.State(best_loss=0.5).is_better(0.4, None), "without scores the loss decides"
    assert checkpoint.State(best_loss=0.5).is_better(0.4, 0.0), "of a checkpoint of an earlier version too"


def test_answers_are_requested_where_they_are_little_work() -> None:
    # five validations, prompts of 300 tokens, answers of 256: 612 trained tokens each
    assert validation.READ * 300 + validation.WRITTEN * 256 == 612
    assert validation.affordable(1_000_000, 5, 612) == int(validation.SHARE * 1_000_000 / 3060)
    assert validation.affordable(1000, 0, 612) < validation.affordable(1000, 0, 61.2)


def example(answer: str, tools: str | None = None) -> dataset.Example:
    return dataset.Example("x", (dataset.Message("user", "q"), dataset.Message("assistant", answer)), tools=tools)


def deciding(*gates: dict[str, Any], **changes: Any) -> job.Metric | None:
    rules = evaluation.Evaluation.model_validate({"gates": list(gates) or None, **changes})
    return validation.deciding(rules, [example("red"), example("blue")])


def test_the_first_gate_about_answers_decides_and_a_gate_on_the_loss_leaves_it_to_the_loss() -> None:
    rouge = {"metric": "RougeL", "minimum": 0.5}
    assert deciding(rouge) is job.Metric.ROUGE_L
    assert deciding({"metric": "Forgetting", "maximum": 0.1}, rouge) is job.Metric.ROUGE_L
    assert deciding({"metric": "Loss", "maximum": 1.0}, rouge) is None
    assert deciding() is job.Metric.EXACT_MATCH
    assert deciding(labels=["red", "blue"]) is job.Metric.ACCURACY


def test_answers_take_the_memory_that_activations_had(base: pathlib.Path, tmp_path: pathlib.Path) -> None:
    training = loops.made(tmp_path, base, processes.ProcessGroup(), own=True)
    assert isinstance(training.engine, passes.Fast)
    memory = training.engine._inner.memory
    held: list[int] = []

    def score() -> float:
        held.append(memory.bytes)
        memory.take("answers", 1000)
        return 0.5

    training.score = score
    training.step()
    held.append(memory.bytes)
    assert training.scored() == 0.5
    held.append(memory.bytes)
    assert held[0] > 0
    assert held[1:] == [0, 0]


@dataclasses.dataclass(frozen=True)
class Voting(processes.ProcessGroup):
    """With another process, which has this to say to the next question."""

    other: list[int] = dataclasses.field(default_factory=list)

    def maximum(self, number: int) -> int:
        return max(number, self.other.pop() if self.other else 0)


def test_no_process_scores_where_another_does_not(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would wait for the other one as long as that lives."""
    group, scorer = Voting(), train.scorer

    def scores(*given: Any) -> validation.Scorer | None:
        found = scorer(*given)
        group.other.append(1)
        return found

    monkeypatch.setattr(processes, "join", lambda *_: group)
    monkeypatch.setattr(train, "scorer", scores)
    found = trained(world(training=TRAINING, evaluation=RULES))
    assert "scored_by" not in found
    assert all("score" not in one for one in found["validations"])


@pytest.mark.parametrize("dropout", [0.1, 0.0])
def test_scores_leave_every_step_as_it_would_be_without_them(
    dropout: float, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By transformers' passes, and by the trainer's own, which then write the answers too."""
    training = TRAINING | {"lora": {"rank": 8, "alpha": 16, "dropout": dropout}}
    with_scores = trained(world(training=training, evaluation=RULES))
    scores = [one["score"] for one in with_scores["validations"]]
    assert len(scores) == 5
    assert all(0 <= score <= 1 for score in scores)
    assert with_scores["scored_by"] == "RougeL"
    monkeypatch.setattr(train, "scorer", lambda *_: None)
    spec = world(training=training, evaluation=RULES)
    spec = spec.model_copy(update={"revision": "another"})
    without = trained(spec)
    assert [one["loss"] for one in without["history"]] == [one["loss"] for one in with_scores["history"]]
    assert [one["loss"] for one in without["validations"]] == [one["loss"] for one in with_scores["validations"]]
    assert "scored_by" not in without


def test_the_adapter_with_the_best_answers_wins_also_after_a_stop(
    world: World, fresh: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [0.1, 0.6, 0.3, 0.6, 0.2]
    scores = iter(given)
    monkeypatch.setattr(validation.Scorer, "__call__", lambda _: next(scores))
    spec = world(training=TRAINING, evaluation=RULES)
    preflight.preflight(spec)
    step = loop.Loop.step

    def stops(course: loop.Loop) -> None:
        if course.state.step == 7:
            raise errors.Stopped
        step(course)

    monkeypatch.setattr(loop.Loop, "step", stops)
    with pytest.raises(errors.Stopped):
        train.train(spec, 1, 1.0)
    fresh()
    monkeypatch.setattr(loop.Loop, "step", step)
    spec = world(training=TRAINING, evaluation=RULES | {"gates": [{"metric": "JsonValid", "minimum": 0.1}]})
    preflight.preflight(spec)
    result = train.train(spec, 2, 1.0).training
    assert result is not None
    assert result.resumed_from == 7
    assert curves(spec)["scored_by"] == "RougeL", "by the rules of the first steps"
    found = curves(spec)["validations"]
    assert [one["score"] for one in found] == given
    best = min((one for one in found if one["score"] == 0.6), key=lambda one: one["loss"])
    assert (result.best_step, result.validation_loss) == (best["step"], best["loss"])


def test_the_report_says_which_adapter_is_used_and_why() -> None:
    points = [{"step": 2, "loss": 0.5, "score": 0.75}, {"step": 4, "loss": 0.6, "score": 0.875}]
    by_score = parts.chosen_adapter(results.Training(validations=points, scored_by=job.Metric.EXACT_MATCH))
    assert by_score.startswith("The adapter of step 4 is used, by ExactMatch 0.875 of the answers")
    by_loss = parts.chosen_adapter(results.Training(validations=[{"step": 2, "loss": 0.5}, {"step": 4, "loss": 0.6}]))
    assert by_loss == "The adapter of step 2 is used."
    assert parts.chosen_adapter(results.Training()) == ""


def test_the_report_draws_the_scores_beside_the_losses() -> None:
    points = [
        {"step": 2, "loss": 0.5, "score": 0.75},
        {"step": 4, "loss": 0.6, "score": 0.875},
        {"step": 6, "loss": 0.7},
    ]
    trained = results.Training(history=[{"step": 8, "loss": 0.4}], validations=points, scored_by=job.Metric.EXACT_MATCH)
    drawn = parts.score_curve(trained)
    assert drawn is not None
    assert (drawn.validation, drawn.marked) == ([(2, 0.75), (4, 0.875)], (4, 0.875))
    assert drawn.frame.last == 8, "the steps of the losses above"
    found = shown.changed(shown.everything(), training=trained)
    page = report.page(found)
    assert "ExactMatch of the answers to validation examples" in page
    assert "used: 0.875 at step 4" in page
    assert parts.score_curve(shown.everything().training) is None


def test_a_training_in_a_cluster_scores_by_the_rules_of_its_job(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = world(training=TRAINING, evaluation=RULES | {"maximumExamples": 2, "labels": ["refund", "praise"]})
    preflight.preflight(spec)
    asked = []
    ask = validation.answers.ask

    def seen(runner: Any, which: job.Contender, examples: list[dataset.Example]) -> Any:
        asked.append((runner.rules, len(examples)))
        return ask(runner, which, examples)

    monkeypatch.setattr(validation.answers, "ask", seen)
    train.train(stages.run_file(spec, reasons.Stage.TRAIN), 1, 1.0)
    rules, count = asked[0]
    assert (rules.generation.max_new_tokens, rules.labels, count) == (8, ["refund", "praise"], 2)
    assert curves(spec)["scored_by"] == "RougeL"


def test_rules_of_an_earlier_version_are_those_of_the_run_file(world: World) -> None:
    spec = world(evaluation=RULES)
    store = storage.of(spec.storage)
    assert feasible.scoring(spec, store) == spec.evaluation
    preflight.preflight(spec)
    known = json.loads(store.read(spec.layout.preflight))[feasible.SCORING]
    assert known == RULES, "only what the job states: an earlier version knows it, too"
    store.write(spec.layout.preflight, json.dumps({feasible.SCORING: known | {"later": 1}}).encode())
    assert feasible.scoring(spec, store) == spec.evaluation, "of a later version"
    store.write(spec.layout.preflight, b'{"facts": {}}')
    assert feasible.scoring(spec, store) == spec.evaluation


def test_without_gates_free_text_is_scored_by_its_similarity() -> None:
    def decided(*answers: str) -> job.Metric | None:
        return validation.deciding(evaluation.Evaluation(), [example(one) for one in answers])

    long = "Dear customer, we are sorry that your parcel {n} is late and will send you another one today."
    assert decided(*(long.format(n=n) for n in range(4))) is job.Metric.ROUGE_L
    assert decided(*[long] * 4) is job.Metric.EXACT_MATCH, "one of few answers"
    fields = {f"field{n}": "some words in it" for n in range(9)}
    assert decided(*(json.dumps(fields | {"n": n}) for n in range(4))) is job.Metric.EXACT_MATCH
    assert decided(*(f"parcel {n}" for n in range(4))) is job.Metric.EXACT_MATCH
