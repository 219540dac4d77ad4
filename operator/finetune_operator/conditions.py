"""Small, named edits of a status, the phase for people, and the conditions worth an event."""

import datetime
from typing import Literal, TypeVar

from finetune_api import servingpool, status
from finetune_api.reasons import BY_SOMEBODY, WAITING, Condition, Phase, Reason, Stage

State = Literal["True", "False", "Unknown"]

STAGE_CONDITIONS = {
    Stage.PREFLIGHT: Condition.PREFLIGHT_PASSED,
    Stage.BASELINE: Condition.BASELINE_MEASURED,
    Stage.TRAIN: Condition.TRAINED,
    Stage.EVALUATE: Condition.EVALUATED,
    Stage.VERIFY: Condition.DEPLOYED,
}
RANKS: dict[str, int] = {kind: rank for rank, kind in enumerate(Condition)}
ENDS = {Condition.COMPLETE, Condition.DEPLOYED}
WAITS = WAITING | {Reason.WAITING, Reason.STARTING, Reason.QUEUED, Reason.EVICTED, Reason.DISRUPTED}
"""Reasons of a job that waits, for whatever."""
QUEUED = {Reason.QUEUED, Reason.EVICTED, Reason.QUEUE_REFUSED}


S = TypeVar("S", status.Status, servingpool.Status)


def get(state: status.Status | servingpool.Status, kind: Condition) -> status.Condition | None:
    return next((c for c in state.conditions if c.type == kind), None)


def is_true(state: status.Status | servingpool.Status, kind: Condition) -> bool:
    found = get(state, kind)
    return found is not None and found.status == "True"


def put(
    state: S,
    kind: Condition,
    value: State,
    reason: str,
    message: str,
    generation: int,
    now: datetime.datetime,
) -> S:
    """The status with this condition; its transition time changes only when the value changes."""
    old = get(state, kind)
    flipped = old is None or old.status != value
    new = status.Condition(
        type=kind,
        status=value,
        observed_generation=generation,
        last_transition_time=now.replace(microsecond=0) if flipped or old is None else old.last_transition_time,
        reason=reason,
        message=message[:1024],
    )
    others: list[status.Condition] = [c for c in state.conditions if c.type != kind]
    ordered = sorted([*others, new], key=lambda c: RANKS.get(c.type, len(RANKS)))
    return state.model_copy(update={"conditions": ordered})


def drop(state: S, *kinds: Condition) -> S:
    if not kinds:
        return state
    return state.model_copy(update={"conditions": [c for c in state.conditions if c.type not in kinds]})


def summarized(
    state: status.Status,
    ready: State,
    reconciling: bool,
    stalled: bool,
    reason: str,
    message: str,
    generation: int,
    now: datetime.datetime,
) -> status.Status:
    """The status with Ready, Reconciling and Stalled, as kstatus reads them."""
    values: dict[Condition, State] = {
        Condition.READY: ready,
        Condition.RECONCILING: "True" if reconciling else "False",
        Condition.STALLED: "True" if stalled else "False",
    }
    for kind, value in values.items():
        state = put(state, kind, value, reason, message, generation, now)
    return state


def waits(
    state: status.Status, reason: str, message: str, generation: int, now: datetime.datetime, patience: float
) -> status.Status:
    """The status of a job that is in progress, or waits: then with what it waits for and since when, and Stalled after
    `patience` seconds if somebody has to do something."""
    before = state.waiting
    waiting = None
    if reason in WAITS:
        since = before.since if before is not None and before.reason == reason else now.replace(microsecond=0)
        waiting = status.Waiting(reason=reason, since=since)
    due = stalls(waiting, message, patience)
    stalled = due is not None and now >= due
    state = state.model_copy(update={"waiting": waiting})
    return summarized(state, "False", not stalled, stalled, reason, message, generation, now)


def stalls(waiting: status.Waiting | None, message: str, patience: float) -> datetime.datetime | None:
    """When a job that waits like this is stalled; None: never."""
    if waiting is None or waiting.reason not in BY_SOMEBODY:
        return None
    if waiting.reason == Reason.UNSCHEDULABLE and "Insufficient" in message:
        return None
    return waiting.since + datetime.timedelta(seconds=patience)


def seen(state: status.Status, generation: int) -> status.Status:
    """The status with this generation in all conditions: those that an edit did not affect still hold, and `kubectl wait`
    sees it."""
    fresh = [c.model_copy(update={"observed_generation": generation}) for c in state.conditions]
    return state.model_copy(update={"conditions": fresh})


