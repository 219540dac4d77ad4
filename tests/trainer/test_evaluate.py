import json
import pathlib
import re
from collections.abc import Callable

import pytest
import torch
import transformers
from tests.trainer import tiny

from finetune_api import job, reasons, results, run, status
from finetune_trainer.evaluation import contenders
from finetune_trainer.process import errors
from finetune_trainer.stages import evaluate, preflight, train

World = Callable[..., run.Run]
CPU = torch.device("cpu")
EXACT, LOSS = job.Metric.EXACT_MATCH, job.Metric.LOSS


@pytest.fixture(scope="module")
def scored(base: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[run.Run, status.Evaluation]:
    """A tiny model that learned its two answers by heart, evaluated once for all tests that only look at it."""
    folder = tmp_path_factory.mktemp("scored")
    (folder / "train.jsonl").write_text(tiny.jsonl(tiny.examples(60)))
    document = tiny.run_document(
        f"file://{base}",
        [f"file://{folder}/train.jsonl"],
        f"file://{folder}/out",
        training={"maxSteps": 60},
        evaluation={
            "generation": {"maxNewTokens": 40},
            "gates": [{"metric": "ExactMatch", "minimum": 0.9, "confidence": 0.5}, {"metric": "Loss", "over": "Base"}],
        },
    )
    spec = run.Run.model_validate_json(json.dumps(document))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_WORK", str(folder / "work"))
        patch.setenv("FINETUNE_METRICS_PORT", "0")
        preflight.preflight(spec)
        train.train(spec, 1, 1.0)
        answer = evaluate.evaluate(spec, None, None, 1)
    assert answer.evaluation is not None
    assert answer.report == spec.layout.report
    return spec, answer.evaluation


def path_of(uri: str) -> pathlib.Path:
    return pathlib.Path(uri.removeprefix("file://"))


def test_the_tuned_model_beats_the_base_and_everything_is_written(scored: tuple[run.Run, status.Evaluation]) -> None:
    spec, found = scored
    values = {(value.name, value.contender): float(value.value) for value in found.metrics}
    assert values[EXACT, job.Contender.TUNED] == 1.0
    assert values[EXACT, job.Contender.BASE] == 0.0
    assert values[LOSS, job.Contender.TUNED] < values[LOSS, job.Contender.BASE]
    assert found.passed
    assert found.score == "1.0000"
    assert found.examples == 6
    assert found.tries == 1
    folder = path_of(spec.layout.evaluation("e1"))
    assert {path.name for path in folder.iterdir()} == {"results.json", "samples.jsonl", "canary.json", "manifest.json"}
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 6
    assert all(sample["answers"]["Tuned"] == sample["expected"] != sample["answers"]["Base"] for sample in samples)
    scores = results.Results.model_validate_json((folder / "results.json").read_text())
    assert scores.evaluation == found
    assert {value.contender for value in scores.values} == {
        job.Contender.BASE,
        job.Contender.FEW_SHOT,
        job.Contender.RETRIEVED,
        job.Contender.MANY_SHOT,
        job.Contender.TUNED,
    }
    assert job.Metric.GENERAL_ACCURACY in {value.metric for value in scores.values}
    gains = {(one.metric, one.over): one for one in scores.comparisons}
    assert gains[LOSS, job.Contender.BASE].low > 0
    assert gains[LOSS, job.Contender.BASE].p_value < 0.05
    few, plain = (next(t.prompt for t in scores.tokens if t.contender == which) for which in ("FewShot", "Tuned"))
    assert few > 2 * plain, "three examples before the question"
    recorded = json.loads((folder / "canary.json").read_text())
    assert len(recorded["examples"]) == 4
    for example in recorded["examples"]:
        assert len(example["answer"]) == len(example["tuned"]) == len(example["base"]) <= 32
        assert sum(example["tuned"]) > sum(example["base"])
    assert recorded["request"]["messages"][0]["role"] == "system"


def test_the_recorded_log_probabilities_are_those_of_the_model(
    scored: tuple[run.Run, status.Evaluation], base: pathlib.Path
) -> None:
    spec, _ = scored
    recorded = json.loads((path_of(spec.layout.evaluation("e1")) / "canary.json").read_text())
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    example = recorded["examples"][0]
    ids = torch.tensor([example["prompt"] + example["answer"]])
    scores = torch.log_softmax(plain(ids).logits[0].float(), -1)
    begin = len(example["prompt"])
    expected = [float(scores[begin + index - 1, token]) for index, token in enumerate(example["answer"])]
    assert example["base"] == pytest.approx(expected, abs=0.2)


def test_a_second_attempt_answers_at_once(
    scored: tuple[run.Run, status.Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, found = scored
    monkeypatch.setattr(evaluate, "measure", None)
    assert evaluate.evaluate(spec, None, None, 2).evaluation == found


def test_an_adapter_that_was_replaced_is_not_scored(scored: tuple[run.Run, status.Evaluation]) -> None:
    spec, _ = scored
    with pytest.raises(errors.Failure, match="replaced"):
        evaluate.evaluate(spec, spec.layout.adapter, "0" * 64, 1)
    with pytest.raises(errors.Failure, match="run the train stage") as caught:
        evaluate.evaluate(spec, spec.layout.root + "/elsewhere", None, 1)
    assert caught.value.reason is reasons.Reason.ADAPTER_INCOMPATIBLE


def test_the_report_is_one_page_without_requests(scored: tuple[run.Run, status.Evaluation]) -> None:
    spec, _ = scored
    page = path_of(spec.layout.report).read_text()
    assert not re.search(r"""(src|href)="(?!data:,")|url\(|@import|<script|https?://""", page)
    assert "prefers-color-scheme: dark" in page
    assert page.count("<polyline") == 2
    assert "Passed." in page
    assert "ExactMatch at least 0.9" in page
    assert page.count("<details") == 6


def test_another_evaluation_scores_the_same_adapter_again(scored: tuple[run.Run, status.Evaluation]) -> None:
    """The last one that looks at the first evaluation: it writes another report in its place."""
    spec, _ = scored
    hard = [job.Gate(metric=EXACT, minimum=1.0), job.Gate(metric=LOSS, maximum=0.000001)]
    changed = spec.model_copy(
        update={"evaluation_hash": "e2", "evaluation": spec.evaluation.model_copy(update={"gates": hard})}
    )
    answer = evaluate.evaluate(changed, None, None, 1)
    assert answer.evaluation is not None
    assert answer.reason is None, "a gate that fails is no failure of the stage"
    assert not answer.evaluation.passed
    assert answer.message.startswith("1 of 2 gates failed: Loss at most 1e-06")
    assert [gate.missed for gate in answer.evaluation.gates] == [None, "ByEvidence"]
    assert answer.evaluation.missed == "ByEvidence"
    assert path_of(changed.layout.evaluation("e2")).is_dir()


def test_plain_text_is_trained_and_scored_by_its_loss(world: World) -> None:
    rows = [{"text": f"Thank you for {number}, it is great!"} for number in range(60)]
    spec = world(rows, evaluation={"gates": [{"metric": "Loss", "maximum": 0.000001}]})
    preflight.preflight(spec)
    train.train(spec, 1, 1.0)
    answer = evaluate.evaluate(spec, None, None, 1).evaluation
    assert answer is not None
    assert {value.name for value in answer.metrics} == {LOSS, job.Metric.PERPLEXITY, job.Metric.FORGETTING}
    assert not answer.passed
    losses = {value.contender: value.value for value in answer.metrics if value.name is LOSS}
    assert answer.score == losses[job.Contender.TUNED]
    assert float(losses[job.Contender.TUNED]) < float(losses[job.Contender.BASE])
    recorded = json.loads((path_of(spec.layout.evaluation("e1")) / "canary.json").read_text())
    assert recorded["request"]["prompt"].startswith("Thank you for")
    assert recorded["examples"]


def test_no_more_than_the_maximum_is_scored_and_always_the_same() -> None:
    chosen = contenders.choose(list(range(100)), 3, 7)  # type: ignore[arg-type]
    assert len(chosen) == 3
    assert chosen == contenders.choose(list(range(100)), 3, 7)  # type: ignore[arg-type]
    assert chosen == sorted(chosen)  # type: ignore[type-var]
