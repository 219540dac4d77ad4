"""The peak learning rate: which of job, catalogue and formula counts, and what the formula gives."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from tests.trainer import tiny

from finetune_api import outcome, run
from finetune_trainer.planning import learning_rate
from finetune_trainer.stages import preflight, train

LLAMA = learning_rate.Width("llama", 4096)


def spec(training: dict[str, Any] | None = None, **base: Any) -> run.Run:
    document = tiny.run_document("file:///base", ["file:///train.jsonl"], "file:///out")
    document["training"] = training or {}
    document["baseModel"] |= {"learningRateRule": "Formula"} | base
    return run.Run.model_validate_json(json.dumps(document))


def test_the_jobs_rate_counts_before_the_catalogues_and_that_before_the_formula() -> None:
    both = spec({"learningRate": 0.003}, learningRate=0.002)
    assert learning_rate.choose(both, LLAMA, 1000).text == "0.003 (training.learningRate)"
    assert learning_rate.choose(spec(learningRate=0.002), LLAMA, 1000) == learning_rate.Rate(
        0.002, "the default of BaseModel tiny-base"
    )


@pytest.mark.parametrize(
    "family, hidden, batch, steps, rate",
    [
        ("llama", 2000, 128, 100, 5e-4),
        ("llama", 4096, 128, 500, 2.9e-4),
        ("llama", 576, 128, 500, 1.3e-3),
        ("qwen2", 3584, 128, 500, 4.8e-4),
        ("llama", 2000, 32, 500, 2.5e-4),
        ("llama", 2000, 128, 99, 7.5e-4),
    ],
)
def test_the_formula_falls_with_the_width_and_rises_with_the_batch_and_for_short_runs(
    family: str, hidden: int, batch: int, steps: int, rate: float
) -> None:
    assert learning_rate.by_formula(learning_rate.Width(family, hidden), batch, steps).value == rate


def test_the_steps_are_those_of_epochs_and_batch() -> None:
    chosen = learning_rate.choose(spec({"epochs": 2, "batchSize": 128}), LLAMA, 640)
    assert chosen.text == "0.00043 (by llama of width 4096, 128 examples a step, 10 steps)"


@pytest.mark.parametrize("parameters, rate", [(None, 2e-4), (8e9, 2e-4), (7e10, 1e-4)])
def test_a_record_of_an_earlier_version_keeps_the_fixed_rate(parameters: float | None, rate: float) -> None:
    known = {"parameters": int(parameters)} if parameters else {}
    assert learning_rate.choose(spec(learningRateRule=None, **known), LLAMA, 1000).value == rate


def test_a_model_without_a_width_gets_the_fixed_rate() -> None:
    assert learning_rate.width({"model_type": "gpt2", "n_embd": 768}) is None
    assert learning_rate.choose(spec(), None, 1000).text == "0.0002 (config.json has no hidden_size)"


def test_the_width_of_a_model_with_several_parts_is_that_of_its_text() -> None:
    config = {"model_type": "gemma3", "text_config": {"hidden_size": 2560}}
    assert learning_rate.width(config) == learning_rate.Width("gemma3", 2560)


def test_preflight_shows_the_rate_that_training_takes(world: Callable[..., run.Run]) -> None:
    made = world(training={"maxSteps": 2, "learningRate": None})
    base = made.base_model.model_copy(update={"learning_rate_rule": "Formula"})
    formula = made.model_copy(update={"base_model": base})
    found = preflight.preflight(formula).preflight
    assert found is not None
    result: outcome.Training | None = train.train(formula, 1, 1.0).training
    assert result is not None
    assert found.learning_rate == f"{result.learning_rate} (by llama of width 128, 8 examples a step, 2 steps)"
    history = json.loads(pathlib.Path(f"{formula.layout.adapter.removeprefix('file://')}/training.json").read_text())[
        "history"
    ]
    assert max(point["learningRate"] for point in history) == result.learning_rate
