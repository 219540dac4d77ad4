"""The traffic of servers of a job's own: in a step of a rollout, and whether there is any where they may sleep. Read from vLLM's
metrics by IP address, and put into the cache.

    cache: ready pods of both releases -> those that are due -> GET http://ADDRESS:8000/metrics -> what was added since the pod's
    first answer in this step -> cache.counted

As with the state of pools (`poolstates`), at most READS requests per second are sent, and a pod is not trusted: its answer is
limited in size and time. What was counted before a pod's first answer in the step (its verification, for example) is not
compared; so a new leader counts from there again.
"""

import asyncio
import bisect
import collections
import dataclasses
import datetime
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import aiohttp
from prometheus_client import parser

from finetune_api import run, serving
from finetune_operator import cache, progress
from finetune_operator.observe import members, pools, projections, shared

READS = 10
"""Per second, for the whole operator."""
PAUSE = 5.0
"""Seconds between two reads of a pod."""
TICK = 0.5
PATH = "/metrics"
BYTES = 4 << 20
MOST = 1e12
"""A count above it is none."""

FINISHED, ANSWERED = "vllm:request_success_total", "http_requests_total"
SECONDS, FIRST_TOKEN = "vllm:e2e_request_latency_seconds_bucket", "vllm:time_to_first_token_seconds_bucket"
UNDER_WAY = ("vllm:num_requests_running", "vllm:num_requests_waiting")
NAMES = (FINISHED, ANSWERED, SECONDS, FIRST_TOKEN, *UNDER_WAY)

Key = tuple[str, str]
"""uid of the FineTuneJob, name of the pod."""
Buckets = Mapping[float, float]
"""Upper bound in seconds -> values up to it."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a server has counted since it started. `finished`: by reason; `failed`: answers with 5xx on /v1; `under_way`: requests
    that have no answer yet."""

    finished: Mapping[str, float] = dataclasses.field(default_factory=dict)
    failed: float = 0.0
    under_way: float = 0.0
    seconds: Buckets = dataclasses.field(default_factory=dict)
    first_token: Buckets = dataclasses.field(default_factory=dict)

    @property
    def total(self) -> float:
        return sum(self.finished.values()) + self.failed

    def since(self, before: "Counts") -> "Counts":
        """What was added; everything, if the server has started again."""
        if self.total < before.total:
            return self
        return Counts(
            _less(self.finished, before.finished),
            max(self.failed - before.failed, 0.0),
            self.under_way,
            _less(self.seconds, before.seconds),
            _less(self.first_token, before.first_token),
        )


def _less(now: Mapping[Any, float], before: Mapping[Any, float]) -> dict[Any, float]:
    return {key: max(count - before.get(key, 0.0), 0.0) for key, count in now.items()}


