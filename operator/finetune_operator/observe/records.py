"""The JSON records in the status, parsed once: the inputs of the revision, and the serving release."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from finetune_api import job, model, revision, run, status
from finetune_operator import settings


class Release(model.Model):
    """One candidate or serving release: a revision's adapter under one serving configuration. Recorded completely in
    `status.serving`, so that its Deployment can be recreated at any time.

    It includes images and arguments from the operator's settings: an upgrade of the operator does not change a serving
    release.
    """

    model_config = model.Model.model_config | {"extra": "ignore"}

    name: str
    revision: str
    pool: str | None = Field(
        default=None, description="The ServingPool, as NAMESPACE/NAME. Absent: a Deployment and a Service of its own."
    )
    output_schema: str | None = Field(
        default=None, description="evaluation.outputSchema as JSON, in a pool: answers of clients are checked with it."
    )
    base_model: run.ResolvedBaseModel
    adapter: status.Adapter
    deployment: job.Deployment
    storage: job.Storage
    served_model_name: str
    image: str
    fetch_image: str
    arguments: list[str] = Field(default_factory=list)
    env: dict[str, str] = Field(default_factory=dict)
    shm_size: Any = "1Gi"
    disk: str | None = Field(
        default=None,
        description="Estimated ephemeral storage. Absent in records of earlier versions, whose pods request none.",
    )
    ca_bundle: job.CaBundle | None = None
    model_claim: settings.ModelClaim | None = None
    canary: str | None = None
    tokens_per_second: int | None = None
    run_file: run.Run | None = Field(default=None, description="Of its pods; absent in records of earlier versions.")

    @property
    def place(self) -> tuple[str | None, str]:
        """Where clients reach it: releases of one place can share the traffic of a model's name."""
        return self.pool, self.served_model_name


@dataclasses.dataclass(frozen=True)
class Records:
    """`inputs`: the sections of the spec for the revision, None before the first one. `pool`: the ServingPool recorded with it.
    `previous`: releases that a ServingPool still holds, newest first."""

    inputs: Mapping[str, Any] | None = None
    base_model: run.ResolvedBaseModel | None = None
    serving: Release | None = None
    pool: str | None = None
    previous: tuple[Release, ...] = ()


def read(state: status.Status) -> Records:
    """Raises ValueError if someone else changed these fields: they are the operator's state, and are not guessed."""
    inputs = json.loads(state.resolved) if state.resolved else None
    sections = [] if inputs is None else inputs.values() if isinstance(inputs, dict) else [inputs]
    if not all(isinstance(section, dict) for section in sections):
        raise ValueError("status.resolved is not an object of objects")
    base = inputs.get(revision.BASE_MODEL) if inputs else None
    return Records(
        inputs=inputs,
        base_model=run.ResolvedBaseModel.model_validate(base) if base is not None else None,
        serving=Release.model_validate_json(state.serving) if state.serving else None,
        pool=(inputs or {}).get(revision.POOL, {}).get("name"),
        previous=tuple(map(Release.model_validate_json, state.previous)),
    )
