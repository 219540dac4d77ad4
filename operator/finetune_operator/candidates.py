"""Which of baseModel.candidates is the job's base model now, by the spec, the record and the status. Pure.

    candidates of the spec, smallest first -> the first one without evidence that it misses a gate

What was measured holds for one dataset, training and evaluation: an edit of these discards it. An edit of the list does not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_api import basemodel, candidates, job, revision
from finetune_operator import revisions


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


def _discards(spec: job.FineTuneJobSpec, run_annotation: str, recorded: Mapping[str, Any]) -> bool:
    """Whether an edit, of anything but the base model, changed what the results are results of."""
    name = (recorded.get(revision.TRAINING) or {}).get(revision.BASE_MODEL, {}).get("name")
    one = candidates.of(spec, name) if name else spec
    changed = revisions.want(one, run_annotation, recorded).changed
    of_training = [path for path in changed[revision.TRAINING] if path.partition(".")[0] != revision.BASE_MODEL]
    return bool(of_training or changed[revision.EVALUATION])
