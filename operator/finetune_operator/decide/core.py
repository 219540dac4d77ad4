"""Decide the next step of one job: pure, level-triggered, from the whole of what is observed.

    observation -> world -> the first rule of JOURNEY that matches gives a verdict -> the world after it
                            -> if the verdict says `proceed`, the rules are evaluated again
                -> what applies in every world (keep serving, delete leftovers, count time) -> summary -> decision

A rule is named after a fact and returns None if the fact does not hold. The scenarios that rules and tests name are drawn in
`finetune_operator.gather`.
"""

import datetime
from collections.abc import Callable, Sequence
from typing import NamedTuple

from finetune_api import status
from finetune_api.reasons import Condition, Reason
from finetune_operator import conditions
from finetune_operator.decide import (
    baseline,
    candidates,
    cost,
    drift,
    edits,
    leftovers,
    life,
    pooled,
    queue,
    rollout,
    routes,
    sleep,
    stages,
    summary,
    world,
)
from finetune_operator.decide.verdict import Decision, Verdict
from finetune_operator.decide.world import World
from finetune_operator.manifests import meta
from finetune_operator.observe import observation, parents, pools

Rule = Callable[[World], Verdict | None]
JOURNEY: tuple[Rule, ...] = (
    life.time_to_live_is_over,
    life.serving_was_turned_off,
    life.suspension_is_over,
    life.gpu_type_is_unknown,
    life.base_model_is_not_in_the_catalogue,
    life.pool_cannot_serve_it,
    life.served_name_is_taken,
    life.service_name_is_taken,
    edits.the_spec_asks_for_other_work,
    pooled.the_former_revision_was_better,
    life.failure_is_final,
    life.everything_is_done,
    life.job_is_suspended,
    life.deadline_has_passed,
    stages.preflight_is_not_done,
    baseline.baseline_is_not_wanted_any_more,
    baseline.baseline_is_not_done,
    baseline.a_prompt_is_all_it_takes,
    stages.the_pool_does_not_fit,
    stages.training_is_not_done,
    stages.evaluation_is_not_done,
    stages.deployment_is_disabled,
    rollout.the_release_is_not_rolled_out,
)
IN_EVERY_WORLD: tuple[Callable[[World], Verdict], ...] = (
    pooled.settle,
    rollout.keep_serving,
    pooled.delivers_again,
    routes.settle,
    leftovers.releases,
    leftovers.jobs,
    drift.settle,
    queue.settle,
    cost.settle,
    candidates.settle,
    life.wake,
)
SERVING = {rollout.keep_serving, pooled.delivers_again}
MOST = 2 * len(JOURNEY)
"""Maximum number of verdicts in one pass; more mean that two rules undo each other."""


class Step(NamedTuple):
    """A rule that matched, its verdict, and the world after it."""

    rule: Rule
    verdict: Verdict
    reached: World


def decide(obs: observation.Observation) -> Decision:
    """The next step of a job that can be read."""
    steps = journey(obs)
    reached, found = steps[-1].reached, [step.verdict for step in steps]
    if found[-1].remove_parent:
        return Decision(status=reached.state, remove_parent=True)
    serving: tuple[meta.Manifest, ...] = ()
    for always in IN_EVERY_WORLD:
        found.append(always(reached))
        reached = reached.settled(found[-1])
        serving += found[-1].apply if always in SERVING else ()
    return _decision(obs, summary.sum_up(reached), found, serving)


def journey(obs: observation.Observation) -> list[Step]:
    """The rules that matched, each the first match in its world; the last one ends the pass."""
    place, steps = world.of(obs), list[Step]()
    while len(steps) < MOST:
        rule, verdict = next((rule, verdict) for rule in JOURNEY if (verdict := rule(place)) is not None)
        place = place.after(verdict)
        steps.append(Step(rule, verdict, place))
        if not verdict.proceed:
            return steps
    raise RuntimeError("the rules of a pass do not terminate: " + ", ".join(step.rule.__name__ for step in steps))


def _decision(
    obs: observation.Observation, state: status.Status, found: Sequence[Verdict], serving: Sequence[meta.Manifest]
) -> Decision:
    """What serves is applied first: a candidate that the API server refuses does not keep it from that."""
    first = {_place(manifest) for manifest in serving}
    applied = {_place(manifest): manifest for verdict in found for manifest in verdict.apply}
    due = min((verdict.again for verdict in found if verdict.again is not None), default=None)
    return Decision(
        status=state,
        apply=tuple(sorted(applied.values(), key=lambda manifest: _place(manifest) not in first)),
        delete=tuple(dict.fromkeys(ref for verdict in found for ref in verdict.delete)),
        requeue=_wait(due, obs.now),
        ended=tuple(ended for verdict in found for ended in verdict.ended),
        retried=tuple(retried for verdict in found for retried in verdict.retried),
        waited=tuple(waited for verdict in found for waited in verdict.waited),
    )


def _wait(due: datetime.datetime | None, now: datetime.datetime) -> float | None:
    return None if due is None else max((due - now).total_seconds(), 0.05)


def _place(manifest: meta.Manifest) -> tuple[str, str]:
    return manifest["kind"], manifest["metadata"]["name"]


def refuse(parent: parents.Parent, now: datetime.datetime, pool: pools.Parent | None = None) -> Decision:
    """Scenario O. Spec or records cannot be read: report that, and do not touch what runs and serves. Then nothing starts
    servers of the job's own that sleep; those of the pool that it serves in are started as usual."""
    state = parent.status
    values: dict[Condition, conditions.State] = {
        Condition.ACCEPTED: "False",
        Condition.STALLED: "True",
        Condition.READY: "False",
        Condition.RECONCILING: "False",
    }
    for kind, value in values.items():
        state = conditions.put(state, kind, value, Reason.INVALID_SPEC, parent.unreadable, parent.generation, now)
    state = state.model_copy(update={"waiting": None})
    again = None
    if state.deployment is not None:
        since, again = sleep.held_by(pool, state.deployment.held_since, now)
        state = state.model_copy(update={"deployment": state.deployment.model_copy(update={"held_since": since})})
    seen = {"observed_generation": parent.generation, "phase": conditions.phase(state)}
    return Decision(status=state.model_copy(update=seen), requeue=_wait(again, now))
