"""Which edit of a spec causes which work: a new revision, another evaluation, another release, or nothing.

A revision's inputs are recorded in `status.resolved`, one section for each kind of work. A section has changed when one of
the recorded fields differs. A field that the record lacks (a newer operator's new field) counts as unchanged while it has its
default, so an upgrade or a new default never retrains; setting it to another value is an edit like any other. An edit of the
catalogue does not retrain either, since the section contains the entry's name, not its content.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from finetune_api import evaluation, job, revision, run

SHOWN = 3
"""Maximum number of changed fields in a message."""
FREE_MAPS = {"nodeSelector", "checks", "outputSchema"}
"""Fields whose keys are the user's."""


def changes(recorded: Any, wanted: Any, chosen: Any, path: str = "") -> list[str]:
    """Paths of the fields whose wanted value differs from the record. `chosen` is `wanted` without the fields that have their
    default. A field that is only in the record is ignored: it comes from an older or newer operator. So is one that is only
    in the spec, unless it was set. Maps with the user's own keys count as one value."""
    # An absent list was recorded as an empty one by earlier operators.
    if recorded == wanted or (recorded == [] and wanted is None):
        return []
    if path == "baselines" and chosen is None and recorded in evaluation.FORMER_DEFAULTS:
        return []  # a new release measures more by default: no reason to evaluate again
    if isinstance(recorded, dict) and isinstance(wanted, dict) and path.rpartition(".")[2] not in FREE_MAPS:
        mine = chosen if isinstance(chosen, dict) else {}
        found = []
        for key, value in wanted.items():
            place = f"{path}.{key}" if path else key
            if key in recorded:
                found += changes(recorded[key], value, mine.get(key), place)
            elif mine.get(key) not in (None, {}, []):
                found.append(place)
        return found
    if isinstance(recorded, list) and isinstance(wanted, list) and len(recorded) == len(wanted):
        items = zip(recorded, wanted, chosen if isinstance(chosen, list) else [None] * len(wanted), strict=True)
        return [p for i, (a, b, c) in enumerate(items) for p in changes(a, b, c, f"{path}[{i}]")]
    return [path]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the spec requests now: the recorded sections where nothing changed, and the hashes in the children's names."""

    resolved: Mapping[str, Any]
    """The sections, and the base model once it is known."""
    changed: Mapping[str, list[str]]
    """Section -> paths that differ from the record; all sections are present, unchanged ones with an empty list."""

    def why(self, *sections: str) -> str:
        """The changed fields of the spec, as text; empty if none was changed."""
        fields = [revision.field_of(section, path) for section in sections for path in self.changed.get(section, [])]
        shown = ", ".join(fields[:SHOWN]) + (f" and {len(fields) - SHOWN} more" if len(fields) > SHOWN else "")
        return f"{shown} changed" if fields else ""

    @functools.cached_property
    def revision(self) -> str:
        return revision.training_hash(self.resolved)

    @functools.cached_property
    def evaluation_hash(self) -> str:
        return revision.evaluation_hash(self.resolved)

    @functools.cached_property
    def release_hash(self) -> str:
        """Part of the release's name, with the revision."""
        release, pool = self.resolved[revision.RELEASE], self.resolved.get(revision.POOL)
        return revision.digest({**release, "in": pool} if pool else release, 4)


def want(spec: job.FineTuneJobSpec, run_annotation: str, recorded: Mapping[str, Any] | None) -> Wanted:
    """Compare the spec with the record of the last reconcile; unchanged sections keep the recorded content (and so their
    hash)."""
    fresh = revision.inputs(spec, run_annotation)
    if recorded is None:
        return Wanted(resolved=fresh, changed={section: [] for section in fresh})
    same = all(recorded.get(section) == inputs for section, inputs in fresh.items())
    chosen = fresh if same else revision.inputs(spec, run_annotation, chosen=True)
    changed = {
        section: changes(recorded[section], fresh[section], chosen[section]) if section in recorded else []
        for section in fresh
    }
    resolved: dict[str, Any] = {
        section: fresh[section] if changed[section] or section not in recorded else recorded[section]
        for section in fresh
    }
    if not changed[revision.TRAINING] and revision.BASE_MODEL in recorded:
        resolved[revision.BASE_MODEL] = recorded[revision.BASE_MODEL]
    return Wanted(resolved=resolved, changed=changed)


def placed(wanted: Wanted, pool: str | None) -> Wanted:
    """With the ServingPool that serves it; None: a server of its own."""
    others = {section: inputs for section, inputs in wanted.resolved.items() if section != revision.POOL}
    return dataclasses.replace(wanted, resolved={**others, revision.POOL: {"name": pool}} if pool else others)


def resolved(wanted: Wanted, base: run.ResolvedBaseModel) -> Wanted:
    """With the base model from the catalogue."""
    return dataclasses.replace(wanted, resolved={**wanted.resolved, revision.BASE_MODEL: base.wire()})
