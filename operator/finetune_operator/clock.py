"""What time it is: by the API server, whose clock stamps every object and condition that a decision compares with.

A machine's own clock may be wrong, and may jump: by a time server, an administrator, a virtual machine that slept. No deadline,
pause or time to live may end by that (docs/adr/0028-the-api-servers-clock.md).
"""

import datetime
import email.utils
import time
from collections.abc import Callable

AGREES = 2.0
"""Seconds by which an answer may be behind: its Date is cut to seconds, and it was on its way."""


class Clock:
    """The API server's clock, told by the Date of its answers, and carried on between them by this machine's monotonic one."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._ahead: float | None = None
        """Seconds since 1970 on the API server's clock, less those of the monotonic one."""

    def heard(self, date: str | None) -> None:
        """An answer came just now, with this Date header."""
        try:
            said = email.utils.parsedate_to_datetime(date or "").timestamp() - self._monotonic()
        except ValueError:
            return
        # The latest that agrees is the nearest: each Date is a lower bound.
        if self._ahead is None or said > self._ahead or said < self._ahead - AGREES:
            self._ahead = said

    def now(self) -> datetime.datetime:
        """In UTC; by this machine until the API server has answered."""
        if self._ahead is None:
            return datetime.datetime.now(datetime.UTC)
        return datetime.datetime.fromtimestamp(self._ahead + self._monotonic(), datetime.UTC)
