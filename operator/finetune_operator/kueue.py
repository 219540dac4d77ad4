"""What Kueue says of a Job in a queue, as a small fact. Its Workload belongs to the Job, and is none of our children."""

import dataclasses
from collections.abc import Mapping
from typing import Any

QUEUE = "kueue.x-k8s.io/queue-name"
"""Label of a Job: the LocalQueue that decides when it may run."""
QUEUED_JOB = "kueue.x-k8s.io/job-uid"
"""Label of a Workload: the uid of its Job."""


@dataclasses.dataclass(frozen=True)
class Word:
    """What a condition says: its reason and message, both empty where it says nothing."""

    reason: str = ""
    message: str = ""


@dataclasses.dataclass(frozen=True)
class Workload:
    """Alike in every version of Kueue's API so far. `job_uid` is empty where it is no Job's."""

    name: str
    namespace: str
    job: str
    job_uid: str
    active: bool
    """Whether it may be admitted at all."""
    reserved: bool
    """Whether it has its quota: what else it waits for are the checks."""
    pending: Word
    """Why it has no quota."""
    evicted: Word
    """Why it lost the quota that it had."""
    checks: tuple[str, ...]
    """Admission checks that are not done, each in words."""


def workload(raw: Mapping[str, Any]) -> Workload:
    meta, state = raw["metadata"], raw.get("status") or {}
    owners = [o for o in meta.get("ownerReferences") or [] if o.get("kind") == "Job"] or [{}]
    conditions = {c.get("type"): c for c in state.get("conditions") or []}

    def said(kind: str, value: str) -> Word:
        found = conditions.get(kind, {})
        return Word(found.get("reason", ""), found.get("message", "")) if found.get("status") == value else Word()

    return Workload(
        name=meta["name"],
        namespace=meta["namespace"],
        job=owners[0].get("name", ""),
        job_uid=owners[0].get("uid", ""),
        active=(raw.get("spec") or {}).get("active") is not False,
        reserved=conditions.get("QuotaReserved", {}).get("status") == "True",
        pending=said("QuotaReserved", "False"),
        evicted=said("Evicted", "True"),
        checks=tuple(
            f"{check.get('name')} is {check.get('state')}" + (f" ({text})" if (text := check.get("message")) else "")
            for check in state.get("admissionChecks") or []
            if check.get("state") != "Ready"
        ),
    )