class Asked:
    """When clients last asked the servers of jobs that may sleep (deployment.idle): requests are under way, or more have ended
    than at the last look. One that is read for the first time, as after a start of the operator, counts as asked just now."""

    def __init__(
        self,
        facts: cache.Cache,
        *,
        port: int = run.SERVER_PORT,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self._facts, self._port, self._now = facts, port, now
        self._rounds = progress.Rounds(int(READS * TICK), monotonic)
        self._last: dict[Key, tuple[float, datetime.datetime]] = {}
        """How many requests had ended at the last look, and when clients last asked."""

    async def run(self) -> None:
        """Read until cancelled."""
        async with progress.session() as http, asyncio.TaskGroup() as reads:
            while True:
                for key, pod in self.due():
                    reads.create_task(self.read(http, key, pod))
                await asyncio.sleep(TICK)

    def due(self) -> list[tuple[Key, projections.Pod]]:
        """The pods to read now."""
        running = self._facts.sleepers()
        self._last = {key: last for key, last in self._last.items() if key in running}
        return [(key, running[key]) for key in self._rounds.next(running)]

    async def read(self, http: aiohttp.ClientSession, key: Key, pod: projections.Pod) -> None:
        """Read a pod once, and note when it was asked."""
        before = self._facts.pool_states.get(key[0], {}).get(key[1], pools.Reading())
        began = self._now()
        try:
            text = await progress.get(http, progress.url(pod.address, self._port, PATH), BYTES)
            found = pools.Reading(last_request=self._asked(key, counts(text or b"")), read_at=began)
        except progress.Unread as unread:
            found = before.failed(f"{pod.address}: {unread}", self._now())
        except ValueError as error:
            found = before.failed(f"{pod.address}: not metrics: {str(error)[:100]}", self._now())
        self._rounds.over(key, PAUSE)
        self._facts.put_pool_state(*key, found)

    def _asked(self, key: Key, seen: Counts) -> datetime.datetime:
        before, asked = self._last.get(key, (None, self._now()))
        if seen.under_way or seen.total != before:
            asked = self._now()
        self._last[key] = (seen.total, asked)
        return asked


class Reader:
    """Reads for as long as `run` does."""

    def __init__(
        self,
        facts: cache.Cache,
        *,
        port: int = run.SERVER_PORT,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self._facts, self._port, self._now = facts, port, now
        self._rounds = progress.Rounds(int(READS * TICK), monotonic)
        self._first: dict[Key, tuple[str, datetime.datetime, Counts]] = {}
        """The step, when the pod was first read in it, and what it had counted by then."""

    async def run(self) -> None:
        """Read until cancelled."""
        async with progress.session() as http, asyncio.TaskGroup() as reads:
            while True:
                for key, pod, compared in self.due():
                    reads.create_task(self.read(http, key, pod, compared))
                await asyncio.sleep(TICK)

    def due(self) -> list[tuple[Key, projections.Pod, members.Compared]]:
        """The pods to read now."""
        running = self._facts.compared_pods()
        self._first = {key: first for key, first in self._first.items() if key in running}
        return [(key, *running[key]) for key in self._rounds.next(running)]

    async def read(
        self, http: aiohttp.ClientSession, key: Key, pod: projections.Pod, compared: members.Compared
    ) -> None:
        """Read a pod once, and note what it has counted in this step; the last answer stays if it gives none."""
        before = self._facts.counted.get(key[0], {}).get(key[1], shared.Counted())
        try:
            text = await progress.get(http, progress.url(pod.address, self._port, PATH), BYTES)
            found = shared.Counted(self._traffic(key, pod, compared, counts(text or b"")))
        except progress.Unread as unread:
            found = shared.Counted(before.traffic, f"{pod.address}: {unread}")
        except ValueError as error:
            found = shared.Counted(before.traffic, f"{pod.address}: not metrics: {str(error)[:100]}")
        self._rounds.over(key, PAUSE)
        self._facts.put_counted(*key, found)

    def _traffic(self, key: Key, pod: projections.Pod, compared: members.Compared, seen: Counts) -> serving.Traffic:
        step, since, before = self._first.get(key, ("", self._now(), seen))
        if step != compared.step:
            since, before = self._now(), seen
        elif seen.total < before.total:
            before = Counts()
        self._first[key] = (compared.step, since, before)
        added = seen.since(before)
        finished = {reason: int(count) for reason, count in added.finished.items()}
        abandoned = finished.pop("abort", 0)
        errors = max(finished.pop("error", 0), int(added.failed))
        return serving.Traffic(
            namespace="",
            job=compared.job,
            name="",
            revision=dict(compared.revisions)[pod.parent],
            step=compared.step,
            since=since,
            requests=sum(finished.values()) + errors + abandoned,
            errors=errors,
            abandoned=abandoned,
            cut=finished.get("length", 0),
            seconds=serving.Histogram(counts=rebinned(added.seconds)),
            first_token=serving.Histogram(counts=rebinned(added.first_token)),
        )


def counts(text: bytes) -> Counts:
    """What vLLM has counted, from its metrics in Prometheus' text format. Raises ValueError."""
    finished, failed, under_way = collections.defaultdict[str, float](float), 0.0, 0.0
    buckets = {name: collections.defaultdict[float, float](float) for name in (SECONDS, FIRST_TOKEN)}
    found = False
    for name, labels, value in _samples(text):
        if name == FINISHED:
            found = True
            finished[labels.get("finished_reason", "")] += value
        elif name in UNDER_WAY:
            under_way += value
        elif name in buckets:
            buckets[name][float(labels.get("le", "nan"))] += value
        elif labels.get("handler", "").startswith("/v1/") and labels.get("status", "").startswith("5"):
            failed += value
    if not found:
        raise ValueError(f"no {FINISHED}, which vLLM has")
    return Counts(finished, failed, under_way, buckets[SECONDS], buckets[FIRST_TOKEN])


def _samples(text: bytes) -> Iterator[tuple[str, Mapping[str, str], float]]:
    lines = [line for line in text.decode(errors="replace").splitlines() if line.startswith(NAMES)]
    for family in parser.text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            if sample.name in NAMES and 0 <= sample.value <= MOST:
                yield sample.name, sample.labels, sample.value


def rebinned(buckets: Buckets) -> list[int]:
    """The counts by the bounds of the gateways' histograms; within one of vLLM's intervals, equally often at each ratio."""
    bounds = sorted(bound for bound in buckets if 0 < bound < math.inf)
    if not bounds:
        return []
    total = max(buckets.values())
    edges = [bounds[0] / 2, *bounds, bounds[-1] * 2]
    below = [0.0, *(buckets[bound] for bound in bounds), total]
    up_to = [0, *(math.floor(_at(math.log(bound), edges, below) + 1e-9) for bound in serving.BOUNDS), math.floor(total)]
    return [max(high - low, 0) for low, high in itertools.pairwise(up_to)]


def _at(place: float, edges: list[float], below: list[float]) -> float:
    """The count below a bound, given as its logarithm."""
    after = bisect.bisect_right(edges, math.exp(place))
    if after == 0:
        return 0.0
    if after == len(edges):
        return below[-1]
    low, high = math.log(edges[after - 1]), math.log(edges[after])
    return below[after - 1] + (below[after] - below[after - 1]) * (place - low) / (high - low)
