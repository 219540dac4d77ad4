"""Which edit of a spec means which work: a new revision, another evaluation, another release, or nothing.

A revision's inputs are recorded in `status.resolved`, one section for each kind of work. A section has changed when one of the
recorded fields differs. A field that the record lacks (a newer operator's new field) counts as unchanged while it has its
default, so an upgrade or a new default never retrains; set to something else it is an edit like any other. An edit of the
catalogue does not retrain either, since the section holds the entry's name, not its content.
"""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from finetune_api import basemodel, job, run

RUN_ANNOTATION = "finetune.dev/run"
"""Any new value asks for a fresh run with the same spec."""

TRAINING = "training"
PREFLIGHT = "preflight"
EVALUATION = "evaluation"
RELEASE = "release"
ENVIRONMENT = "environment"
"""Where and with what the stages run: changes no result, but an edit gives a failed stage another try."""
BASE_MODEL = "baseModel"
FREE_MAPS = {"nodeSelector", "checks", "outputSchema"}
"""Fields whose keys are the user's."""


def digest(value: Any, length: int = 64) -> str:
    """The first `length` hexadecimal digits of the SHA-256 of `value` as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:length]


def inputs(spec: job.FineTuneJobSpec, run_annotation: str, *, chosen: bool = False) -> dict[str, dict[str, Any]]:
    """The spec, sorted into the sections that decide what must be done again. Absent fields are recorded as null.

    `chosen`: without the fields that have their default; what is left of an empty part is null or empty.
    """
    whole: dict[str, Any] = collections.defaultdict(
        dict, spec.model_dump(mode="json", by_alias=True, exclude_defaults=chosen)
    )
    dataset = dict(whole["dataset"])
    training = {k: v for k, v in whole["training"].items() if k not in {"retries", "checkpoints"}}
    minimum = dataset.pop("minimumExamples", None)
    intent = dict(whole["intent"])
    evaluation = {**whole["evaluation"], "prompt": intent.pop("prompt", None)}
    environment = {
        "storage": whole["storage"],
        "resources": whole["resources"],
        "evaluationResources": evaluation.pop("resources", None),
        "activeDeadlineSeconds": whole["activeDeadlineSeconds"],
        "retries": whole["training"].get("retries"),
    }
    deployment = {k: v for k, v in whole["deployment"].items() if k not in {"replicas", "rollout", "enabled"}}
    return {
        TRAINING: {"baseModel": whole["baseModel"], "dataset": dataset, "training": training, "run": run_annotation},
        PREFLIGHT: {**intent, "minimumExamples": minimum},
        EVALUATION: evaluation,
        RELEASE: deployment,
        ENVIRONMENT: environment,
    }


def changes(recorded: Any, wanted: Any, chosen: Any, path: str = "") -> list[str]:
    """Paths of the fields whose wanted value differs from the record. `chosen` is `wanted` without the fields that have their
    default. A field that only the record knows does not count: it is an older or newer operator's. Nor does one that only the
    spec knows, unless it was chosen. Maps of the user's own keys are one value."""
    if isinstance(recorded, Mapping) and isinstance(wanted, Mapping) and path.rpartition(".")[2] not in FREE_MAPS:
        mine = chosen if isinstance(chosen, Mapping) else {}
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
    return [] if recorded == wanted else [path]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the spec asks for now: the recorded sections where nothing changed, and the hashes that name the children."""

    resolved: dict[str, Any]
    changed: dict[str, list[str]]
    """Section -> paths that differ from the record; all sections are present, unchanged ones with an empty list."""

    @property
    def revision(self) -> str:
        return digest(self.resolved[TRAINING], 8)

    @property
    def evaluation_hash(self) -> str:
        return digest(self.resolved[EVALUATION], 8)

    @property
    def release_hash(self) -> str:
        """Names the Deployment together with the revision."""
        return digest(self.resolved[RELEASE], 4)


def want(spec: job.FineTuneJobSpec, run_annotation: str, recorded: Mapping[str, Any] | None) -> Wanted:
    """Compare the spec with the record of the last reconcile; unchanged sections keep the recorded words (and so their hash)."""
    fresh = inputs(spec, run_annotation)
    if recorded is None:
        return Wanted(resolved=fresh, changed={section: [] for section in fresh})
    chosen = inputs(spec, run_annotation, chosen=True)
    changed = {
        section: changes(recorded[section], fresh[section], chosen[section]) if section in recorded else []
        for section in fresh
    }
    resolved: dict[str, Any] = {
        section: fresh[section] if changed[section] or section not in recorded else recorded[section]
        for section in fresh
    }
    if not changed[TRAINING] and BASE_MODEL in recorded:
        resolved[BASE_MODEL] = recorded[BASE_MODEL]
    return Wanted(resolved=resolved, changed=changed)


def resolve(reference: job.BaseModelReference, entry: basemodel.BaseModelSpec | None) -> run.ResolvedBaseModel | None:
    """The base model that a reference means; None when the catalogue lacks it."""
    if reference.source is not None:
        name = reference.source.rstrip("/").rsplit("/", 1)[-1].lower()
        return run.ResolvedBaseModel(name=name, source=reference.source, revision=reference.revision)
    if entry is None or reference.name is None:
        return None
    return run.ResolvedBaseModel(
        name=reference.name,
        source=entry.source,
        revision=entry.revision,
        parameters=entry.parameters,
        architecture=entry.architecture,
        access_token_secret=entry.access_token_secret,
        extra_args=entry.defaults.serving.extra_args,
        learning_rate=entry.defaults.training.learning_rate,
    )
