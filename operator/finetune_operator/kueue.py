"""Kueue's state of a Job in a queue, as a small fact. Its Workload belongs to the Job, and is not a child of the
FineTuneJob."""

import dataclasses
from collections.abc import Mapping
from typing import Any

QUEUE = "kueue.x-k8s.io/queue-name"
"""Label of a Job: the LocalQueue that decides when it may run."""
QUEUED_JOB = "kueue.x-k8s.io/job-uid"
"""Label of a Workload: the uid of its Job."""


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A condition's reason and message, both empty if it does not apply."""

    reason: str = ""
    message: str = ""


@dataclasses.dataclass(frozen=True)
class Workload:
    """The same in every version of Kueue's API so far. `job_uid` is empty if it does not belong to a Job."""

    name: str
    namespace: str
    job: str
    job_uid: str
    active: bool
    """Whether it may be admitted at all."""
    reserved: bool
    """Whether its quota is reserved; then it only waits for the checks."""
    pending: Explanation
    """Why it has no quota."""
    evicted: Explanation
    """Why it lost its quota."""
    checks: tuple[str, ...]
    """Admission checks that are not ready, as text."""


def workload(raw: Mapping[str, Any]) -> Workload:
    meta, state = raw["metadata"], raw.get("status") or {}
    owners = [o for o in meta.get("ownerReferences") or [] if o.get("kind") == "Job"] or [{}]
    conditions = {c.get("type"): c for c in state.get("conditions") or []}

    def explained(kind: str, value: str) -> Explanation:
        found = conditions.get(kind, {})
        return (
            Explanation(found.get("reason", ""), found.get("message", ""))
            if found.get("status") == value
            else Explanation()
        )

    return Workload(
        name=meta["name"],
        namespace=meta["namespace"],
        job=owners[0].get("name", ""),
        job_uid=owners[0].get("uid", ""),
        active=(raw.get("spec") or {}).get("active") is not False,
        reserved=conditions.get("QuotaReserved", {}).get("status") == "True",
        pending=explained("QuotaReserved", "False"),
        evicted=explained("Evicted", "True"),
        checks=tuple(
            f"{check.get('name')} is {check.get('state')}" + (f" ({text})" if (text := check.get("message")) else "")
            for check in state.get("admissionChecks") or []
            if check.get("state") != "Ready"
        ),
    )
