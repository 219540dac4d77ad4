"""What a FineTuneJob contributes to the indexes of ServingPools: pure, from its status alone.

status.serving    held, and has the traffic
status.candidate  held, to be verified; with status.rollout in a step, it has that step's share of the traffic
status.previous   held, to go back to; one that was reached under another name or in another pool keeps its traffic there until
                  it is given up, since clients may still use it
"""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pydantic

from finetune_api import serving
from finetune_operator.observe import projections
from finetune_operator.observe.records import Release


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """The part of one job in one pool. `pool`: NAMESPACE/NAME."""

    pool: str
    models: tuple[serving.Served, ...] = ()
    adapters: tuple[serving.Held, ...] = ()
    needs: str = ""
    """Why the job needs the pool's servers now, whether clients ask or not; empty: it does not."""


def members(raw: projections.Raw) -> tuple[Member, ...]:
    """The parts of a job in its pools; empty for a job without one, or whose records cannot be read.

    Deterministic: the same status gives the same parts, so that they can be compared.
    """
    meta, state = raw["metadata"], raw.get("status") or {}
    texts = [state.get("serving"), state.get("candidate"), *(state.get("previous") or [])]
    if not any(text and '"pool":"' in text for text in texts):
        return ()
    try:
        serves, candidate, *previous = (Release.model_validate_json(text) if text else None for text in texts)
    except pydantic.ValidationError:
        return ()
    former = tuple(one for one in previous if one is not None)
    place = {"namespace": meta["namespace"], "job": meta["name"]}
    releases = [one for one in (serves, candidate, *former) if one is not None and one.pool is not None]
    models = list(_models(place, serves, candidate, former, state.get("rollout") or {}))
    return tuple(
        Member(
            pool,
            tuple(served for at, served in models if at == pool),
            tuple({one.adapter.sha256: _held(place, one) for one in releases if one.pool == pool}.values()),
            _needs(place, candidate, state.get("rollout") or {}) if candidate and candidate.pool == pool else "",
        )
        for pool in dict.fromkeys(str(one.pool) for one in releases)
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Compared:
    """Two releases with servers of their own that share the traffic in a step of a rollout. `revisions`: by release."""

    job: str
    revisions: tuple[tuple[str, str], ...]
    step: str


def compared(raw: projections.Raw) -> Compared | None:
    """The releases whose servers are compared now, if any."""
    state = raw.get("status") or {}
    rollout, text = state.get("rollout") or {}, state.get("serving")
    if not (text and rollout.get("step") and 0 < int(rollout.get("weight") or 0) < 100) or state.get("candidate"):
        return None
    try:
        serves = json.loads(text)
        former = (str(serves["name"]), str(serves["revision"]))
        if serves.get("pool"):
            return None
    except (ValueError, KeyError, AttributeError, TypeError):
        return None
    new = (str(rollout.get("release")), str(rollout.get("revision")))
    return Compared(raw["metadata"]["name"], (former, new), step_name(rollout, ""))


def sleeper(raw: projections.Raw) -> str | None:
    """The release with servers of the job's own that serves and may sleep (deployment.idle); None if there is none."""
    wanted, text = (raw.get("spec") or {}).get("deployment") or {}, (raw.get("status") or {}).get("serving")
    if not text or not wanted.get("idle"):
        return None
    try:
        serves = json.loads(text)
        return None if serves.get("pool") else str(serves["name"])
    except (ValueError, KeyError, AttributeError, TypeError):
        return None


def step_name(rollout: dict[str, Any], serving_release: str) -> str:
    """Of the step that is under way: gateways start counting again when it changes."""
    return f"{rollout['release']}/{rollout['step']}" if rollout.get("step") else serving_release


def _needs(place: dict[str, str], candidate: Release, rollout: dict[str, Any]) -> str:
    """A verified candidate needs no server until a step of its rollout begins: a person may have to approve it first."""
    who = f"revision {candidate.revision} of FineTuneJob {place['namespace']}/{place['job']}"
    if rollout.get("release") != candidate.name:
        return f"{who} is verified"
    return f"{who} is in a step of its rollout" if rollout.get("step") else ""


def _held(place: dict[str, str], release: Release) -> serving.Held:
    adapter = release.adapter
    return serving.Held(
        **place, revision=release.revision, sha256=adapter.sha256, rank=adapter.rank, bytes=adapter.bytes
    )


def _models(
    place: dict[str, str],
    serves: Release | None,
    candidate: Release | None,
    former: tuple[Release, ...],
    rollout: dict[str, Any],
) -> Iterator[tuple[str, serving.Served]]:
    """Pool and model."""
    if serves is None:
        return
    share = 0
    if candidate is not None and candidate.place == serves.place and rollout.get("release") == candidate.name:
        share = int(rollout.get("weight") or 0)
    routes = [_route(candidate, share)] if candidate is not None and share else []
    step = step_name(rollout, serves.name)
    if serves.pool is not None:
        yield serves.pool, _served(place, serves, [*routes, _route(serves, 100 - share)], step)
    elsewhere = {one.place: one for one in reversed(former) if one.place != serves.place}
    for one in elsewhere.values():
        if one.pool is not None:
            yield one.pool, _served(place, one, [_route(one, 100)], one.name)


def _route(release: Release, weight: int) -> serving.Route:
    return serving.Route(revision=release.revision, sha256=release.adapter.sha256, weight=weight)


def _served(place: dict[str, str], release: Release, routes: list[serving.Route], step: str) -> serving.Served:
    name, schema = release.served_model_name, release.output_schema
    return serving.Served(**place, name=name, routes=routes, step=step, json_schema=schema)
