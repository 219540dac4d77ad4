"""The FineTuneJob itself: its spec and its status, parsed once."""

import dataclasses
import datetime
import json

import pydantic

from finetune_api import job, revision, status
from finetune_operator.observe import projections


@dataclasses.dataclass(frozen=True)
class Parent:
    """The FineTuneJob. `spec` is None when it cannot be read; `error` then says why."""

    name: str
    namespace: str
    uid: str
    generation: int
    run_annotation: str
    created: datetime.datetime | None
    deleting: bool
    spec: job.FineTuneJobSpec | None
    error: str
    status: status.Status


def parent(raw: projections.Raw) -> Parent:
    meta = raw["metadata"]
    spec, error = None, ""
    try:
        # Unknown fields are a newer CRD's: the API server let them in, and a newer operator will read them.
        spec = job.FineTuneJobSpec.model_validate_json(json.dumps(raw.get("spec") or {}), extra="ignore")
    except pydantic.ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(str(part) for part in ("spec", *first["loc"]))
        error = f"{place}: {first['msg']} (and {problem.error_count() - 1} more)"
    return Parent(
        name=meta["name"],
        namespace=meta["namespace"],
        uid=meta["uid"],
        generation=int(meta.get("generation", 1)),
        run_annotation=str((meta.get("annotations") or {}).get(revision.RUN_ANNOTATION, "")),
        created=projections.time_of(meta.get("creationTimestamp")),
        deleting=bool(meta.get("deletionTimestamp")),
        spec=spec,
        error=error,
        status=_status(raw.get("status") or {}),
    )


def _status(raw: projections.Raw) -> status.Status:
    """The status, less the values that another version wrote and this one cannot read: the rest is the job's memory."""
    readable = dict(raw)
    for _ in range(10):
        try:
            return status.Status.model_validate_json(json.dumps(readable))
        except pydantic.ValidationError as problem:
            places = [error["loc"] for error in problem.errors()]
        for field in {str(place[0]) for place in places}:
            bad = {place[1] for place in places if place[0] == field and len(place) > 1}
            value = readable.pop(field, None)
            if isinstance(value, list):
                readable[field] = [item for index, item in enumerate(value) if index not in bad]
    return status.Status()
