"""`finetune advise JOB.yaml`: the preflight of a job, in a temporary folder."""

import json
import pathlib

from finetune_api import outcome, run, status
from finetune_cli import answer, jobs, validate


def advise(wanted: jobs.Job) -> answer.Answer:
    """Verdict, advice, findings and counts. Raises Failure for problems other than the data."""
    wanted.check_model()
    with validate.temporary() as folder:
        spec = with_local_output(wanted.run, folder)
        result, document = preflight(spec)
    found = result.preflight
    ended = answer.code(result.reason)
    return answer.Answer(
        command="advise",
        exit_code=ended,
        message=result.message,
        reason=result.reason,
        job=wanted.summary(),
        verdict=found.verdict if found else None,
        advice=[answer.place(text) for text in found.advice] if found else [],
        counts=answer.counts(found) if found else None,
        learning_rate=found.learning_rate if found else None,
        findings=answer.findings(document),
        notes=list(wanted.notes),
    )


def with_local_output(spec: run.Run, folder: pathlib.Path) -> run.Run:
    """The same run with its results in a folder of this machine."""
    from finetune_trainer.store import files

    storage = spec.storage.model_copy(update={"output": files.address(folder / "output")})
    return spec.model_copy(update={"storage": storage})


def preflight(spec: run.Run) -> tuple[outcome.Outcome, list[dict[str, object]]]:
    """The stage's outcome, and its findings with all places. Raises Failure for problems other than the data."""
    from finetune_api import reasons
    from finetune_trainer.process import errors
    from finetune_trainer.stages import preflight as stage
    from finetune_trainer.store import storage

    try:
        result = stage.preflight(spec)
    except errors.Failure as failure:
        if failure.preflight is None:
            raise
        result = outcome.Outcome(
            stage=reasons.Stage.PREFLIGHT, reason=failure.reason, message=failure.message, preflight=failure.preflight
        )
    document = json.loads(storage.of(spec.storage).read(spec.layout.preflight))
    return result, document.get("findings") or document.get("facts", {}).get("findings", [])


def earlier_preflight(spec: run.Run) -> status.Preflight | None:
    """The result of an earlier preflight in the job's output; None where none has passed."""
    from finetune_trainer.process import errors
    from finetune_trainer.store import storage

    try:
        document = json.loads(storage.of(spec.storage, 20).read(spec.layout.preflight))
        found = outcome.Outcome.model_validate(document["outcome"]).preflight
        return found if "facts" in document else None
    except (errors.Failure, ValueError, KeyError, TypeError):
        return None
