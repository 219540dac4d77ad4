"""Gates that no model could pass on the job's test examples are refused in preflight, with the reason."""

import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from tests.trainer import tiny

from finetune_api import job, reasons, run
from finetune_trainer.data import dataset
from finetune_trainer.evaluation import feasible
from finetune_trainer.process import errors
from finetune_trainer.stages import baseline, evaluate, preflight, train
from finetune_trainer.store import folders, storage

World = Callable[..., run.Run]


def examples(answers: list[str]) -> list[dataset.Example]:
    return [
        dataset.example(
            {"prompt": f"What is {n}?", "completion": text}, job.Format.PROMPT_COMPLETION, f"a.jsonl:{n + 1}"
        )
        for n, text in enumerate(answers)
    ]


def problem(answers: list[str], gate: dict[str, Any], **rules: Any) -> str | None:
    return feasible.problem(job.Evaluation.model_validate({"gates": [gate], **rules}), examples(answers))


LABELS = ["a", "b", "c"] * 20
OBJECTS = ['{"a": 1}', '{"a": 2}'] * 30
PLAIN = ["yes it is", "no it is not"] * 30
SCHEMA = {"type": "object", "properties": {"a": {"maximum": 1}}}


@pytest.mark.parametrize(
    "answers, gate, rules, words",
    [
        (
            LABELS[:10],
            {"metric": "ExactMatch", "minimum": 0.9},
            {},
            ["ExactMatch at least 0.9", "n 10", "too few examples"],
        ),
        (LABELS[:3], {"metric": "ExactMatch", "minimum": 0.5}, {}, ["n 3", "too few examples"]),
        (LABELS[:4], {"metric": "ExactMatch", "over": "Base"}, {}, ["better than Base", "too few examples"]),
        (LABELS, {"metric": "Accuracy", "minimum": 0.5}, {"labels": ["x", "y"]}, ["a.jsonl:1", "'a' is none of"]),
        (LABELS, {"metric": "MacroF1", "minimum": 0.5}, {"labels": ["x", "y"]}, ["none of evaluation.labels"]),
        (PLAIN, {"metric": "JsonValid", "minimum": 0.9}, {}, ["a.jsonl:1", "'yes it is' is not JSON"]),
        (PLAIN, {"metric": "FieldF1", "minimum": 0.5}, {}, ["is not JSON"]),
        (
            OBJECTS,
            {"metric": "JsonSchema", "minimum": 0.9},
            {"outputSchema": SCHEMA},
            ["a.jsonl:2", "$.a: 2 is greater"],
        ),
        (PLAIN, {"metric": "ToolCallMatch", "minimum": 0.9}, {}, ["was not measured"]),
        (PLAIN[:3], {"metric": "RougeL", "minimum": 0.5}, {}, ["n 3", "gets this far in 12 of 100 cases"]),
        (PLAIN[:4], {"metric": "Bleu", "over": "Base"}, {}, ["n 4", "too few examples"]),
        (OBJECTS[:10], {"metric": "FieldF1", "minimum": 0.9}, {}, ["n 10", "too few examples"]),
    ],
)
def test_a_gate_that_a_model_without_a_mistake_fails_is_named(
    answers: list[str], gate: dict[str, Any], rules: dict[str, Any], words: list[str]
) -> None:
    found = problem(answers, gate, **rules) or ""
    assert [word for word in words if word not in found] == []


