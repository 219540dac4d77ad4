"""What a FineTuneJob contributes to the index of a ServingPool: pure, from its status alone."""

import dataclasses
import json

import pydantic

from finetune_api import serving
from finetune_operator.observe import projections, records


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """The part of one job in one pool. `pool`: NAMESPACE/NAME."""

    pool: str
    models: tuple[serving.Served, ...] = ()
    adapters: tuple[serving.Held, ...] = ()


def members(raw: projections.Raw) -> tuple[Member, ...]:
    """The parts of a job in its pools; empty for a job without one, or whose records cannot be read.

    Deterministic: the same status gives the same parts, so that they can be compared.
    """
    meta, state = raw["metadata"], raw.get("status") or {}
    text = state.get("serving")
    if not text or '"pool"' not in text:
        return ()
    try:
        release = records.Release.model_validate(json.loads(text))
    except (pydantic.ValidationError, ValueError):
        return ()
    if release.pool is None:
        return ()
    place = {"namespace": meta["namespace"], "job": meta["name"]}
    route = serving.Route(revision=release.revision, sha256=release.adapter.sha256, weight=100)
    held = serving.Held(
        **place,
        revision=release.revision,
        sha256=release.adapter.sha256,
        rank=release.adapter.rank,
        bytes=release.adapter.bytes,
    )
    served = serving.Served(**place, name=release.served_model_name, routes=[route], step=release.name)
    return (Member(release.pool, (served,), (held,)),)
