"""Whether the servers of a ServingPool (spec.idle) or of one job (deployment.idle) sleep, and where their clients' Service leads.
Pure.

    awake ── no request for idle.after, no job needs the servers ──> asleep: the Service leads to the activator
      ^                                                                        │ SETTLE later, every pod was read: nobody asked
      │                                                                        v
      └── a request at the activator, or a job that needs the servers ── asleep: no servers

Whenever no server is ready, the Service leads to the activator, also when the pool is created or its servers crash.
The memory is asleepSince in the status; when clients asked is what the pods report.
"""

import dataclasses
import datetime
from collections.abc import Sequence

from finetune_api import deployment
from finetune_operator.observe import pools

SETTLE = datetime.timedelta(seconds=15)
"""Until the servers end: every node knows the Service's new pods by then, and the servers were read once more."""

AGAIN = 2.0
"""Seconds until the next look, while servers wait for readings to end."""

UNREAD = datetime.timedelta(seconds=60)
"""For how long a pod cannot be read until its servers do not end, and the condition Ready says so."""

JITTER = datetime.timedelta(seconds=5)
"""Between two computations of the same time: a pod reports how long ago it was, and its answer takes up to two seconds."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """What is decided by. servers, activators: the readings of their ready pods. settled: all servers that were requested are
    ready, and none is being replaced. ended: no servers are requested already. needs: why a job needs the servers now."""

    idle: deployment.Idle | None
    asleep_since: datetime.datetime | None
    now: datetime.datetime
    servers: Sequence[pools.Reading]
    activators: Sequence[pools.Reading]
    settled: bool
    ended: bool
    needs: str
    etag: str


@dataclasses.dataclass(frozen=True)
class Found:
    """asleep_since: None while it is awake. ends: whether there are to be no servers. activator: whether the Service leads there.
    text: that they sleep or wake, and why. again: when to look again, in seconds; None: no need."""

    asleep_since: datetime.datetime | None = None
    ends: bool = False
    activator: bool = False
    text: str = ""
    again: float | None = None


def find(seen: Seen) -> Found:
    if seen.idle is None:
        return Found()
    if seen.asleep_since is not None:
        return _asleep(seen, seen.idle, seen.asleep_since)
    due = _due(seen, seen.idle)
    if due is None or seen.now < due:
        again = None if due is None else (due - seen.now).total_seconds()
        return Found(activator=bool(seen.activators) and not seen.servers, again=again)
    return _asleep(seen, seen.idle, seen.now)


def _asleep(seen: Seen, idle: deployment.Idle, since: datetime.datetime) -> Found:
    if seen.needs:
        return _awake(seen, seen.needs)
    before = since - _after(idle) + JITTER
    if _asked(seen.activators, since) or _asked(seen.servers, before):
        return _awake(seen, "a client asks")
    if not (seen.ended or seen.activators):
        return _awake(seen, "no pod takes requests in its place")
    if not seen.ended and any(one.failing_since and seen.now - one.failing_since >= UNREAD for one in seen.servers):
        return _awake(seen, "when clients asked cannot be read")
    text = f"asleep since {since:%Y-%m-%d %H:%M:%S} UTC, after {idle.after} without a request"
    if seen.ended or _nobody_asked(seen, since):
        return Found(since, True, True, text)
    return Found(since, False, True, text, max((since + SETTLE - seen.now).total_seconds(), AGAIN))


def _nobody_asked(seen: Seen, since: datetime.datetime) -> bool:
    """Whether every pod was read late enough to know: a server once requests went to the activator, that once it had all."""
    after = [*((one, since) for one in seen.servers), *((one, since + SETTLE) for one in seen.activators)]
    return seen.now >= since + SETTLE and all(
        one.read_at is not None and one.read_at >= due and not one.problem for one, due in after
    )


def _after(idle: deployment.Idle) -> datetime.timedelta:
    return datetime.timedelta(seconds=deployment.seconds(idle.after))


def _asked(readings: Sequence[pools.Reading], since: datetime.datetime) -> bool:
    return any(one.last_request is not None and one.last_request > since and not one.problem for one in readings)


def _awake(seen: Seen, why: str) -> Found:
    return Found(activator=bool(seen.activators) and not seen.servers, text=f"wakes: {why}")


def _due(seen: Seen, idle: deployment.Idle) -> datetime.datetime | None:
    """When the servers have been idle for long enough; None where nobody can say, or somebody needs them."""
    last = [one.last_request for one in seen.servers]
    if seen.needs or not seen.settled or not last or any(one.problem for one in seen.servers):
        return None
    if not any(one.state is not None and one.state.etag == seen.etag and not one.problem for one in seen.activators):
        return None
    known = [one for one in last if one is not None]
    if len(known) < len(last):
        return None
    return max(known) + _after(idle)
