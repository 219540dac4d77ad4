"""Which of baseModel.candidates is the job's base model now, by the spec, the record and the status. Pure.

    candidates of the spec, smallest first -> the first one without evidence that it misses a gate

What was measured holds for one dataset, training and evaluation: an edit of these discards it. An edit of the list does not.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetune_api import basemodel, candidates, job, revision
from finetune_api.reasons import Condition
from finetune_operator import revisions

SHOWN = 400
"""Characters of a result's sentence in the advice on another job."""


def table(
    spec: job.FineTuneJobSpec,
    run_annotation: str,
    recorded: Mapping[str, Any] | None,
    before: Sequence[candidates.Candidate],
    catalogue: Mapping[str, basemodel.BaseModelSpec],
) -> tuple[candidates.Candidate, ...]:
    """The candidates in their order, with those results of `before`, the status', that still hold. Empty for a job of one base
    model. The number of parameters is that of the catalogue when the candidate was first listed, so that an edit of the
    catalogue changes no order."""
    listed = spec.base_model.candidates
    if not listed:
        return ()
    known = {one.model: one for one in before}
    parameters = {
        name: known[name].parameters if name in known else (catalogue[name].parameters if name in catalogue else None)
        for name in listed
    }
    holds = recorded is not None and not _discards(spec, run_annotation, recorded)
    return tuple(
        known[name] if holds and name in known else candidates.Candidate(model=name, parameters=parameters[name])
        for name in candidates.smallest_first(listed, parameters)
    )


def current(found: Sequence[candidates.Candidate]) -> candidates.Candidate:
    """The smallest without evidence against it; the last one if there is evidence against all."""
    return next((one for one in found if one.result != "Missed"), found[-1])


def measured(
    jobs: Iterable[Mapping[str, Any]], below: int, catalogue: Mapping[str, basemodel.BaseModelSpec]
) -> list[candidates.Measured]:
    """What models of fewer than `below` parameters reached in these FineTuneJobs, by their statuses: the largest first."""
    found = []
    for raw in jobs:
        for row in _reached(raw.get("status") or {}):
            entry = catalogue.get(row.get("model") or "")
            known = {
                "parameters": entry.parameters if entry else None,
                **row,
                "job": raw["metadata"]["name"],
                "message": str(row.get("message") or "")[:SHOWN],
            }
            with contextlib.suppress(ValueError):  # without data, result or size it is no record
                found.append(candidates.Measured.model_validate(known))
    smaller = [one for one in found if one.parameters < below]
    return sorted(smaller, key=lambda one: (-one.parameters, one.job))[: candidates.RECORDS]


def _reached(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The candidates of a status, or its one base model, in the form of `candidates.Measured`. Where there were no gates, to pass
    says nothing."""
    evaluated, checked = state.get("evaluation"), state.get("preflight") or {}
    empty = bool(evaluated and evaluated.get("passed") and not evaluated.get("gates"))
    if rows := state.get("candidates"):
        return [one for one in rows if not (empty and one.get("result") == "Passed")]
    if not evaluated or empty:
        return []
    by_evidence = evaluated.get("missed") == "ByEvidence" and not evaluated.get("remedy")
    texts = [one.get("message") for one in state.get("conditions", []) if one.get("type") == Condition.EVALUATED]
    return [
        {
            "model": state.get("baseModel"),
            "data": checked.get("data"),
            "result": "Passed" if evaluated.get("passed") else "Missed" if by_evidence else "Undecided",
            "message": texts[0] if texts else "",
        }
    ]


def _discards(spec: job.FineTuneJobSpec, run_annotation: str, recorded: Mapping[str, Any]) -> bool:
    """Whether an edit, of anything but the base model, changed what the results are results of."""
    name = (recorded.get(revision.TRAINING) or {}).get(revision.BASE_MODEL, {}).get("name")
    one = candidates.of(spec, name) if name else spec
    changed = revisions.want(one, run_annotation, recorded).changed
    of_training = [path for path in changed[revision.TRAINING] if path.partition(".")[0] != revision.BASE_MODEL]
    return bool(of_training or changed[revision.EVALUATION])
