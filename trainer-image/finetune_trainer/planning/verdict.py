"""The verdict of preflight, pure: what was measured of the data, and what that means for this job.

facts.Facts -> `advisor` -> verdict, advice, and under Enforce the end of the job
"""

from typing import Any

from finetune_api import checks, job, outcome, reasons, run, status
from finetune_trainer.planning import advisor, effort, measurements
from finetune_trainer.process import progress

WEIGHTY = 0.01
"""Share of the rows from which a warning changes the verdict; an error does in any case, a note never."""

SPOKEN_OF = 4
"""Findings that the advice speaks of; all of them are in preflight.json."""

WORDS = {
    advisor.Weight.NOTE: "Recommended",
    advisor.Weight.CAUTION: "Caution",
    advisor.Weight.AGAINST: "NotRecommended",
}


def judge(spec: run.Run, found: measurements.Facts) -> outcome.Outcome:
    """Verdict and advice; what speaks against the job ends it under Enforce."""
    said = advisor.advise(spec, found)
    against = [one for one in said if one.weight is advisor.Weight.AGAINST]
    serious = [finding for finding in found.findings if weighty(finding)]
    weights = [one.weight for one in said] + [advisor.Weight.CAUTION] * bool(serious)
    heard = [one.text for one in said if one.weight is not advisor.Weight.NOTE]
    if spec.intent.advice is not job.Advice.IGNORE:
        heard += [f"{finding['rule']}: {finding['advice']}" for finding in serious[:SPOKEN_OF]]
    heard += [one.text for one in said if one.weight is advisor.Weight.NOTE]
    duration = effort.seconds(spec, found.work)
    numbers: dict[str, Any] = {
        "verdict": WORDS[max(weights, default=advisor.Weight.NOTE)],
        "advice": heard,
        "findings": [finding["line"] for finding in found.findings],
        "examples": found.train,
        "validation_examples": found.validation,
        "test_examples": found.test,
        "tokens": found.tokens,
        "trainable_tokens": found.trainable,
        "estimated_memory": found.memory,
        "estimated_duration": None if duration is None else progress.duration(duration),
        "estimated_cost": effort.price(spec, duration),
    }
    counts = f"{found.train} training, {found.validation} validation and {found.test} test examples"
    ends = bool(against) and spec.intent.advice is job.Advice.ENFORCE
    return outcome.Outcome(
        stage=reasons.Stage.PREFLIGHT,
        reason=against[0].reason if ends else None,
        message=against[0].text if against else f"{counts}, {found.tokens} tokens, {found.trainable} of them learned",
        preflight=status.Preflight(**numbers),
    )


def weighty(finding: dict[str, Any]) -> bool:
    """Whether a finding is worth a Caution."""
    if finding["severity"] == checks.Severity.WARNING:
        return bool(finding["share"] >= WEIGHTY)
    return bool(finding["severity"] == checks.Severity.ERROR)
