"""The FineTuneJob itself: its spec, its status and the records in it, each parsed once."""

import dataclasses
import datetime
import json

import pydantic

from finetune_api import deployment, job, revision, status
from finetune_operator.observe import containers, projections, records

LARGEST = 192 * 1024
"""Bytes of a spec as JSON. A pod's annotations may have 256 KiB in total: the rest is for the base model, and for other
annotations."""


@dataclasses.dataclass(frozen=True)
class Parent:
    """The FineTuneJob. `unreadable` says why spec or records cannot be read; they may only be used if it is empty."""

    name: str
    namespace: str
    uid: str
    generation: int
    run_annotation: str
    approved: str
    """The release that the annotation finetune.dev/approve names."""
    order: str
    """The annotation finetune.dev/rollout."""
    created: datetime.datetime | None
    deleting: bool
    spec: job.FineTuneJobSpec | None
    status: status.Status
    records: records.Records
    unreadable: str


def parent(raw: projections.Raw) -> Parent:
    meta, state = raw["metadata"], _status(raw.get("status") or {})
    spec, spec_problem = _spec(raw)
    remembered, record_problem = _records(state)
    return Parent(
        name=meta["name"],
        namespace=meta["namespace"],
        uid=meta["uid"],
        generation=int(meta.get("generation", 1)),
        run_annotation=str((meta.get("annotations") or {}).get(revision.RUN_ANNOTATION, "")),
        approved=str((meta.get("annotations") or {}).get(deployment.APPROVE, "")).strip(),
        order=str((meta.get("annotations") or {}).get(deployment.ROLLOUT, "")).strip(),
        created=containers.time_of(meta.get("creationTimestamp")),
        deleting=bool(meta.get("deletionTimestamp")),
        spec=spec,
        status=state,
        records=remembered,
        unreadable=spec_problem or record_problem,
    )


def _spec(raw: projections.Raw) -> tuple[job.FineTuneJobSpec | None, str]:
    """The spec, or why it cannot be read (an API server without the CRD's schema accepts anything)."""
    text = json.dumps(raw.get("spec") or {})
    try:
        # Unknown fields come from a newer CRD: the API server accepted them, and a newer operator will use them.
        spec = job.FineTuneJobSpec.model_validate_json(text, extra="ignore")
    except pydantic.ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(str(part) for part in ("spec", *first["loc"]))
        seen = f"{place}: {first['msg']} (and {problem.error_count() - 1} more)"
        return None, f"the spec is not valid: {seen}; edit it"
    if len(text) > LARGEST and (seen := _too_large(raw["spec"])):
        return None, f"the spec is too large: {seen}"
    return spec, ""


def _too_large(spec: projections.Raw) -> str:
    """The field that makes a spec too large for its pods' annotation; empty if none does."""
    total = _bytes(spec)
    if total <= LARGEST:
        return ""
    place, value, size = "spec", spec, total
    while isinstance(value, dict) and value:
        sizes = {key: _bytes(inner) for key, inner in value.items()}
        largest = max(sizes, key=lambda key: sizes[key])
        if sizes[largest] < size / 2:
            break
        place, value, size = f"{place}.{largest}", value[largest], sizes[largest]
    return (
        f"{place} takes {size // 1024} KiB of {total // 1024} KiB in total. The limit is {LARGEST // 1024} KiB, "
        "because the spec is stored in an annotation of each pod: make that field smaller"
    )


def _bytes(value: object) -> int:
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def _records(state: status.Status) -> tuple[records.Records, str]:
    try:
        return records.read(state), ""
    except ValueError as problem:
        return records.Records(), (
            f"the records of the status (resolved, serving) were changed by someone else: {str(problem)[:200]}. The "
            "operator does not touch the job: restore the status, or delete the job and create it again"
        )


def _status(raw: projections.Raw) -> status.Status:
    """The status, without values that another version wrote and this one cannot read: the rest is the job's state."""
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
