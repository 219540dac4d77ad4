"""The result of a rule, and of a whole decision, as data. Nothing here has effects."""

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
    """What follows from one fact: changes of the status, and effects. Applied in this order: `forgets`, `edits`, `serves` or
    `withdraws`, `says`, `outcome`."""

    forgets: tuple[Condition, ...] = ()
    edits: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Field of the status -> its new value."""
    serves: records.Release | None = None
    """The release to which the job's Service routes from now on."""
    previous: tuple[records.Release, ...] | None = None
    """The former releases that a ServingPool still holds; None: as before."""
    withdraws: bool = False
    """Nothing is served any more."""
    says: tuple[Say, ...] = ()
    outcome: Reason | None = None
    """The revision ended with this, and is added to the history."""
    proceed: bool = False
    """Whether the rules are evaluated again in the same pass, with the new status."""

    apply: tuple[meta.Manifest, ...] = ()
    delete: tuple[Ref, ...] = ()
    job: str | None = None
    """The Job that may run now; all other running ones are stopped."""
    candidate: records.Release | None = None
    """The release that is being rolled out; all others that do not serve are deleted."""
    nodes_service: str | None = None
    """The headless Service of the running multi-node training."""
    again: datetime.datetime | None = None
    """When to reconcile again if nothing happens until then."""
    remove_parent: bool = False
    ended: tuple[Ended, ...] = ()
    retried: tuple[tuple[Stage, Reason], ...] = ()
    waited: tuple[tuple[Stage, float], ...] = ()
    """Seconds of each wait in a queue that ended."""


AS_IT_IS = Verdict()
"""Nothing to do."""


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
