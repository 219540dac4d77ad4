"""`finetune run JOB.yaml`: all stages of a job on this machine, with the operator's decisions.

preflight -> baseline -> train -> evaluate, each a child process that finds in storage the results of an earlier run of the same
revision. So the same command resumes: finished stages are not repeated, training continues from its checkpoints.
"""

import dataclasses
import hashlib
import os
import pathlib
from typing import Any

from finetune_api import course, exits, job, outcome, reasons, run, status
from finetune_cli import answer, jobs, report, show, stages

Stage = reasons.Stage

ORDER = (Stage.PREFLIGHT, Stage.BASELINE, Stage.TRAIN, Stage.EVALUATE)


@dataclasses.dataclass
class Session:
    """A run of a job in progress."""

    wanted: jobs.Job
    spec: run.Run
    place: stages.Workplace
    stop: stages.Stop
    screen: show.Screen
    resume: str
    """The command that resumes."""
    done: list[answer.StageResult] = dataclasses.field(default_factory=list)
    outcomes: dict[Stage, outcome.Outcome] = dataclasses.field(default_factory=dict)

    def run(self) -> answer.Answer:
        """Runs all stages, until one ends the job."""
        for stage in (stage for stage in ORDER if needed(stage, self.spec)):
            ended = self.stage(stage)
            if ended.code in (exits.Exit.STOPPED, -15) or (ended.code and self.stop.asked):
                return self.to_answer(
                    answer.Exit.STOPPED, f"stopped in {stage}; finished work is saved. Resume with: {self.resume}"
                )
            if ended.code != exits.Exit.DONE or ended.outcome is None:
                reason, message = stages.problem(ended)
                text = f"{stage}: {message} (log: {ended.log})"
                return self.to_answer(answer.code(reason, message), text, reason)
            self.outcomes[stage] = ended.outcome
            if self.prompt_is_enough(stage, ended.outcome):
                reason = reasons.Reason.PROMPT_ALREADY_SUFFICIENT
                return self.to_answer(answer.Exit.DONE, f"no training is needed: {ended.outcome.message}", reason)
            if ended.outcome.reason is not None and stage is not Stage.BASELINE:
                text = f"{stage}: {ended.outcome.message}"
                return self.to_answer(answer.code(ended.outcome.reason), text, ended.outcome.reason)
            if self.stop.asked:
                text = f"stopped after {stage}; finished work is saved. Resume with: {self.resume}"
                return self.to_answer(answer.Exit.STOPPED, text)
        return self.finished()

    def stage(self, stage: Stage) -> stages.Ended:
        """Runs one stage; only an out-of-memory error is retried, with a smaller micro-batch."""
        adapter = self.adapter() if stage is Stage.EVALUATE else None
        attempt, seconds, scale = 1, 0.0, None
        while True:
            arguments = course.arguments(stage, attempt, scale, adapter)
            with self.screen.stage(stage, attempt) as update:
                ended = stages.execute(self.place, stage, attempt, arguments, self.stop, update)
            seconds += ended.seconds
            failed = stage in course.LOADING and not self.stop.asked and ended.code
            if not (failed and stages.problem(ended)[0] is reasons.Reason.TRAINER_OUT_OF_MEMORY):
                break
            if (scale := course.smaller(scale)) is None:
                break
            self.screen.say(f"{stage} ran out of memory: it is repeated with half the micro-batch, and the same result")
            attempt += 1
        result = ended.outcome
        made = answer.StageResult(
            stage=stage,
            attempts=attempt,
            exit_code=ended.code,
            seconds=round(seconds, 1),
            reason=result.reason if result else None,
            message=result.message if result else "",
        )
        self.done.append(made)
        self.screen.ended(made)
        return ended

    def adapter(self) -> status.Adapter | None:
        trained = self.outcomes.get(Stage.TRAIN)
        return trained.training.adapter if trained and trained.training else None

    def prompt_is_enough(self, stage: Stage, result: outcome.Outcome) -> bool:
        """Whether a prompt alone passes the gates, and the job is to stop then."""
        return stage is Stage.BASELINE and course.prompt_is_enough(self.spec.intent, result.baseline)

    def finished(self) -> answer.Answer:
        scores = self.outcomes[Stage.EVALUATE].evaluation
        if scores is None:
            return self.to_answer(answer.Exit.UNEXPECTED, "the evaluation succeeded but gave no results")
        if scores.passed:
            return self.to_answer(answer.Exit.DONE, self.outcomes[Stage.EVALUATE].message)
        reason = reasons.Reason.EVALUATION_BELOW_GATE
        return self.to_answer(answer.Exit.GATES, self.outcomes[Stage.EVALUATE].message, reason)

    def to_answer(self, code: answer.Exit, message: str, reason: reasons.Reason | None = None) -> answer.Answer:
        """The answer with everything known so far."""
        result = self.outcomes.get(Stage.PREFLIGHT) or outcome.Outcome(stage=Stage.PREFLIGHT)
        measured = self.outcomes.get(Stage.BASELINE)
        evaluated = self.outcomes.get(Stage.EVALUATE)
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
            job=self.wanted.summary(),
            verdict=result.preflight.verdict if result.preflight else None,
            advice=[answer.place(text) for text in result.preflight.advice] if result.preflight else [],
            counts=answer.counts(result.preflight) if result.preflight else None,
            stages=self.done,
            adapter=answer.place(adapter.uri) if adapter else None,
            notes=list(self.wanted.notes),
            **details,
        )


def run_all(wanted: jobs.Job, work: pathlib.Path | None, screen: show.Screen, resume: str) -> answer.Answer:
    """Runs a job. work: the folder for logs and downloads. Raises documents.Invalid."""
    wanted.check_model()
    wanted = for_this_machine(wanted)
    spec = wanted.run
    for note in wanted.notes:
        screen.say(note)
    with stages.workplace(work or cache(spec)) as place:
        stop = stages.Stop()
        stop.install()
        local = place.write_run_file(spec)
        screen.begin(wanted.summary(), place.folder)
        return Session(wanted, local, place, stop, screen, resume).run()


def for_this_machine(wanted: jobs.Job) -> jobs.Job:
    """The job adapted to this machine: without a GPU it trains on the CPU, which does not change the revision."""
    from finetune_trainer.process import machine

    if wanted.spec.evaluation.engine is job.EvaluationEngine.SERVER:
        note = "evaluation.engine is Server, which is for clusters: on this machine the trainer itself answers"
        wanted = dataclasses.replace(wanted, notes=(*wanted.notes, note))
    resources = wanted.spec.resources
    if not resources.gpus or machine.accelerated():
        return wanted
    note = f"the job requests {resources.gpus} GPU(s), but this machine has none: training runs on the CPU"
    cpu = resources.model_copy(update={"gpus": 0, "gpu_type": None})
    return dataclasses.replace(
        wanted, spec=wanted.spec.model_copy(update={"resources": cpu}), notes=(*wanted.notes, note)
    )


def cache(spec: run.Run) -> pathlib.Path:
    """The work folder of a revision on this machine: the same for each run."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    place = hashlib.sha256(spec.storage.output.encode()).hexdigest()[:8]
    return pathlib.Path(home) / "finetune" / spec.namespace / spec.name / f"{spec.revision}-{place}"


def needed(stage: Stage, spec: run.Run) -> bool:
    """Whether the job has this stage: a baseline is measured only where it can matter."""
    return stage is not Stage.BASELINE or course.has_baseline(spec.intent, spec.evaluation, spec.training)
