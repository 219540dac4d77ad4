"""What the API server was asked, from its audit log while it is written: who, what, when, and with what result."""

import collections
import dataclasses
import datetime
import json
import os
import pathlib
import re
from typing import BinaryIO

NAME = re.compile(r"[a-z]-\d{5}")
"""Names of the benchmark's jobs; those of their children begin with them."""
READS = {"get", "list", "watch"}


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One answered request. Times are seconds since the epoch, by the API server's clock."""

    user: str
    agent: str
    verb: str
    what: str
    """Resource, and subresource behind a slash."""
    name: str
    code: int
    received: float
    answered: float

    @property
    def job(self) -> str:
        """The benchmark's job that the name begins with; empty where it does not."""
        found = NAME.match(self.name)
        return found[0] if found else ""

    @property
    def writes(self) -> bool:
        return self.verb not in READS


def request(line: bytes) -> Request | None:
    """A line of the audit log; None when it is no answered request for a resource."""
    event = json.loads(line)
    ref = event.get("objectRef")
    if ref is None or event["stage"] != "ResponseComplete":
        return None
    what = "/".join(filter(None, (ref.get("resource", ""), ref.get("subresource", ""))))
    return Request(
        user=event["user"]["username"],
        agent=event.get("userAgent", ""),
        verb=event["verb"],
        what=what,
        name=ref.get("name", ""),
        code=event.get("responseStatus", {}).get("code", 0),
        received=_seconds(event["requestReceivedTimestamp"]),
        answered=_seconds(event["stageTimestamp"]),
    )


def _seconds(stamp: str) -> float:
    return datetime.datetime.fromisoformat(stamp).timestamp()


class Follower:
    """Reads an audit log from where it was left, over its rotations."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._rest = b""

    def read(self) -> list[Request]:
        """What was written since the last call."""
        found: list[Request] = []
        while True:
            if self._file is None:
                if not self._path.exists():
                    return found
                self._file = self._path.open("rb")
            whole = self._file.read()
            *lines, self._rest = (self._rest + whole).split(b"\n")
            found += [one for line in lines if (one := request(line)) is not None]
            if whole:
                continue
            if self._path.exists() and self._path.stat().st_ino != _inode(self._file):
                # The log was moved away to be continued under the same name: all that it had is read.
                self._file.close()
                self._file = None
                continue
            return found

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _inode(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_ino


@dataclasses.dataclass(frozen=True)
class Side:
    """Whose requests are counted: the controllers' users, their kind of job, and the child that a job is begun with."""

    users: frozenset[str]
    jobs: str
    child: str


class Ledger:
    """What one scenario asked of the API server."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.created: dict[str, float] = {}
        """Job -> when its creation was received."""
        self.begun: dict[str, float] = {}
        """Job -> when its first child of that kind was there."""
        self.pods_ended: dict[str, float] = {}
        """Stage Job -> when the kubelet's last word on its pod was there."""
        self.jobs_ended: dict[str, float] = {}
        """Stage Job -> when the Job controller's last word on it was there."""
        self.asked: collections.Counter[tuple[str, str]] = collections.Counter()
        """(verb, what) -> requests of the controllers."""
        self.refused: collections.Counter[tuple[str, str, int]] = collections.Counter()
        self.agents: collections.Counter[str] = collections.Counter()
        """Requests of everybody, by the program that asked."""

    def add(self, one: Request) -> None:
        side = self.side
        self.agents[one.agent.split("/")[0]] += 1
        if one.user in side.users:
            self.asked[one.verb, one.what] += 1
            if one.code >= 400:
                self.refused[one.verb, one.what, one.code] += 1
            if one.what == side.child and one.code == 201:
                self.begun.setdefault(one.job, one.answered)
        elif one.what == side.jobs and one.verb == "create" and one.code == 201:
            self.created.setdefault(one.name, one.received)
        elif one.what == "pods/status" and one.agent.startswith("kwok"):
            self.pods_ended[one.name.rpartition("-")[0]] = one.answered
        elif one.what == "jobs/status" and one.verb == "update":
            self.jobs_ended[one.name] = one.answered

    def waits(self) -> list[float]:
        """Seconds from a job's creation to its first child, of the jobs that have one."""
        return [self.begun[name] - at for name, at in self.created.items() if name in self.begun]

    def writes(self, what: str) -> int:
        """Requests of the controllers that wrote this resource."""
        return sum(n for (verb, where), n in self.asked.items() if where == what and verb not in READS)

    @property
    def children(self) -> int:
        """Writes of whatever a job consists of: not its own status, no event, no Lease."""
        other = {"events", "leases"}
        return sum(
            n for (verb, what), n in self.asked.items() if verb not in READS and "/" not in what and what not in other
        )

    @property
    def requests(self) -> int:
        """All requests of the controllers but those for a Lease."""
        return sum(n for (_, what), n in self.asked.items() if what != "leases")
