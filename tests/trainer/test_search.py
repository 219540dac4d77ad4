"""training.search: several learning rates on the first steps, of which the best one continues."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from finetune_api import job, outcome, reasons, run
from finetune_trainer.checks import purpose
from finetune_trainer.planning import learning_rate
from finetune_trainer.process import errors
from finetune_trainer.stages import preflight, train
from finetune_trainer.store import folders, storage
from finetune_trainer.training import checkpoint, loop, trials, watchdogs

World = Callable[..., run.Run]

STEPS, TRIAL = 14, 5
SEARCH = {"maxSteps": STEPS, "learningRate": 0.004, "search": {"learningRates": 3}}


def test_rates_are_around_the_center_which_comes_first() -> None:
    assert learning_rate.candidates(1e-3, 2) == [1e-3, 2e-3]
    assert learning_rate.candidates(1e-3, 4) == [1e-3, 2e-3, 5e-4, 4e-3]


def test_four_rates_take_about_half_as_many_steps_again() -> None:
    training = job.Training.model_validate({"search": {"learningRates": 4}})
    assert learning_rate.trial_steps(1000) == 150
    assert learning_rate.searched_steps(1000, training) == 1450
    assert learning_rate.searched_steps(1000, job.Training()) == 1000
    assert (learning_rate.trial_steps(20), learning_rate.trial_steps(3)) == (5, 3)


def test_the_lowest_loss_wins_and_one_that_diverged_never_does() -> None:
    tried = trials.Search([1e-3, 2e-3, 5e-4])
    assert (tried.rate, tried.trial, tried.total(100)) == (1e-3, "0.001, 1 of 3", 130)
    assert tried.end(15, None) is False
    assert tried.end(15, 0.5) is True
    assert tried.end(15, 0.5) is False
    assert (tried.over, tried.rate, tried.trial) == (True, 2e-3, None)
    assert (
        tried.text()
        == "validation loss by learning rate after 15 steps: 0.001: diverged, 0.002: 0.5000, 0.0005: 0.5000"
    )


def path_of(uri: str) -> pathlib.Path:
    return pathlib.Path(uri.removeprefix("file://"))


def curves(spec: run.Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path_of(spec.layout.adapter) / "training.json").read_text())
    return found


def weights(spec: run.Run) -> str:
    return folders.sha256(path_of(spec.layout.adapter) / "adapter_model.safetensors")


def trained(spec: run.Run) -> outcome.Training:
    preflight.preflight(spec)
    found = train.train(spec, 1, 1.0).training
    assert found is not None
    return found


def single(spec: run.Run, rate: float) -> run.Run:
    """The same job with one rate, trained."""
    training = spec.training.model_copy(update={"learning_rate": rate, "search": None})
    alone = spec.model_copy(update={"training": training, "revision": "single"})
    trained(alone)
    return alone


def test_the_winner_is_bit_equal_to_a_single_run_with_its_rate(world: World) -> None:
    """Dropout included: each candidate starts with the same generators."""
    spec = world(training=SEARCH | {"lora": {"rank": 8, "alpha": 16, "dropout": 0.1}})
    found = trained(spec)
    tried = curves(spec)["search"]
    assert [trial["learningRate"] for trial in tried] == [0.004, 0.008, 0.002]
    best = min(tried, key=lambda trial: trial["loss"])
    assert best is not tried[-1], "the winner must not be the last candidate, whose state is at hand"
    assert found.learning_rate == best["learningRate"]
    assert found.search is not None
    assert f"{best['learningRate']:g}: {best['loss']:.4f}" in found.search
    alone = single(spec, best["learningRate"])
    mine, theirs = curves(spec), curves(alone)
    assert mine["history"] == theirs["history"]
    assert mine["validations"] == theirs["validations"]
    assert weights(spec) == weights(alone)


def interrupted(spec: run.Run, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped after so many steps of all candidates."""
    stepped = loop.Loop.step

    def step(course: loop.Loop) -> None:
        if course.number == after:
            raise errors.Stopped
        stepped(course)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "step", step)
        with pytest.raises(errors.Stopped):
            train.train(spec, 1, 1.0)


def test_a_search_that_is_stopped_resumes_to_the_same_adapter(
    world: World, monkeypatch: pytest.MonkeyPatch, fresh: Callable[[], None]
) -> None:
    """In the second candidate, between two, and after the choice."""
    spec = world(training=SEARCH)
    trained(spec)
    for after in (TRIAL + 2, 2 * TRIAL, 3 * TRIAL + 2):
        other = spec.model_copy(update={"revision": f"stopped{after}"})
        preflight.preflight(other)
        interrupted(other, after, monkeypatch)
        assert checkpoint.complete(storage.Storage(), other.layout) == [after]
        fresh()
        again = train.train(other, 2, 1.0).training
        assert again is not None
        assert again.resumed_from == after
        assert curves(other) == curves(spec)
        assert weights(other) == weights(spec)
        assert again.search is not None


def diverging(above: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the third step of each rate above this one diverge."""
    checked = watchdogs.check_step

    def check(number: int, value: float, norm: float, rate: float) -> None:
        checked(number, float("nan") if rate > above and number == 3 else value, norm, rate)

    monkeypatch.setattr(watchdogs, "check_step", check)


def test_a_rate_that_diverges_is_dropped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    diverging(0.0045, monkeypatch)
    spec = world(training=SEARCH | {"learningRate": 0.008})
    found = trained(spec)
    tried = curves(spec)["search"]
    assert [(one["learningRate"], one["steps"], "loss" in one) for one in tried] == [
        (0.008, 2, False),
        (0.016, 2, False),
        (0.004, TRIAL, True),
    ]
    assert found.learning_rate == 0.004
    assert found.steps == STEPS


def test_a_search_of_which_every_rate_diverges_ends_the_job(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    diverging(0.0, monkeypatch)
    spec = world(training=SEARCH)
    preflight.preflight(spec)
    with pytest.raises(errors.Failure, match=r"0\.004: diverged, 0\.008: diverged, 0\.002: diverged") as caught:
        train.train(spec, 1, 1.0)
    assert caught.value.reason is reasons.Reason.LOSS_DIVERGED


def test_a_search_without_validation_examples_is_refused_before_training(world: World) -> None:
    columns: Any = None
    found = purpose.evaluation(world(training=SEARCH), columns, np.zeros(5, np.int8))
    assert found is not None
    assert "training.search" in found
    assert "dataset.validation.uris" in found
