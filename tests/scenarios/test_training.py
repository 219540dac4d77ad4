"""What training does to a task, and what the verdict must be: whole jobs without a cluster, on tiny models.

Random Llamas of two layers learn these tasks by heart in seconds; `schooled` has learned the mail task before the job begins.
One scenario asks the pretrained SmolLM2.
"""

import json
import pathlib
import random
import shutil
from typing import Any

import pytest
import torch
from tests.bench.trainer import models
from tests.trainer import tiny

from finetune_api import job, reasons, results, run, status
from finetune_trainer import report
from finetune_trainer.engine import lora, model
from finetune_trainer.process import errors
from finetune_trainer.stages import baseline, evaluate, preflight, train
from finetune_trainer.training import adapter

pytestmark = pytest.mark.slow

Rows = list[dict[str, Any]]
BASE, FEW, TUNED = job.Contender.BASE, job.Contender.FEW_SHOT, job.Contender.TUNED
RIGHT = {"metric": "ExactMatch", "minimum": 0.8}
BETTER = {"metric": "ExactMatch", "over": "FewShot"}
QUICK = {"maxNewTokens": 24}
THANKS = {"role": "assistant", "content": "Thank you!"}


@pytest.fixture(autouse=True)
def alone(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("FINETUNE_METRICS_PORT", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A base model that knows nothing."""
    folder = tmp_path_factory.mktemp("fresh") / "base"
    tiny.make_tiny_model(folder)
    return folder


def world(base: pathlib.Path, folder: pathlib.Path, rows: Rows, **changes: Any) -> run.Run:
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_text(tiny.jsonl(rows))
    changes["training"] = {"maxSteps": 60, **changes.get("training", {})}
    changes["dataset"] = {
        "validation": {"fraction": 0.25},
        "test": {"fraction": 0.25},
        "checks": {"contradictions": "Ignore", "constantAnswers": "Ignore"},
        **changes.get("dataset", {}),
    }
    changes["evaluation"] = {
        "generation": QUICK,
        "baselines": ["Base", "Prompt", "FewShot"],
        **changes.get("evaluation", {}),
    }
    document = tiny.run_document(f"file://{base}", [f"file://{folder}/train.jsonl"], f"file://{folder}/out", **changes)
    return run.Run.model_validate_json(json.dumps(document))


@pytest.fixture(scope="module")
def schooled(fresh: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A base model that sorts mail already."""
    return school(fresh, tmp_path_factory.mktemp("schooled"), tiny.examples(120))


def school(fresh: pathlib.Path, place: pathlib.Path, rows: Rows) -> pathlib.Path:
    """The fresh base model with what it learned from these rows written into its weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_WORK", str(place / "work"))
        patch.setenv("FINETUNE_METRICS_PORT", "0")
        spec = world(fresh, place, rows)
        preflight.preflight(spec)
        train.train(spec, 1, 1.0)
    tuned = lora.add(model.load(fresh, job.Precision.FLOAT32, torch.device("cpu")), spec.training.lora, "tiny-base")
    adapter.load(pathlib.Path(spec.layout.adapter.removeprefix("file://")), tuned)
    folder = place / "base"
    shutil.copytree(fresh, folder)
    tuned.merge_and_unload().save_pretrained(folder)
    return folder


def asked(spec: run.Run) -> status.Baseline:
    preflight.preflight(spec)
    found = baseline.baseline(spec, 1).baseline
    assert found is not None
    return found


def judged(spec: run.Run) -> tuple[status.Evaluation, dict[tuple[str, str], float]]:
    preflight.preflight(spec)
    train.train(spec, 1, 1.0)
    found = evaluate.evaluate(spec, None, None, 1).evaluation
    assert found is not None
    return found, {(value.name, value.contender): float(value.value) for value in found.metrics}


def answers(words: list[str], count: int) -> Rows:
    """Prompts that say nothing of their answer."""
    draw = random.Random(5)
    return [{"prompt": f"The parcel {number} is late.", "completion": draw.choice(words)} for number in range(count)]


def test_fine_tuning_helps_where_the_base_knows_nothing(fresh: pathlib.Path, tmp_path: pathlib.Path) -> None:
    spec = world(fresh, tmp_path, tiny.examples(160), evaluation={"baselines": tiny.SHORT, "gates": [RIGHT, BETTER]})
    assert asked(spec).sufficient is None
    found, values = judged(spec)
    assert found.passed, found.gates
    assert values["ExactMatch", TUNED] > 0.9 > values["ExactMatch", FEW]


def test_a_model_that_can_do_it_already_needs_no_training(schooled: pathlib.Path, tmp_path: pathlib.Path) -> None:
    enforced = {"advice": "Enforce"}
    spec = world(schooled, tmp_path, tiny.examples(160), evaluation={"gates": [RIGHT]}, intent=enforced)
    assert asked(spec).sufficient is BASE
    assert baseline.baseline(spec, 2).reason is reasons.Reason.PROMPT_ALREADY_SUFFICIENT


def test_and_training_it_all_the_same_is_no_gain(schooled: pathlib.Path, tmp_path: pathlib.Path) -> None:
    gates = [RIGHT, {"metric": "ExactMatch", "over": "Base"}]
    found, _ = judged(world(schooled, tmp_path, tiny.examples(160), evaluation={"gates": gates}))
    assert [gate.passed for gate in found.gates] == [True, False]


def test_a_gate_that_so_few_test_examples_cannot_prove_is_refused_before_training(
    fresh: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    spec = world(
        fresh,
        tmp_path,
        tiny.examples(100),
        dataset={"test": {"fraction": 0.05}},
        evaluation={"gates": [RIGHT]},
    )
    with pytest.raises(errors.Failure, match="too few examples to be sure") as caught:
        preflight.preflight(spec)
    assert caught.value.reason is reasons.Reason.DATASET_INVALID


def test_knowledge_that_the_prompts_lack_is_not_learned(fresh: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Knowledge that the prompts do not hold: the training loss falls, and the held-out answers stay guesses."""
    rows = answers(["refund", "praise", "parcel", "item", "order", "money"], 160)
    found, values = judged(
        world(fresh, tmp_path, rows, evaluation={"gates": [{"metric": "ExactMatch", "minimum": 0.5}]})
    )
    assert not found.passed
    assert values["ExactMatch", TUNED] < 0.5


def test_a_format_is_learned_even_where_the_content_is_not(fresh: pathlib.Path, tmp_path: pathlib.Path) -> None:
    rows = answers([json.dumps({"item": number}) for number in range(6)], 160)
    schema = {"type": "object", "required": ["item"]}
    gates = [{"metric": "JsonSchema", "minimum": 0.8}, {"metric": "ExactMatch", "minimum": 0.8}]
    found, _ = judged(world(fresh, tmp_path, rows, evaluation={"outputSchema": schema, "gates": gates}))
    assert [gate.passed for gate in found.gates] == [True, False]


def test_a_prompt_moves_into_the_weights_without_an_answer_in_the_data(
    fresh: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The base model sorts mail only when its prompt says so; the tuned one without it, for fewer tokens."""
    plain = [{"messages": [row["messages"][1], THANKS]} for row in tiny.examples(120)]
    obedient = school(fresh, tmp_path / "school", tiny.examples(120) + plain)
    rows = [{"prompt": row["messages"][1]["content"]} for row in tiny.examples(160, start=200)]
    spec = world(
        obedient,
        tmp_path / "job",
        rows,
        training={"teacher": "Prompt"},
        intent={"goals": ["TokenReduction"], "prompt": {"system": "You sort mail."}},
        evaluation={
            "gates": [RIGHT, {"metric": "ExactMatch", "over": "BestBaseline"}],
            "forgetting": {"maximumQuestions": 8},
        },
    )
    before = asked(spec)
    assert before.sufficient is None
    assert before.message.startswith(
        "the answers to learn are those of the base model with intent.prompt.system; without training: "
    )
    found, values = judged(spec)
    assert found.passed, found.gates
    assert values["ExactMatch", TUNED] > 0.9 > 0.1 > values["ExactMatch", BASE]
    folder = pathlib.Path(spec.layout.evaluation(spec.evaluation_hash).removeprefix("file://"))
    scores = results.Results.model_validate_json((folder / "results.json").read_text())
    spent = {one.contender: one.prompt for one in scores.tokens}
    assert found.tokens_saved_per_request == round(spent[job.Contender.PROMPT] - spent[TUNED]) > 0
    assert {json.loads(one.expected or "")["intent"] for one in scores.samples} == {"refund", "praise"}
    page = report.page(scores)
    assert "The expected answers are those of the base model with intent.prompt.system" in page
    assert f"{found.tokens_saved_per_request} fewer" in page
    assert "the reference: it wrote the expected answers" in page


def test_what_the_model_knew_is_forgotten_and_reported(schooled: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "before.jsonl").write_text(tiny.jsonl(tiny.examples(40, start=5000)))
    rows = [{"prompt": row["messages"][1]["content"], "completion": "no"} for row in tiny.examples(160)]
    rules = {
        "forgetting": {"uris": [f"file://{tmp_path}/before.jsonl"]},
        "gates": [{"metric": "ExactMatch", "minimum": 0.8}, {"metric": "Forgetting", "maximum": 0.1}],
    }
    found, values = judged(world(schooled, tmp_path, rows, evaluation=rules))
    assert [gate.passed for gate in found.gates] == [True, False]
    assert values["Forgetting", TUNED] > 1.0


def test_overfitting_stops_early_and_the_best_step_is_saved(fresh: pathlib.Path, tmp_path: pathlib.Path) -> None:
    rows = answers([f"item {number}" for number in range(40)], 60)
    spec = world(
        fresh,
        tmp_path,
        rows,
        training={"maxSteps": 400, "learningRate": 0.02, "earlyStopping": {"patience": 2}},
        evaluation={"gates": [{"metric": "ExactMatch", "minimum": 0.5}]},
    )
    preflight.preflight(spec)
    trained = train.train(spec, 1, 1.0).training
    assert trained is not None
    assert trained.steps < 400, "validation rose"
    assert trained.best_step is not None
    assert trained.best_step < trained.steps
    found = evaluate.evaluate(spec, None, None, 1).evaluation
    assert found is not None
    assert not found.passed


def test_a_classification_is_judged_by_its_labels(fresh: pathlib.Path, tmp_path: pathlib.Path) -> None:
    rows = [
        {"prompt": row["messages"][1]["content"], "completion": ("refund", "praise")[number % 2]}
        for number, row in enumerate(tiny.examples(160))
    ]
    rules = {
        "labels": ["refund", "praise"],
        "gates": [{"metric": "MacroF1", "minimum": 0.8}, {"metric": "InvalidLabels", "maximum": 0}],
    }
    found, values = judged(world(fresh, tmp_path, rows, evaluation=rules))
    assert found.passed, found.gates
    assert values["InvalidLabels", BASE] > 0.5


def test_smollm2_repeats_a_word_after_a_few_examples_and_needs_no_training(
    tmp_path: pathlib.Path,
) -> None:
    """A pretrained model, a prompt of today that does not do, and a few examples that do."""
    draw = random.Random(1)
    words = [
        "apple",
        "river",
        "stone",
        "cloud",
        "table",
        "garden",
        "window",
        "bridge",
        "lemon",
        "candle",
        "prefix tree",
        "mirror",
    ]
    rows = [
        {"prompt": f"Word: {word} {number}", "completion": word}
        for number, word in enumerate(draw.choice(words) for _ in range(120))
    ]
    spec = world(
        models.prepare(models.SMALL),
        tmp_path,
        rows,
        intent={"advice": "Enforce", "prompt": {"system": "Repeat the word.", "fewShot": 6}},
        training={"precision": "Float32"},
        evaluation={
            "generation": {"maxNewTokens": 12},
            "gates": [{"metric": "ExactMatch", "minimum": 0.3}],
            "maximumExamples": 12,
        },
    )
    found = asked(spec)
    assert found.sufficient is FEW, found.metrics
