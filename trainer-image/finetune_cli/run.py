"""`finetune run JOB.yaml`: all stages of a job on this machine, decided as the operator decides.

preflight -> baseline -> train -> evaluate, each a child process that finds in storage what an earlier run of the same revision
left there. So the same command again resumes: nothing that is complete is done twice, training goes on from its checkpoints.
"""

import dataclasses
import hashlib
import os
import pathlib
from typing import Any

from finetune_api import course, exits, outcome, reasons, run, status
from finetune_cli import answer, jobs, report, show, stages

Stage = reasons.Stage

ORDER = (Stage.PREFLIGHT, Stage.BASELINE, Stage.TRAIN, Stage.EVALUATE)


@dataclasses.dataclass
class Course:
    """A run of a job, as far as it got."""

    wanted: jobs.Job
    spec: run.Run
    place: stages.Workplace
    stop: stages.Stop
    screen: show.Screen
    resume: str
    """The command that goes on."""
    done: list[answer.StageResult] = dataclasses.field(default_factory=list)
    found: dict[Stage, outcome.Outcome] = dataclasses.field(default_factory=dict)

    def go(self) -> answer.Answer:
        """All stages, until one ends the job."""
        for stage in (stage for stage in ORDER if needed(stage, self.spec)):
            ended = self.stage(stage)
            if ended.code in (exits.Exit.STOPPED, -15) or (ended.code and self.stop.asked):
                return self.answered(
                    answer.Exit.STOPPED, f"stopped in {stage}; what was done is kept. Go on with: {self.resume}"
                )
            if ended.code != exits.Exit.DONE or ended.said is None:
                reason, message = stages.problem(ended)
                text = f"{stage}: {message} (log: {ended.log})"
                return self.answered(answer.code(reason), text, reason)
            self.found[stage] = ended.said
            if self.enough(stage, ended.said):
                reason = reasons.Reason.PROMPT_ALREADY_SUFFICIENT
                return self.answered(answer.Exit.DONE, f"nothing is trained: {ended.said.message}", reason)
            if ended.said.reason is not None and stage is not Stage.BASELINE:
                text = f"{stage}: {ended.said.message}"
                return self.answered(answer.code(ended.said.reason), text, ended.said.reason)
            if self.stop.asked:
                text = f"stopped after {stage}; what was done is kept. Go on with: {self.resume}"
                return self.answered(answer.Exit.STOPPED, text)
        return self.finished()

    def stage(self, stage: Stage) -> stages.Ended:
        """One stage with its attempts: out of memory is answered once, all else is not repeated."""
        adapter = self.adapter() if stage is Stage.EVALUATE else None
        attempt, seconds, share = 1, 0.0, None
        while True:
            arguments = course.arguments(stage, attempt, share, adapter)
            with self.screen.stage(stage, attempt) as tell:
                ended = stages.execute(self.place, stage, attempt, arguments, self.stop, tell)
            seconds += ended.seconds
            failed = stage in course.LOADING and not self.stop.asked and ended.code
            if not (failed and stages.problem(ended)[0] is reasons.Reason.TRAINER_OUT_OF_MEMORY):
                break
            if (share := course.smaller(share)) is None:
                break
            self.screen.say(f"{stage} ran out of memory: once more, with half as much at once and the same result")
            attempt += 1
        said = ended.said
        made = answer.StageResult(
            stage=stage,
            attempts=attempt,
            exit_code=ended.code,
            seconds=round(seconds, 1),
            reason=said.reason if said else None,
            message=said.message if said else "",
        )
        self.done.append(made)
        self.screen.ended(made)
        return ended

    def adapter(self) -> status.Adapter | None:
        trained = self.found.get(Stage.TRAIN)
        return trained.training.adapter if trained and trained.training else None

    def enough(self, stage: Stage, said: outcome.Outcome) -> bool:
        """Whether a prompt alone passes the gates, and the job wants to stop there."""
        return stage is Stage.BASELINE and course.prompt_is_enough(self.spec.intent, said.baseline)

    def finished(self) -> answer.Answer:
        found = self.found[Stage.EVALUATE].evaluation
        if found is None:
            return self.answered(answer.Exit.UNEXPECTED, "the evaluation ended well but gave no results")
        if found.passed:
            return self.answered(answer.Exit.DONE, self.found[Stage.EVALUATE].message)
        reason = reasons.Reason.EVALUATION_BELOW_GATE
        return self.answered(answer.Exit.GATES, self.found[Stage.EVALUATE].message, reason)

    def answered(self, code: answer.Exit, message: str, reason: reasons.Reason | None = None) -> answer.Answer:
        """What is known so far."""
        said = self.found.get(Stage.PREFLIGHT) or outcome.Outcome(stage=Stage.PREFLIGHT)
        measured = self.found.get(Stage.BASELINE)
        evaluated = self.found.get(Stage.EVALUATE)
        adapter = self.adapter()
        details: dict[str, Any] = {"baseline": measured.baseline if measured else None}
        if evaluated is not None and evaluated.evaluation is not None:
            details |= report.details(report.document(self.spec), evaluated.evaluation)
            details["report"] = evaluated.report and answer.place(evaluated.report)
        return answer.Answer(
            command="run",
            exit_code=code,
            message=message,
            reason=reason,
            job=self.wanted.described(),
            verdict=said.preflight.verdict if said.preflight else None,
            advice=said.preflight.advice if said.preflight else [],
            counts=answer.counts(said.preflight) if said.preflight else None,
            stages=self.done,
            adapter=answer.place(adapter.uri) if adapter else None,
            notes=list(self.wanted.notes),
            **details,
        )


def run_all(wanted: jobs.Job, work: pathlib.Path | None, screen: show.Screen, resume: str) -> answer.Answer:
    """Runs a job. work: the folder for what the stages write besides their results. Raises manifests.Invalid."""
    wanted = here(wanted)
    spec = wanted.run
    for note in wanted.notes:
        screen.say(note)
    with stages.workplace(work or cache(spec)) as place:
        stop = stages.Stop()
        stop.install()
        local = place.furnish(spec)
        screen.begin(wanted.described(), place.folder)
        return Course(wanted, local, place, stop, screen, resume).go()


def here(wanted: jobs.Job) -> jobs.Job:
    """The job as this machine can run it: a machine without a GPU trains on its CPU, which changes no revision."""
    from finetune_trainer.process import machine

    resources = wanted.spec.resources
    if not resources.gpus or machine.accelerated():
        return wanted
    note = f"the job asks for {resources.gpus} GPU(s) and this machine has none: its CPU trains"
    cpu = resources.model_copy(update={"gpus": 0, "gpu_type": None})
    return dataclasses.replace(
        wanted, spec=wanted.spec.model_copy(update={"resources": cpu}), notes=(*wanted.notes, note)
    )


def cache(spec: run.Run) -> pathlib.Path:
    """Where a revision works on this machine: the same folder when it runs again."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    place = hashlib.sha256(spec.storage.output.encode()).hexdigest()[:8]
    return pathlib.Path(home) / "finetune" / spec.namespace / spec.name / f"{spec.revision}-{place}"


def needed(stage: Stage, spec: run.Run) -> bool:
    """Whether the job has this stage: a baseline is measured where it can decide something."""
    return stage is not Stage.BASELINE or course.measures_a_baseline(spec.intent, spec.evaluation)
