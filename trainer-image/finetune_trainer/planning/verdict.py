"""The verdict of preflight, pure: what the measurements mean for this job.

measurements.Measurements -> `advisor` -> verdict, advice, and under Enforce the end of the job
"""

from typing import Any

from finetune_api import checks, job, outcome, reasons, run, status
from finetune_trainer.planning import advisor, effort, learning_rate, measurements
from finetune_trainer.process import progress

SIGNIFICANT = 0.01
"""Share of the rows from which a warning changes the verdict; an error always does, a note never."""

MENTIONED = 3
"""Things to do up to which the advice mentions findings; all of them are in preflight.json."""

VERDICTS = {
    advisor.Weight.NOTE: "Recommended",
    advisor.Weight.CAUTION: "Caution",
    advisor.Weight.AGAINST: "NotRecommended",
}


def decide(spec: run.Run, measured: measurements.Measurements) -> outcome.Outcome:
    """Verdict and advice; advice against the job ends it under Enforce."""
    given = advisor.advise(spec, measured)
    against = [one for one in given if one.weight is advisor.Weight.AGAINST]
    serious = [finding for finding in measured.findings if significant(finding)]
    weights = [one.weight for one in given] + [advisor.Weight.CAUTION] * bool(serious)
    texts = [one.text for one in given if one.weight is not advisor.Weight.NOTE]
    if spec.intent.advice is not job.Advice.IGNORE:
        texts += [f"{finding['rule']}: {finding['advice']}" for finding in serious[: max(0, MENTIONED - len(texts))]]
    texts += [one.text for one in given if one.weight is advisor.Weight.NOTE]
    duration = effort.seconds(spec, measured.work)
    numbers: dict[str, Any] = {
        "verdict": VERDICTS[max(weights, default=advisor.Weight.NOTE)],
        "advice": texts,
        "findings": [finding["line"] for finding in measured.findings],
        "examples": measured.train,
        "validation_examples": measured.validation,
        "test_examples": measured.test,
        "tokens": measured.tokens,
        "trainable_tokens": measured.trainable,
        "examples_with_tools": measured.tools,
        "learning_rate": rate(spec, measured),
        "estimated_memory": measured.memory,
        "estimated_duration": None if duration is None else progress.duration(duration),
        "estimated_cost": effort.price(spec, duration),
        "estimated_evaluation": None
        if measured.evaluation_gpus is None
        else status.EvaluationEstimate(gpus=measured.evaluation_gpus, gpu_type=spec.gpu_type),
    }
    counts = f"{measured.train} training, {measured.validation} validation and {measured.test} test examples"
    ends = bool(against) and spec.intent.advice is job.Advice.ENFORCE
    return outcome.Outcome(
        stage=reasons.Stage.PREFLIGHT,
        reason=against[0].reason if ends else None,
        message=against[0].text
        if against
        else f"{counts}, {measured.tokens} tokens, {measured.trainable} of them learned",
        preflight=status.Preflight(**numbers),
    )


def rate(spec: run.Run, measured: measurements.Measurements) -> str | None:
    """The learning rate for people; None for measurements of a version that did not record the model's width."""
    if measured.width is None:
        return None
    return learning_rate.choose(spec, learning_rate.Width(**measured.width), measured.train).text


def significant(finding: dict[str, Any]) -> bool:
    """Whether a finding is worth a Caution."""
    if finding["severity"] == checks.Severity.WARNING:
        return bool(finding["share"] >= SIGNIFICANT)
    return bool(finding["severity"] == checks.Severity.ERROR)
