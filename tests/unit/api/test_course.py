"""What operator and command line give a stage is what the trainer's parser takes."""

import pytest

from finetune_api import course, evaluation, intent, job, reasons, status
from finetune_trainer import __main__ as trainer

ADAPTER = status.Adapter(uri="s3://acme/a", sha256="ab" * 32, bytes=1, rank=8)


@pytest.mark.parametrize("stage", sorted(course.LOADING))
@pytest.mark.parametrize("share", [None, 0.5])
def test_a_stage_that_loads_the_model_takes_its_attempt_and_its_share(
    stage: reasons.Stage, share: float | None
) -> None:
    judged = stage is reasons.Stage.EVALUATE
    given = course.arguments(stage, 3, share, ADAPTER if judged else None, ADAPTER if judged else None)
    read = trainer.parser().parse_args([stage.value, *given])
    assert (read.attempt, read.micro_batch_scale) == (3, share or 1.0)
    if judged:
        assert (read.adapter, read.sha256, read.serving) == (ADAPTER.uri, ADAPTER.sha256, ADAPTER.uri)


def test_preflight_has_no_attempt_and_no_share() -> None:
    assert course.arguments(reasons.Stage.PREFLIGHT, 2, 0.5) == []


def test_an_out_of_memory_is_answered_once_with_half() -> None:
    assert course.smaller(None) == 0.5
    assert course.smaller(0.5) is None


@pytest.mark.parametrize(
    "advice, minimum, measured", [("Warn", 0.8, True), ("Ignore", 0.8, False), ("Enforce", None, False)]
)
def test_a_baseline_is_measured_where_a_gate_can_decide_and_advice_is_wanted(
    advice: str, minimum: float | None, measured: bool
) -> None:
    gates = [] if minimum is None else [job.Gate(metric=job.Metric.EXACT_MATCH, minimum=minimum)]
    why, how = intent.Intent(advice=intent.Advice(advice)), evaluation.Evaluation(gates=gates)
    assert course.measures_a_baseline(why, how) == measured


@pytest.mark.parametrize("advice, enough", [("Enforce", True), ("Warn", False)])
def test_a_prompt_is_enough_only_under_enforce(advice: str, enough: bool) -> None:
    found = status.Baseline(sufficient=job.Contender.PROMPT, examples=32, message="m")
    assert course.prompt_is_enough(intent.Intent(advice=intent.Advice(advice)), found) == enough
    assert not course.prompt_is_enough(intent.Intent(advice=intent.Advice(advice)), None)
