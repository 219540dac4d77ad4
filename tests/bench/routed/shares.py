"""Which release answered, by the controller's own log, while the route had each of its weights. Pure."""

import dataclasses
import datetime
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

MARGIN = 4.0
"""Seconds after new weights that are not counted: the controller takes them after a moment."""

Weights = Mapping[str, int]
"""Release -> percent."""


@dataclasses.dataclass(frozen=True)
class Share:
    """What was seen while the route had these weights. `chance`: how likely shares this far from the weights are, if each
    request goes by them; of a single release, 1 if it had all of them."""

    weights: Weights
    seconds: float
    answers: Mapping[str, int]
    chance: float


def shares(
    changes: Sequence[tuple[float, Weights]], end: float, entries: Sequence[Mapping[str, Any]], pods: Mapping[str, str]
) -> list[Share]:
    """`changes`: when the route had new weights, in seconds since the epoch. `entries`: the controller's log.
    `pods`: address -> release."""
    found = []
    for (begun, weights), (over, _) in itertools.pairwise([*changes, (end, {})]):
        counts = dict.fromkeys(weights, 0)
        for entry in entries:
            if begun + MARGIN <= _time(entry) < over and entry.get("ServiceAddr"):
                release = pods.get(entry["ServiceAddr"].rpartition(":")[0], entry["ServiceAddr"])
                counts[release] = counts.get(release, 0) + 1
        found.append(Share(weights, over - begun, counts, _chance(weights, counts)))
    return found


def _chance(weights: Weights, counts: Mapping[str, int]) -> float:
    total = sum(counts.values())
    if set(counts) != set(weights):
        return 0.0
    least = min(weights, key=lambda name: weights[name])
    if not total:
        return 1.0
    return float(stats.binomtest(counts[least], total, weights[least] / 100).pvalue)


def _time(entry: Mapping[str, Any]) -> float:
    return datetime.datetime.fromisoformat(entry["StartUTC"]).timestamp()
