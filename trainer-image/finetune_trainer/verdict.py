"""The verdict of preflight, pure: what was measured of the data, and what that means for this job.

preflight.json keeps the facts, findings included, so that a later attempt under another threshold or advice judges the
same frozen split.
"""

import dataclasses
from typing import Any

from finetune_api import checks, job, outcome, reasons, run, status

WEIGHTY = 0.01
"""Share of the rows from which a warning changes the verdict; an error does in any case, a note never."""

SPOKEN_OF = 4
"""Findings that the advice speaks of; all of them are in preflight.json."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """The measured data. Tokens are of the training examples."""

    train: int
    validation: int
    test: int
    tokens: int
    trainable: int
    truncated: float
    """Share of the training examples."""
    findings: list[dict[str, Any]]
    """What the data checks found: `checks.review.Finding.document` of each rule."""
    memory: str | None
    """Estimated memory of training, for people."""
    memory_advice: str | None = None
    """What to change where that is more than there is."""
    lengths: dict[str, float] | None = None
    """Of the training examples: estimate.Examples."""


def judge(spec: run.Run, facts: Facts) -> outcome.Outcome:
    """Verdict and advice; under Enforce too few examples end the job."""
    ignored = spec.intent.advice is job.Advice.IGNORE
    few = facts.train < spec.dataset.minimum_examples and not ignored
    serious = [finding for finding in facts.findings if weighty(finding)]
    advice = []
    if few:
        advice.append(
            f"{facts.train} training examples are fewer than the {spec.dataset.minimum_examples} of "
            "dataset.minimumExamples: collect hundreds, or use a prompt with a few of them as examples."
        )
    if facts.memory_advice and not ignored:
        advice.append(facts.memory_advice)
    if not ignored:
        advice += [f"{finding['rule']}: {finding['advice']}" for finding in serious[:SPOKEN_OF]]
    numbers: dict[str, Any] = {
        "verdict": "NotRecommended" if few else "Caution" if serious or facts.memory_advice else "Recommended",
        "advice": advice,
        "findings": [finding["line"] for finding in facts.findings],
        "examples": facts.train,
        "validation_examples": facts.validation,
        "test_examples": facts.test,
        "tokens": facts.tokens,
        "trainable_tokens": facts.trainable,
        "estimated_memory": facts.memory,
    }
    counts = f"{facts.train} training, {facts.validation} validation and {facts.test} test examples"
    return outcome.Outcome(
        stage=reasons.Stage.PREFLIGHT,
        reason=reasons.Reason.TOO_FEW_EXAMPLES if few and spec.intent.advice is job.Advice.ENFORCE else None,
        message=advice[0] if few else f"{counts}, {facts.tokens} tokens, {facts.trainable} of them learned",
        preflight=status.Preflight(**numbers),
    )


def weighty(finding: dict[str, Any]) -> bool:
    """Whether a finding is worth a Caution."""
    if finding["severity"] == checks.Severity.WARNING:
        return bool(finding["share"] >= WEIGHTY)
    return bool(finding["severity"] == checks.Severity.ERROR)
