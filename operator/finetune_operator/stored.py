"""An object as it is remembered: a FineTuneJob in little memory, and the versions of objects, which are compared."""

import dataclasses
import json
from typing import Any

from finetune_api import reasons
from finetune_operator.observe import members, projections


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """A FineTuneJob, as text, which takes a quarter of the memory of its object."""

    version: str
    namespace: str
    phase: str | None
    text: str
    claim: "Claim | None" = None
    parts: tuple[members.Member, ...] = ()
    """Its parts in the indexes of ServingPools."""
    compared: members.Compared | None = None
    sleeper: str | None = None
    """Its release whose servers may sleep."""

    @property
    def raw(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text)
        return found


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """A FineTuneJob that answers, or will, under a served name."""

    served: str
    job: str
    created: str
    accepted: bool

    @classmethod
    def of(cls, raw: projections.Raw) -> "Claim | None":
        meta, wanted = raw["metadata"], (raw.get("spec") or {}).get("deployment") or {}
        if wanted.get("enabled") is False:
            return None
        conditions = (raw.get("status") or {}).get("conditions") or []
        accepted = any(c["type"] == reasons.Condition.ACCEPTED and c["status"] == "True" for c in conditions)
        name = str(meta.get("name", ""))
        return cls(str(wanted.get("servedModelName") or name), name, str(meta.get("creationTimestamp", "")), accepted)


UNREAD = {"managedFields"}
"""Metadata that the operator does not use, which is half of an object's size."""


def keep(raw: projections.Raw) -> Stored:
    meta = {name: value for name, value in raw["metadata"].items() if name not in UNREAD}
    text = json.dumps({**raw, "metadata": meta}, separators=(",", ":"))
    phase = (raw.get("status") or {}).get("phase")
    return Stored(
        version(raw),
        meta.get("namespace", ""),
        phase,
        text,
        Claim.of(raw),
        members.members(raw),
        members.compared(raw),
        members.sleeper(raw),
    )


def is_behind(raw: projections.Raw, known: Stored) -> bool:
    """Of two versions of one object; resourceVersions are ordered numbers (KEP-5504)."""
    return number(version(raw)) < number(known.version)


def version(raw: projections.Raw) -> str:
    return str(raw["metadata"]["resourceVersion"])


def number(text: str) -> int:
    """A resourceVersion to compare; those of aggregated API servers may not be numbers, and then never count as newer."""
    return int(text) if text.isdecimal() else 0


def key(raw: projections.Raw) -> tuple[str, str]:
    return raw["metadata"].get("namespace", ""), raw["metadata"]["name"]
