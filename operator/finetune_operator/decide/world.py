"""The input of the rules: an observation, what its spec requests, the status so far. Frozen: a verdict yields the next one."""

import dataclasses
import datetime
from typing import Any

from finetune_api import job, revision, run, status
from finetune_api.reasons import Condition, Reason, Stage
from finetune_operator import conditions, revisions
from finetune_operator.decide import placement as places
from finetune_operator.decide.verdict import Say, Verdict
from finetune_operator.manifests import meta
from finetune_operator.observe import observation, records

HISTORY = 10
STAGES = (
    Condition.PREFLIGHT_PASSED,
    Condition.BASELINE_MEASURED,
    Condition.TRAINED,
    Condition.EVALUATED,
    Condition.DEPLOYED,
)
ENDS = (Condition.COMPLETE, Condition.FAILED)


@dataclasses.dataclass(frozen=True)
class World:
    """`active_job`, `candidate` and `nodes_service` are those of the last verdict, and are not deleted."""

    obs: observation.Observation
    wanted: revisions.Wanted
    base: run.ResolvedBaseModel | None
    """The base model as recorded for this revision, or else from the catalogue; None if it is in neither."""
    state: status.Status
    """The status so far."""
    serving: records.Release | None
    placement: places.Placement
    """Where the release of the current spec is served."""
    previous: tuple[records.Release, ...] = ()
    """Former releases that a ServingPool still holds, newest first."""
    active_job: str | None = None
    candidate: records.Release | None = None
    nodes_service: str | None = None

    @property
    def spec(self) -> job.FineTuneJobSpec:
        return self.obs.spec

    @property
    def now(self) -> datetime.datetime:
        """Truncated to seconds, as in the status."""
        return self.obs.now.replace(microsecond=0)

    @property
    def release_name(self) -> str:
        return meta.release(self.obs.parent, self.wanted)

    @property
    def base_model(self) -> run.ResolvedBaseModel:
        """For the rules after `base_model_is_not_in_the_catalogue`."""
        assert self.base is not None
        return self.base

    @property
    def adapter(self) -> status.Adapter:
        """Of this revision, once Trained is true: both are written in the same status patch."""
        assert self.state.artifacts is not None
        assert self.state.artifacts.adapter is not None
        return self.state.artifacts.adapter

    @property
    def attempt(self) -> int:
        return self.state.attempt or 1

    def true(self, condition: Condition) -> bool:
        return conditions.is_true(self.state, condition)

    def condition(self, kind: Condition) -> status.Condition | None:
        return conditions.get(self.state, kind)

    def after(self, verdict: Verdict) -> "World":
        """The world after the verdict's changes."""
        state = conditions.drop(self.state, *verdict.forgets)
        if verdict.edits:
            state = state.model_copy(update=dict(verdict.edits))
        serving = None if verdict.withdraws else verdict.serves or self.serving
        if serving is not self.serving:
            state = state.model_copy(update={"serving": serving and written(serving)})
        previous = self.previous if verdict.previous is None else verdict.previous
        if previous is not self.previous:
            state = state.model_copy(update={"previous": list(map(written, previous))})
        for say in verdict.says:
            state = self._with(state, say)
        if verdict.outcome is not None:
            ended = {"completion_time": self.now, "retry_at": None}
            state = state.model_copy(update=remembered(state, self.wanted.revision, verdict.outcome, self.now) | ended)
        return dataclasses.replace(
            self,
            state=state,
            serving=serving,
            previous=previous,
            active_job=verdict.job,
            candidate=verdict.candidate,
            nodes_service=verdict.nodes_service,
        )

    def settled(self, verdict: Verdict) -> "World":
        """The world after the verdict's changes of the status only."""
        after = self.after(verdict)
        if after.state is self.state and after.serving is self.serving:
            return self
        return dataclasses.replace(self, state=after.state, serving=after.serving, previous=after.previous)

    def _with(self, state: status.Status, say: Say) -> status.Status:
        generation = self.obs.parent.generation
        return conditions.put(state, say.condition, say.value, say.reason, say.message, generation, self.obs.now)


def written(release: records.Release) -> str:
    """A release as its record in the status."""
    return release.model_dump_json(by_alias=True)


def of(obs: observation.Observation) -> World:
    """The world before the first rule."""
    recorded = obs.parent.records
    wanted = revisions.want(obs.spec, obs.parent.run_annotation, recorded.inputs)
    known = revision.BASE_MODEL in wanted.resolved
    base = recorded.base_model if known else revision.resolve(obs.spec.base_model, obs.entry)
    if base is not None and not known:
        wanted = revisions.resolved(wanted, base)
    placed = places.place(obs.parent, wanted, base, obs.pools, obs.no_route)
    return World(
        obs=obs,
        wanted=revisions.placed(wanted, placed.pool),
        base=base,
        state=obs.parent.status,
        serving=recorded.serving,
        placement=placed,
        previous=recorded.previous,
    )


def remembered(state: status.Status, of: str, outcome: Reason, now: datetime.datetime) -> dict[str, Any]:
    """The edit that adds the status' revision to the history as its newest entry."""
    adapter = state.artifacts.adapter if state.artifacts else None
    entry = status.Revision(
        revision=of,
        outcome=outcome,
        score=state.evaluation.score if state.evaluation else None,
        adapter=adapter.uri if adapter else None,
        finished_at=now,
    )
    older = [h for h in state.history if h.revision != of]
    return {"history": [entry, *older][:HISTORY]}


def fails(
    world: World,
    stage: Stage,
    reason: Reason,
    message: str,
    *,
    exit_code: int | None = None,
    log_tail: str | None = None,
) -> Verdict:
    """The revision ends here, until an edit or the run annotation requests more."""
    failure = status.Failure(
        stage=stage,
        reason=reason,
        attempt=world.attempt,
        exit_code=exit_code,
        message=message,
        log_tail=log_tail,
        time=world.now,
    )
    return Verdict(
        edits={"failure": failure},
        says=(
            Say(conditions.STAGE_CONDITIONS[stage], "False", reason, message),
            Say(Condition.FAILED, "True", reason, message),
        ),
        outcome=reason,
    )
