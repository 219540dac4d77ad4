"""The API server's time, since its clock stamps every object and condition that a decision compares with.

A node's own clock may be wrong, and may jump: because of a time server, an administrator, a suspended virtual machine. No
deadline, pause or time to live may depend on that (docs/adr/0028-the-api-servers-clock.md).
"""

import datetime
import email.utils
import time
from collections.abc import Callable

AGREES = 2.0
"""Seconds by which a response may be behind: its Date is truncated to seconds, and it took time to arrive."""


class Clock:
    """The API server's clock, estimated from the Date of its responses and, between them, from the local monotonic clock."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._ahead: float | None = None
        """Seconds since 1970 on the API server's clock minus those of the monotonic clock."""

    def observe(self, date: str | None) -> None:
        """A response with this Date header has just arrived."""
        try:
            offset = email.utils.parsedate_to_datetime(date or "").timestamp() - self._monotonic()
        except ValueError:
            return
        # The latest consistent one is the closest: each Date is a lower bound.
        if self._ahead is None or offset > self._ahead or offset < self._ahead - AGREES:
            self._ahead = offset

    def now(self) -> datetime.datetime:
        """In UTC; by the local clock until the API server has answered."""
        if self._ahead is None:
            return datetime.datetime.now(datetime.UTC)
        return datetime.datetime.fromtimestamp(self._ahead + self._monotonic(), datetime.UTC)