@pytest.mark.parametrize(
    "answers, gate, rules",
    [
        (LABELS[:30], {"metric": "ExactMatch", "minimum": 0.9}, {}),
        (LABELS[:10], {"metric": "ExactMatch", "minimum": 0.9, "confidence": 0.5}, {}),
        (LABELS[:3], {"metric": "ExactMatch", "minimum": 1}, {}),
        (LABELS[:3], {"metric": "ExactMatch", "over": "Serving"}, {}),
        (LABELS[:5], {"metric": "ExactMatch", "over": "Base"}, {}),
        (LABELS[:3], {"metric": "ExactMatch", "maximum": 0.5}, {}),
        (LABELS, {"metric": "Accuracy", "minimum": 0.9}, {"labels": ["A", "b", "C"]}),
        (LABELS, {"metric": "InvalidLabels", "maximum": 0.1}, {"labels": ["a", "b", "c"]}),
        (OBJECTS, {"metric": "JsonSchema", "minimum": 0.3}, {"outputSchema": SCHEMA}),
        (OBJECTS, {"metric": "FieldF1", "minimum": 0.9}, {}),
        (PLAIN[:30], {"metric": "RougeL", "minimum": 0.9}, {}),
        (PLAIN[:3], {"metric": "Chrf", "minimum": 1}, {}),
        (PLAIN[:2], {"metric": "Loss", "over": "Base"}, {}),
        (PLAIN[:1], {"metric": "Forgetting", "maximum": 0.05}, {}),
    ],
)
def test_a_gate_that_a_good_model_passes_is_accepted(
    answers: list[str], gate: dict[str, Any], rules: dict[str, Any]
) -> None:
    assert problem(answers, gate, **rules) is None


def test_calls_of_tools_are_expected_answers_too() -> None:
    rows = tiny.calling(40)
    made = [dataset.example(row, job.Format.CHAT, f"a.jsonl:{n}") for n, row in enumerate(rows)]
    for metric in ("ToolCallMatch", "ToolCallValid"):
        gate = {"metric": metric, "minimum": 0.8, "over": "Base"}
        assert feasible.problem(job.Evaluation.model_validate({"gates": [gate]}), made) is None
        assert feasible.problem(job.Evaluation.model_validate({"gates": [gate]}), made[:2]) is not None


def test_preflight_refuses_the_job_and_says_what_to_do(world: World) -> None:
    gates = [{"metric": "ExactMatch", "minimum": 0.9}, {"metric": "Loss", "over": "Base"}]
    with pytest.raises(errors.Failure) as caught:
        preflight.preflight(world(tiny.examples(60), evaluation={"gates": gates}))
    assert caught.value.reason is reasons.Reason.DATASET_INVALID
    assert all(word in caught.value.message for word in ("ExactMatch at least 0.9", "confidence"))
    gates[0]["confidence"] = 0.5
    assert preflight.preflight(world(tiny.examples(60), evaluation={"gates": gates})).preflight is not None


def test_only_the_examples_that_are_tested_count(world: World) -> None:
    gate = {"metric": "ExactMatch", "minimum": 0.7}
    rows = tiny.examples(200)
    with pytest.raises(errors.Failure, match="n 5"):
        preflight.preflight(world(rows, evaluation={"gates": [gate], "maximumExamples": 5}))
    assert preflight.preflight(world(rows, evaluation={"gates": [gate]})).preflight is not None


@pytest.mark.parametrize(
    "stage",
    [
        preflight.preflight,
        lambda spec: baseline.baseline(spec, 1),
        lambda spec: train.train(spec, 1, 1.0),
        lambda spec: evaluate.evaluate(spec, None, None, 1),
    ],
    ids=["preflight", "baseline", "train", "evaluate"],
)
def test_gates_that_were_edited_after_the_split_was_frozen_are_checked_before_a_model_is_loaded(
    stage: Callable[[run.Run], Any], world: World, tmp_path: pathlib.Path
) -> None:
    rows = tiny.examples(60)
    accepted = world(rows, evaluation={"gates": [{"metric": "ExactMatch", "minimum": 0.9, "confidence": 0.5}]})
    preflight.preflight(accepted)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    folders.save(storage.of(accepted.storage), tmp_path / "adapter", accepted.layout.adapter, {})
    edited = world(rows, evaluation={"gates": [{"metric": "ExactMatch", "minimum": 0.9, "confidence": 0.99}]})
    with pytest.raises(errors.Failure, match="cannot be passed by any model") as caught:
        stage(edited)
    assert caught.value.reason is reasons.Reason.DATASET_INVALID
