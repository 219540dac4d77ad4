"""`finetune estimate JOB.yaml`: memory, duration and price of a job's training, before training."""

from finetune_api import run, status
from finetune_cli import advise, answer, jobs, validate


def estimate(wanted: jobs.Job, memory: str | None, *, read: bool) -> tuple[answer.Answer, str]:
    """The answer, and the memory as the trainer's own table. Raises Failure, ValueError.

    memory: what training may use, as a quantity. read: whether to read the data for the lengths of their examples if no
    earlier preflight measured them; else each example is assumed to have training.maxSequenceLength tokens.
    """
    with validate.temporary() as folder:
        spec = wanted.run
        found = advise.earlier_preflight(spec)
        if found is None and read:
            spec = advise.with_local_output(spec, folder)
            found = advise.preflight(spec)[0].preflight
        return sized(wanted, spec, found, memory)


def sized(
    wanted: jobs.Job, spec: run.Run, found: status.Preflight | None, memory: str | None
) -> tuple[answer.Answer, str]:
    from finetune_trainer.stages import estimate as stage

    sizing = stage.estimate(spec, memory)
    ended = answer.Exit.INVALID if sizing.chosen.fits is False else answer.Exit.DONE
    table = stage.text(sizing)
    made = answer.Estimate(
        memory=sizing.document(),
        duration=found.estimated_duration if found else None,
        cost=found.estimated_cost if found else None,
    )
    return (
        answer.Answer(
            command="estimate",
            exit_code=ended,
            message=sizing.advice or "",
            job=wanted.summary(),
            counts=answer.counts(found) if found else None,
            estimate=made,
            notes=list(wanted.notes),
        ),
        table,
    )
