"""The states of ServingPools' pods, and of jobs' activators: read from their gateways by IP address, and put into the cache.

    cache: running pods -> those that are due -> GET http://ADDRESS:8002/state -> cache.pool_states

As with the progress of trainings (`progress`), at most READS requests per second are sent to pools' pods, and as many to jobs'
activators, and a pod is not trusted: its answer is limited in size and time, and is shown and compared, never executed.
"""

import asyncio
import datetime
import time
from collections.abc import Callable

import aiohttp
import pydantic

from finetune_api import serving
from finetune_operator import cache, progress
from finetune_operator.observe import pools, projections

READS = 10
"""Per second, for the whole operator: of pools' pods, and as many of jobs' activators."""
PAUSE = 5.0
"""Seconds between two reads of a pod."""
ACTIVATOR_PAUSE = 1.0
"""The same for an activator: a client may wait."""
TICK = 0.5
WINDOW = 60.0
"""Seconds over which requests per second are averaged."""
PATH = "/state"
LONGEST = 365 * 86400.0
"""Seconds since a request; more is not told apart."""

Key = tuple[str, str]
"""uid of the ServingPool or FineTuneJob, name of the pod."""


class Reader:
    """Reads for as long as `run` does."""

    def __init__(
        self,
        facts: cache.Cache,
        *,
        port: int = serving.DELIVERY_PORT,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self._facts, self._port, self._monotonic, self._now = facts, port, monotonic, now
        # many jobs that may sleep do not delay the deliveries of pools
        self._of_pools, self._of_jobs = (progress.Rounds(int(READS * TICK), monotonic) for _ in range(2))
        self._counts: dict[Key, list[tuple[float, int]]] = {}
        """When a pod was read, and the requests that it had answered."""

    async def run(self) -> None:
        """Read until cancelled."""
        async with progress.session() as http, asyncio.TaskGroup() as reads:
            while True:
                for key, pod in self.due():
                    reads.create_task(self.read(http, key, pod))
                await asyncio.sleep(TICK)

    def due(self) -> list[tuple[Key, projections.Pod]]:
        """The pods to read now; each is then under way."""
        pods, activators = self._facts.pods_of_pools(), self._facts.activators()
        running = {**pods, **activators}
        self._counts = {key: counts for key, counts in self._counts.items() if key in running}
        chosen = [*self._of_pools.next(pods), *self._of_jobs.next(activators)]
        return [(key, running[key]) for key in chosen]

    async def read(self, http: aiohttp.ClientSession, key: Key, pod: projections.Pod) -> None:
        """Read a pod once, and note its answer; the last one stays if it gives none."""
        before = self._facts.pool_states.get(key[0], {}).get(key[1], pools.Reading())
        began = self._now()
        try:
            text = await progress.get(http, progress.url(pod.address, self._port, PATH), serving.STATE_BYTES)
            state = serving.State.model_validate_json(text or b"", extra="ignore")
        except progress.Unread as unread:
            found = before.failed(f"{pod.address}: {unread}", self._now())
        except pydantic.ValidationError as error:
            found = before.failed(f"{pod.address}: not a state: {error.errors()[0]['msg'][:100]}", self._now())
        else:
            found = pools.Reading(state, self._rate(key, state), last_request=self._last(state), read_at=began)
        rounds = self._of_pools if key[0] in self._facts.pools else self._of_jobs
        rounds.over(key, ACTIVATOR_PAUSE if pod.activator else PAUSE)
        self._facts.put_pool_state(*key, found)

    def _last(self, state: serving.State) -> datetime.datetime | None:
        """When a client's last request was; at most LONGEST ago, whatever a pod reports."""
        if state.idle_seconds is None:
            return None
        return self._now() - datetime.timedelta(seconds=min(state.idle_seconds, LONGEST))

    def _rate(self, key: Key, state: serving.State) -> float:
        """Requests per second since WINDOW seconds ago, by the counts read since; counts that fell began again."""
        now = self._monotonic()
        total = state.requests if state.requests is not None else sum(max(one.requests, 0) for one in state.traffic)
        counts = [one for one in self._counts.get(key, []) if now - one[0] <= WINDOW]
        if counts and counts[-1][1] > total:
            counts = []
        self._counts[key] = [*counts, (now, total)]
        first, at_first = self._counts[key][0]
        return max(total - at_first, 0) / (now - first) if now > first else 0.0
