"""The decision in the making: rules add to it, and nothing leaves it before `decide` returns."""

import dataclasses
import datetime

from finetune_api import job, revision, run, status
from finetune_api.reasons import Condition, Reason, Stage
from finetune_operator import conditions, revisions
from finetune_operator.manifests import meta, release
from finetune_operator.observe import observation

HISTORY = 10
Adapter = status.Adapter
"""Within the draft `status` is the status itself."""
STAGES = (
    Condition.PREFLIGHT_PASSED,
    Condition.BASELINE_MEASURED,
    Condition.TRAINED,
    Condition.EVALUATED,
    Condition.DEPLOYED,
)
ENDS = (Condition.COMPLETE, Condition.FAILED)


@dataclasses.dataclass(frozen=True)
class Ref:
    """A child to delete."""

    kind: str
    name: str


@dataclasses.dataclass(frozen=True)
class Ended:
    """An attempt that ended, for the metrics."""

    stage: Stage
    result: str
    seconds: float
    waited: float | None


@dataclasses.dataclass(frozen=True)
class Decision:
    """What to do: apply, write the status, apply Jobs, delete."""

    status: status.Status
    apply: tuple[meta.Manifest, ...] = ()
    delete: tuple[Ref, ...] = ()
    requeue: float | None = None
    remove_parent: bool = False
    ended: tuple[Ended, ...] = ()
    retried: tuple[tuple[Stage, Reason], ...] = ()
    waited: tuple[tuple[Stage, float], ...] = ()
    """Seconds of each wait in a queue that ended."""


@dataclasses.dataclass
class Draft:
    """Mutable on purpose, within one call of `decide` only."""

    obs: observation.Observation
    wanted: revisions.Wanted
    status: status.Status
    apply: list[meta.Manifest] = dataclasses.field(default_factory=list)
    delete: list[Ref] = dataclasses.field(default_factory=list)
    requeue: float | None = None
    remove_parent: bool = False
    ended: list[Ended] = dataclasses.field(default_factory=list)
    retried: list[tuple[Stage, Reason]] = dataclasses.field(default_factory=list)
    waited: list[tuple[Stage, float]] = dataclasses.field(default_factory=list)
    candidate: release.Release | None = None
    """The release that is being rolled out; None when none is, and it then has no children."""
    active_job: str | None = None
    """The Job that may run now; every other running one is stopped."""
    nodes_service: str | None = None
    """The Service by which the pods of the training under way find each other."""

    @property
    def spec(self) -> job.FineTuneJobSpec:
        return self.obs.spec

    @property
    def serving(self) -> release.Release | None:
        return release.Release.model_validate_json(self.status.serving) if self.status.serving else None

    @property
    def release_name(self) -> str:
        return meta.release(self.obs.parent, self.wanted)

    @property
    def base_model(self) -> run.ResolvedBaseModel:
        """As recorded for this revision."""
        return run.ResolvedBaseModel.model_validate(self.wanted.resolved[revision.BASE_MODEL])

    @property
    def adapter(self) -> Adapter:
        """Of this revision, once Trained is true: both are written in the same status patch."""
        assert self.status.artifacts is not None
        assert self.status.artifacts.adapter is not None
        return self.status.artifacts.adapter

    def edit(self, **changes: object) -> None:
        self.status = self.status.model_copy(update=changes)

    def enter(self, stage: Stage) -> None:
        """The first attempt of a stage."""
        self.edit(stage=stage, attempt=1, failed_attempts=0, retry_at=None, failure=None, micro_batch_scale=None)

    def enter_once(self, stage: Stage) -> None:
        if self.status.stage != stage:
            self.enter(stage)

    def say(self, kind: Condition, value: conditions.State, reason: str, message: str) -> None:
        self.status = conditions.put(
            self.status, kind, value, reason, message, self.obs.parent.generation, self.obs.now
        )

    def forget(self, *kinds: Condition) -> None:
        self.status = conditions.drop(self.status, *kinds)

    def again_in(self, seconds: float) -> None:
        seconds = max(seconds, 0.05)
        self.requeue = seconds if self.requeue is None else min(self.requeue, seconds)

    def again_at(self, time: datetime.datetime) -> None:
        self.again_in((time - self.obs.now).total_seconds())

    def finish(self, outcome: Reason) -> None:
        """The revision ended: note when, and remember it in the history."""
        self.remember(self.wanted.revision, outcome)
        self.edit(completion_time=self.obs.now.replace(microsecond=0), retry_at=None)

    def remember(self, revision: str, outcome: Reason) -> None:
        """The revision that the status speaks of is the newest of the history."""
        adapter = self.status.artifacts.adapter if self.status.artifacts else None
        entry = status.Revision(
            revision=revision,
            outcome=outcome,
            score=self.status.evaluation.score if self.status.evaluation else None,
            adapter=adapter.uri if adapter else None,
            finished_at=self.obs.now.replace(microsecond=0),
        )
        older = [h for h in self.status.history if h.revision != revision]
        self.edit(history=[entry, *older][:HISTORY])

    def fail(
        self,
        stage: Stage,
        reason: Reason,
        message: str,
        *,
        exit_code: int | None = None,
        log_tail: str | None = None,
    ) -> None:
        """The revision ends here, until an edit or the run annotation asks for more."""
        self.edit(
            failure=status.Failure(
                stage=stage,
                reason=reason,
                attempt=self.status.attempt or 1,
                exit_code=exit_code,
                message=message,
                log_tail=log_tail,
                time=self.obs.now.replace(microsecond=0),
            )
        )
        self.say(conditions.STAGE_CONDITIONS[stage], "False", reason, message)
        self.say(Condition.FAILED, "True", reason, message)
        self.finish(reason)
        self.candidate = None
        self.active_job = None

    def decision(self) -> Decision:
        return Decision(
            status=self.status,
            apply=tuple({(m["kind"], m["metadata"]["name"]): m for m in self.apply}.values()),
            delete=tuple(dict.fromkeys(self.delete)),
            requeue=self.requeue,
            remove_parent=self.remove_parent,
            ended=tuple(self.ended),
            retried=tuple(self.retried),
            waited=tuple(self.waited),
        )
