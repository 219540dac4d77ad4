"""Progress of trainings: read from their pods by IP address, a few at a time, and put into the cache, which triggers a
reconcile.

    cache.reporting -> pods that are due, longest wait first -> GET http://ADDRESS:9400/progress -> cache.readings

The operator sends at most READS requests per second, however many trainings run: with more trainings it reads each less
often. A pod is not trusted: its response is limited in size and time, redirects and proxies are not used, and a report counts
only for its own job.
"""

import asyncio
import dataclasses
import ipaddress
import logging
import math
import time
from collections.abc import Callable, Iterable

import aiohttp
import pydantic

from finetune_api import outcome, run
from finetune_operator import cache
from finetune_operator.observe import projections

LOG = logging.getLogger(__name__)
READS = 20
"""Per second, for the whole operator."""
TICK = 0.5
DEADLINE = 2.0
LONGEST_PAUSE = 60.0
"""Seconds between two reads of a pod that does not answer."""
PATIENCE = 60.0
"""Seconds without a response after which the job's status says so; processes take a while to start."""


class Unread(Exception):
    """A pod did not respond; `args[0]` is what was seen."""


class NoReport(Unread):
    """A pod's process responded, but not with a report: it belongs to another release."""


@dataclasses.dataclass
class Turn:
    """When a pod is read next, and its failures so far; times by the monotonic clock."""

    due: float = 0.0
    failures: int = 0
    failing_since: float = 0.0


class Rounds:
    """Which pods to read now, for readers that treat those without an answer like others: at most `most` in a look, those that
    wait longest first."""

    def __init__(self, most: int, monotonic: Callable[[], float]) -> None:
        self._most, self._monotonic = most, monotonic
        self._due: dict[tuple[str, str], float] = {}

    def next(self, running: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those to read now; each is then under way."""
        now = self._monotonic()
        self._due = {key: self._due.get(key, 0.0) for key in running}
        chosen = [key for _, key in sorted((due, key) for key, due in self._due.items() if due <= now)][: self._most]
        self._due |= dict.fromkeys(chosen, math.inf)
        return chosen

    def over(self, key: tuple[str, str], pause: float) -> None:
        """It was read, and is due again after so many seconds."""
        self._due[key] = self._monotonic() + pause


class Reader:
    """Reads for as long as `run` does. `pause`: seconds between two reads of one pod that answers."""

    def __init__(
        self,
        facts: cache.Cache,
        pause: float,
        *,
        port: int = run.METRICS_PORT,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._facts, self._pause, self._port, self._monotonic = facts, pause, port, monotonic
        self._turns: dict[tuple[str, str], Turn] = {}
        """(uid of the FineTuneJob, pod)"""

    async def run(self) -> None:
        """Read until cancelled."""
        async with session() as http, asyncio.TaskGroup() as reads:
            while True:
                for uid, pod in self.due():
                    reads.create_task(self.read(http, uid, pod))
                await asyncio.sleep(TICK)

    def due(self) -> list[tuple[str, projections.Pod]]:
        """The pods to read now, at most a tick's share of them; each is then under way."""
        reporting, now = self._facts.reporting, self._monotonic()
        self._turns = {key: turn for key, turn in self._turns.items() if is_in(reporting, key)}
        waiting = [(self._turns.setdefault((uid, pod.name), Turn()).due, uid) for uid, pod in reporting.items()]
        chosen = [uid for due, uid in sorted(waiting) if due <= now][: int(READS * TICK)]
        for uid in chosen:
            self._turns[uid, reporting[uid].name].due = float("inf")
        return [(uid, reporting[uid]) for uid in chosen]

    async def read(self, http: aiohttp.ClientSession, uid: str, pod: projections.Pod) -> None:
        """Read a pod once, and note its answer."""
        turn, known = self._turns[uid, pod.name], self._facts.readings.get(uid)
        before = known if known is not None and known.pod == pod.name else projections.Reading(pod.name)
        try:
            report, problem = await ask(http, pod.address, self._port) or before.report, ""
        except Unread as unread:
            # One message, whatever is seen later: the status is not to change with every attempt.
            new = self._failed(turn, pod, unread)
            report, problem = before.report, before.problem or new
        else:
            turn.failures, turn.due = 0, self._monotonic() + self._pause
        self._facts.put_reading(uid, projections.Reading(pod.name, report, problem))

    def _failed(self, turn: Turn, pod: projections.Pod, seen: Unread) -> str:
        """The message for the status; empty until it has lasted."""
        now = self._monotonic()
        turn.failing_since = turn.failing_since if turn.failures else now
        turn.failures += 1
        turn.due = now + min(max(self._pause, 1.0) * 2.0 ** min(turn.failures, 16), LONGEST_PAUSE)
        if now - turn.failing_since < PATIENCE:
            return ""
        if isinstance(seen, NoReport):
            return f"it reports no progress ({pod.address}: {seen}); everything else works without it"
        return (
            f"its progress cannot be read at {pod.address} ({seen}): allow the operator's pods to reach TCP port "
            f"{self._port} of this pod (NetworkPolicy, service mesh); everything else works without it"
        )


def is_in(reporting: dict[str, projections.Pod], key: tuple[str, str]) -> bool:
    return key[0] in reporting and reporting[key[0]].name == key[1]


def session() -> aiohttp.ClientSession:
    """The only HTTP client with which the operator calls pods."""
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=DEADLINE),
        connector=aiohttp.TCPConnector(limit=int(READS * DEADLINE), force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        skip_auto_headers=["Accept-Encoding", "User-Agent"],
    )


def url(address: str, port: int, path: str = run.PROGRESS_PATH) -> str:
    """Raises Unread for an address that cannot be a pod's."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        raise Unread(f"{address[:60]!r} is not an IP address") from None
    if found.is_link_local or found.is_multicast or found.is_unspecified:
        raise Unread(f"{found} is not a pod's address")
    host = f"[{found}]" if found.version == 6 else str(found)
    return f"http://{host}:{port}{path}"


async def ask(http: aiohttp.ClientSession, address: str, port: int) -> outcome.ProgressReport | None:
    """The pod's report; None as long as it has none. Raises Unread."""
    text = await get(http, url(address, port), run.PROGRESS_BYTES)
    try:
        return None if text is None else outcome.ProgressReport.model_validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        raise NoReport(f"not a progress report: {error.errors()[0]['msg'][:100]}") from None


async def get(http: aiohttp.ClientSession, where: str, most: int) -> bytes | None:
    """A pod's answer of at most so many bytes; None for 204. Raises Unread."""
    try:
        async with http.get(where, allow_redirects=False) as answer:
            if answer.status == 204:
                return None
            if answer.status != 200:
                raise Unread(f"HTTP {answer.status}, expected 200")
            text = bytearray()
            async for part in answer.content.iter_any():
                text += part
                if len(text) > most:
                    raise Unread(f"more than {most} bytes")
        return bytes(text)
    except TimeoutError:
        raise Unread(f"no answer within {DEADLINE:g} s") from None
    except Unread:
        raise
    except Exception as error:  # any error of a response affects only this response
        raise Unread(" ".join(str(error).split())[:200] or type(error).__name__) from None
