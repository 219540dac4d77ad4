"""Several base models for one job: which comes first, and what was measured of each. Pure.

A candidate is a revision of its own, whose spec names it (`of`); so it has its own hashes, stages and folders.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from finetune_api import job, model

LARGE = 20_000_000_000
"""Parameters above which a base model is large: preflight asks whether a smaller one was measured."""

RECORDS = 8
"""Measurements of smaller models that preflight gets at most."""


class Candidate(model.Model):
    """One of baseModel.candidates: what was measured of it on the job's data, and what it cost."""

    model_config = model.Model.model_config | {"extra": "ignore"}

    model: str = Field(description="The BaseModel.")
    parameters: int | None = Field(
        default=None, description="Its number of parameters. Absent: the catalogue has none."
    )
    revision: str | None = Field(default=None, description="Its revision of the job. Absent: it was not started.")
    result: Literal["Running", "Passed", "PromptSufficient", "Missed", "Undecided", "Failed", "Skipped"] | None = Field(
        default=None,
        description="Passed: it passed the gates. PromptSufficient: it does with a prompt alone. Missed: evidence shows that it "
        "misses a gate, so the next one follows. Undecided: it missed without such evidence, or more rows or steps may help. "
        "Failed: for another reason. Skipped: a smaller one is enough. Absent: not started.",
    )
    data: str | None = Field(default=None, description="As in status.preflight. Absent: preflight has not passed.")
    message: str = Field(default="", description="The result in a sentence, with the gates' figures.")
    gpu_hours: str | None = Field(default=None, description="GPU-hours of its stages. Absent: none were used.")
    amount: str | None = Field(
        default=None, description="Their cost, in status.cost.currency. Absent: no price is known."
    )
    saved_gpu_hours: str | None = Field(
        default=None,
        description="Of one that was skipped: about the GPU-hours not spent, those of the candidate that is enough in proportion "
        "to the parameters. Absent: not known.",
    )
    saved_amount: str | None = Field(default=None, description="The same of the cost.")


class Measured(model.Model):
    """What a model reached in a job of the same namespace, for preflight's advice."""

    model_config = model.Model.model_config | {"extra": "ignore"}

    job: str
    model: str = Field(description="The BaseModel.")
    parameters: int
    data: str = Field(description="As in status.preflight.")
    result: Literal["Passed", "Missed", "Undecided"]
    message: str = ""


def smallest_first(names: Sequence[str], parameters: Mapping[str, int | None]) -> list[str]:
    """The names by the models' number of parameters; as they are where it is unknown of one of them."""
    if any(parameters.get(name) is None for name in names):
        return list(names)
    return sorted(names, key=lambda name: parameters[name] or 0)


def of(spec: job.FineTuneJobSpec, name: str) -> job.FineTuneJobSpec:
    """The spec with one of baseModel.candidates as its base model."""
    return spec.model_copy(update={"base_model": job.StartingModel(name=name)})
