"""The answer of a stage's pod: at most 4 KiB, always JSON that the operator can read, the result last to be shortened."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api import job, outcome, reasons, status

TEXT = st.text(max_size=2000)


def preflight(findings=(), advice=()):
    return status.Preflight(
        verdict="Caution", findings=list(findings), advice=list(advice), examples=10, tokens=100, trainable_tokens=50
    )


def evaluation(metrics=0, gates=0, words=""):
    return status.Evaluation(
        passed=True,
        examples=40,
        score="0.9250",
        metrics=[
            status.MetricValue(name=metric, contender=contender, value="0.9250" + words)
            for metric in job.Metric
            for contender in job.Contender
        ][:metrics],
        gates=[
            status.GateResult(metric=job.Metric.LOSS, requirement=f"at most 1 {words}", observed="0.71", passed=True)
            for _ in range(gates)
        ],
    )


def read(text):
    assert len(text.encode()) <= outcome.TERMINATION_BYTES
    return outcome.Outcome.model_validate(json.loads(text))


def test_a_short_answer_is_sent_whole():
    answer = outcome.Outcome(stage=reasons.Stage.PREFLIGHT, message="fine", preflight=preflight(["a"], ["b"]))
    assert read(answer.termination_message()) == answer


@given(st.lists(TEXT, max_size=50), st.lists(TEXT, max_size=20), TEXT)
def test_any_answer_of_preflight_fits(findings, advice, message):
    answer = outcome.Outcome(
        stage=reasons.Stage.PREFLIGHT,
        reason=reasons.Reason.DATASET_INVALID,
        message=message,
        preflight=preflight(findings, advice),
    )
    found = read(answer.termination_message())
    assert (found.stage, found.reason) == (answer.stage, answer.reason)
    assert found.preflight is not None
    assert found.preflight.tokens == 100


@given(st.text(min_size=1, max_size=9).map(lambda words: words * 1000))
def test_a_long_message_keeps_its_beginning(message):
    found = read(outcome.Outcome(stage=reasons.Stage.TRAIN, message=message).termination_message())
    assert found.message
    assert message.startswith(found.message)


def test_the_first_findings_stay():
    findings = [f"train.jsonl line {line}: " + "x" * 100 for line in range(100)]
    found = read(outcome.Outcome(stage=reasons.Stage.PREFLIGHT, preflight=preflight(findings)).termination_message())
    assert found.preflight.findings
    assert found.preflight.findings == findings[: len(found.preflight.findings)]


@pytest.mark.parametrize("words", ["", "ä" * 200, "😀" * 300])
def test_an_evaluation_with_every_metric_and_gate_fits_and_keeps_its_verdict(words):
    answer = outcome.Outcome(
        stage=reasons.Stage.EVALUATE, message="compared", evaluation=evaluation(metrics=10, gates=16, words=words)
    )
    found = read(answer.termination_message())
    assert (found.evaluation.passed, found.evaluation.score) == (True, "0.9250")