def phase(state: status.Status) -> Phase:
    """A pure function of the conditions, for people."""
    if is_true(state, Condition.SUSPENDED):
        return Phase.SUSPENDED
    if is_true(state, Condition.FAILED) or (is_true(state, Condition.STALLED) and state.waiting is None):
        return Phase.FAILED
    if is_true(state, Condition.COMPLETE):
        return Phase.COMPLETE
    if is_true(state, Condition.READY):
        return Phase.READY
    if not is_true(state, Condition.ACCEPTED):
        return Phase.PENDING
    trained = get(state, Condition.TRAINED)
    if not is_true(state, Condition.PREFLIGHT_PASSED):
        return Phase.PREFLIGHT
    stages = [found for kind in STAGE_CONDITIONS.values() if (found := get(state, kind)) and found.status != "True"]
    if stages and stages[0].reason in QUEUED:
        return Phase.QUEUED
    baseline = get(state, Condition.BASELINE_MEASURED)
    if baseline is not None and baseline.status != "True" and trained is None:
        return Phase.BASELINE
    if not is_true(state, Condition.TRAINED):
        running = trained is not None and trained.reason in {Reason.RUNNING, Reason.RETRYING, Reason.DISRUPTED}
        return Phase.TRAINING if running else Phase.QUEUED
    return Phase.DEPLOYING if is_true(state, Condition.EVALUATED) else Phase.EVALUATING


EXPECTED = {Reason.WAITING, Reason.STARTING, Reason.RUNNING, Reason.DISABLED, Reason.CHANGED_BY_OTHERS}
"""Reasons of a stage that proceeds normally: shown in the status and by the Job's own events."""


def flips(old: status.Status, new: status.Status) -> list[status.Condition]:
    """Conditions worth an event, which costs a request to the API server: a stage that ended, a problem and its end, the
    effect of an edit (in Accepted), the end of the job, and Ready when it becomes true or false. What happens to every job
    gets no event."""
    before = {c.type: c for c in old.conditions}
    found = []
    for condition in new.conditions:
        was = before.get(condition.type)
        if condition.type == Condition.READY:
            changed = (was is not None and was.status == "True") != (condition.status == "True")
            if changed or (condition.reason == Reason.ASLEEP and _asleep(new) and not _asleep(old)):
                found.append(condition)
        elif condition.type == Condition.STALLED:
            if condition.status == "True" and new.waiting is not None and (was is None or was.status != "True"):
                found.append(condition)
        elif condition.type == Condition.RECONCILING or _is_expected(condition, was):
            continue
        elif was is None or (was.status, was.reason) != (condition.status, condition.reason) or _edited(was, condition):
            found.append(condition)
    # The end of the job is one event, not another one for the job's failure or success.
    ends = [c for c in found if c.type == Condition.FAILED or (c.type in ENDS and c.status == "True")]
    messages = {(c.reason, c.message) for c in ends}
    return [
        c for c in found if c in ends or not ((c.type == Condition.READY and ends) or (c.reason, c.message) in messages)
    ]


def _asleep(state: status.Status) -> bool:
    return state.deployment is not None and state.deployment.asleep_since is not None


def _is_expected(condition: status.Condition, was: status.Condition | None) -> bool:
    if was is not None and is_bad(was):
        return condition.reason == Reason.WAITING
    accepted = condition.type == Condition.ACCEPTED and condition.status == "True" and was is None
    return accepted or condition.reason in EXPECTED


def _edited(was: status.Condition, condition: status.Condition) -> bool:
    return condition.type == Condition.ACCEPTED and was.message != condition.message


GOOD_NEWS = {
    Reason.SUSPENDED,
    Reason.DISABLED,
    Reason.WAITING,
    Reason.QUEUED,
    Reason.RUNNING,
    Reason.STARTING,
    Reason.ROLLING_OUT,
    Reason.ROLLOUT_HELD,
    Reason.AWAITING_APPROVAL,
    Reason.RESUMED,
    Reason.WAKING,
}


def is_bad(condition: status.Condition) -> bool:
    """Whether the event of this change is a warning: it names a problem."""
    failed = condition.type == Condition.FAILED and condition.status == "True"
    return (
        failed
        or (condition.type == Condition.STALLED and condition.status == "True")
        or condition.reason == Reason.ROLLED_BACK
        or (condition.status != "True" and condition.reason not in GOOD_NEWS)
    )
