"""What a rule returns, as data, and what a whole decision is. Nothing here acts."""

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

from finetune_api import status
from finetune_api.reasons import Condition, Reason, Stage
from finetune_operator import conditions
from finetune_operator.manifests import meta
from finetune_operator.observe import records


@dataclasses.dataclass(frozen=True)
class Say:
    """A condition to write."""

    condition: Condition
    value: conditions.State
    reason: str
    message: str


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What follows from one fact: what to write into the status, and the effects. Written in this order: `forgets`, `edits`,
    `serves` or `withdraws`, `says`, `outcome`."""

    forgets: tuple[Condition, ...] = ()
    edits: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Field of the status -> its new value."""
    serves: records.Release | None = None
    """The release that the job's Service sends requests to from now on."""
    withdraws: bool = False
    """Nothing is served any more."""
    says: tuple[Say, ...] = ()
    outcome: Reason | None = None
    """The revision ended with this, and goes into the history."""
    proceed: bool = False
    """The status is further now, and the rules are asked again in the same pass."""

    apply: tuple[meta.Manifest, ...] = ()
    delete: tuple[Ref, ...] = ()
    job: str | None = None
    """The Job that may run now; every other running one is stopped."""
    candidate: records.Release | None = None
    """The release that is being rolled out; without one, releases that do not serve go."""
    nodes_service: str | None = None
    """The Service by which the pods of the training under way find each other."""
    again: datetime.datetime | None = None
    """When to look again, should nothing happen until then."""
    remove_parent: bool = False
    ended: tuple[Ended, ...] = ()
    retried: tuple[tuple[Stage, Reason], ...] = ()
    waited: tuple[tuple[Stage, float], ...] = ()
    """Seconds of each wait in a queue that ended."""


AS_IT_IS = Verdict()
"""Nothing is to be done."""


def says(condition: Condition, value: conditions.State, reason: str, message: str, **more: Any) -> Verdict:
    """A verdict with this condition."""
    return Verdict(says=(Say(condition, value, reason, message),), **more)


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
