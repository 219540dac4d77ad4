"""How often an object is written: whatever undoes the operator's writes, they never become a flood.

This is the last resort, in memory: what others change is left to them by `decide.drift` already. It helps against what removes
an object, or its annotations, again and again.
"""

import collections
import datetime
from collections.abc import Hashable

MOST = 6
"""Writes of one object within WITHIN."""
WITHIN = datetime.timedelta(seconds=60)
REMEMBERED = 1000
"""Objects, before those that were not written lately are forgotten."""


class Pace:
    """When each object was written last."""

    def __init__(self) -> None:
        self._times: dict[Hashable, collections.deque[datetime.datetime]] = {}

    def wait(self, place: Hashable, now: datetime.datetime) -> float:
        """Seconds until the object may be written again; 0: it may."""
        times = self._times.get(place) or collections.deque()
        if len(times) < MOST or now - times[0] >= WITHIN:
            return 0.0
        return (times[0] + WITHIN - now).total_seconds()

    def note(self, place: Hashable, now: datetime.datetime) -> None:
        """The object is written now."""
        if len(self._times) > REMEMBERED:
            self._times = {key: times for key, times in self._times.items() if now - times[-1] < WITHIN}
        self._times.setdefault(place, collections.deque(maxlen=MOST)).append(now)
