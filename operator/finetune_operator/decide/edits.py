"""What an edit of the spec invalidates: the whole revision, its evaluation, its release, or a failure.

`finetune_operator.revisions` finds the changed sections; here the corresponding parts of the status are dropped, and the
rules continue from there.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from finetune_api import revision
from finetune_api.reasons import Condition, Reason, Stage
from finetune_operator import conditions
from finetune_operator.decide import candidates
from finetune_operator.decide.verdict import Say, Verdict
from finetune_operator.decide.world import ENDS, STAGES, World, remembered
from finetune_operator.manifests import sidecar


@dataclasses.dataclass(frozen=True)
class Stale:
    """The parts of the status to drop, and a message about what follows."""

    forgets: tuple[Condition, ...] = ()
    edits: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    news: str = ""

    def __add__(self, other: "Stale") -> "Stale":
        news = "; ".join(filter(None, (self.news, other.news)))
        return Stale(self.forgets + other.forgets, {**self.edits, **other.edits}, news)


NOTHING = Stale()


def the_spec_asks_for_other_work(world: World) -> Verdict | None:
    """Scenarios A and N. The record differs from the current spec: it is written again, and the invalidated parts of the
    status are dropped."""
    state, record = world.state, recorded(world)
    if all(getattr(state, field) == value for field, value in record.items()) and world.true(Condition.ACCEPTED):
        return None
    if state.revision != world.wanted.revision:
        stale = another_revision(world)
    else:
        stale = another_judgement(world) or another_release(world)
        stale += train_after_all(world)
        stale += NOTHING if Condition.FAILED in stale.forgets else another_try(world)
    return Verdict(
        forgets=stale.forgets,
        edits={**stale.edits, **record},
        says=(Say(Condition.ACCEPTED, "True", Reason.ACCEPTED, stale.news or _still_valid(world)),),
        proceed=True,
    )


def _subject(world: World) -> str:
    return f"revision {world.wanted.revision} of base model {world.base_model.name}{candidates.one_of(world)}"


def _still_valid(world: World) -> str:
    """For an edit that no work depends on, such as the resources of a stage. A record that only an upgrade wrote differently is
    not worth a word."""
    if why := world.wanted.why(*world.wanted.changed):
        return f"{_subject(world)}: {why}; completed stages are not repeated"
    accepted = world.condition(Condition.ACCEPTED)
    return accepted.message if accepted is not None and accepted.status == "True" else _subject(world)


def recorded(world: World) -> dict[str, Any]:
    """The fields of the status that record the current spec."""
    return {
        "revision": world.wanted.revision,
        "resolved": json.dumps(world.wanted.resolved, separators=(",", ":")),
        "evaluation_hash": world.wanted.evaluation_hash,
        "release": world.release_name if world.spec.deployment.enabled else None,
        "base_model": world.base_model.name,
        "candidates": list(world.obs.candidates),
    }


def another_revision(world: World) -> Stale:
    """The previous revision is discarded; its result is added to the history."""
    old = world.state
    unfinished = old.revision is not None and old.completion_time is None
    superseded = remembered(old, str(old.revision), Reason.SUPERSEDED, world.now) if unfinished else {}
    forgotten = dict.fromkeys(
        ("micro_batch_scale", "preflight", "baseline", "progress", "checkpoint", "artifacts", "evaluation")
    )
    missed = [one for one in world.obs.candidates if one.result == "Missed" and one.revision == old.revision]
    why = f"{missed[0].model} missed: {missed[0].message}" if missed else world.wanted.why(revision.TRAINING)
    news = f"new {_subject(world)}: {why}" if why else ""
    return begin_again(world) + Stale(STAGES, superseded | forgotten, news)


def another_judgement(world: World) -> Stale | None:
    """The same tuned model is evaluated again."""
    old = world.state
    if old.evaluation_hash == world.wanted.evaluation_hash:
        return None
    news = f"{_subject(world)} is evaluated again: {world.wanted.why(revision.EVALUATION)}"
    stale = Stale((Condition.EVALUATED, Condition.DEPLOYED), {"evaluation": None}, news)
    if old.stage == Stage.BASELINE:
        stale += Stale((Condition.BASELINE_MEASURED,), {"baseline": None})
    if old.stage in {Stage.BASELINE, Stage.EVALUATE, Stage.VERIFY}:
        stale += begin_again(world)
    return stale


def another_release(world: World) -> Stale:
    """The same adapter is served with other settings, for the first time, or no longer."""
    old, release = world.state, recorded(world)["release"]
    if old.release == release:
        return NOTHING
    why = world.wanted.why(revision.RELEASE) or world.placement.news or "spec.deployment.enabled changed"
    follows = f"is served by a new release, {release}" if release else "is not served any more"
    stale = Stale((Condition.DEPLOYED,), news=f"{_subject(world)} {follows}: {why}")
    if old.stage == Stage.VERIFY or world.true(Condition.COMPLETE):
        stale += begin_again(world)
    return stale


def train_after_all(world: World) -> Stale:
    """The job was complete because a prompt is enough, and the spec now requests training anyway."""
    ended = world.true(Condition.COMPLETE) and not world.true(Condition.TRAINED)
    return begin_again(world) if ended and not world.spec.intent.content_with_a_prompt else NOTHING


def begin_again(world: World) -> Stale:
    """The current or last stage is not what the spec requests any more."""
    edits = dict.fromkeys(("stage", "attempt", "failed_attempts", "retry_at", "failure", "completion_time", "queue"))
    return Stale(ENDS, {**edits, "start_time": world.now})


INHERENT = {
    Reason.EVALUATION_BELOW_GATE,
    Reason.LOSS_DIVERGED,
    Reason.DATASET_INVALID,
    Reason.TOO_FEW_EXAMPLES,
    Reason.FINE_TUNING_NOT_RECOMMENDED,
    Reason.ADAPTER_INCOMPATIBLE,
    Reason.ROLLED_BACK,
}
"""Failures of the work itself: more memory or other credentials would not help."""


def another_try(world: World) -> Stale:
    """An edit of the environment of a stage changes no result, and retries the failed stage."""
    failure = world.state.failure
    if failure is None or not world.true(Condition.FAILED):
        return NOTHING
    stage = Stage(failure.stage)
    relevant = [revision.PREFLIGHT] if stage is Stage.PREFLIGHT else []
    if stage is Stage.PREFLIGHT and failure.reason is Reason.INSUFFICIENT_GPU_MEMORY:
        relevant.append(revision.RELEASE)  # preflight judges the server's memory, too
    if stage in sidecar.STAGES and failure.reason is Reason.SERVER_FAILED:
        relevant.append(revision.RELEASE)  # its server has the arguments and the image of the deployment
    relevant += [] if failure.reason in INHERENT else [revision.ENVIRONMENT]
    why = world.wanted.why(*relevant)
    if not why:
        return NOTHING
    once_more = {"stage": stage, "attempt": world.attempt + 1, "failed_attempts": 0, "micro_batch_scale": None}
    return begin_again(world) + Stale(
        (conditions.STAGE_CONDITIONS[stage],), once_more, f"{_subject(world)}: {stage} is retried: {why}"
    )
