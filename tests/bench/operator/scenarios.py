"""What is measured, by which names, and what is wanted of it. Pure."""

import dataclasses

OURS, FLOOR, FORMER = "finetune-operator", "floor", "former"
PEER, PEER_JOBSET = "Kubeflow Trainer", "Kubeflow Trainer + JobSet"
SIDES = (FLOOR, OURS, FORMER, PEER, PEER_JOBSET)
"""In the order in which they are measured."""


@dataclasses.dataclass(frozen=True)
class Scenario:
    """Jobs that come in one way. `rate`: jobs per second, None for all at once. `part`: instead, this part of the rate at which
    the floor began 1,000 at once in the same run, for STEADY seconds. `played`: scheduler and kubelets are there from the
    beginning; else they come when all jobs have begun. `lives`: whether our jobs, and the former ones, live to their end."""

    name: str
    title: str
    jobs: int
    rate: float | None = None
    part: float | None = None
    played: bool = False
    lives: bool = False
    serves: bool = False
    rests: bool = False
    """Whether the jobs were finished long ago: rest, restart, handover, failover."""
    sides: tuple[str, ...] = (OURS,)
    seconds: float = 120
    """After which the jobs' beginning is cut off."""

    def at(self, floor: float) -> "Scenario":
        """The scenario at its part of that many jobs a second."""
        assert self.part is not None, self
        rate = self.part * floor
        return dataclasses.replace(self, rate=rate, jobs=min(self.jobs, round(rate * STEADY)))


STEADY = 20.0
"""Seconds in which jobs come at a steady rate."""
ALL = (
    Scenario("burst-1000", "1,000 jobs at once", 1000, sides=SIDES, seconds=120),
    Scenario("steady", "0.7 of the floor's rate, for 20 seconds", 5000, part=0.7, sides=(FLOOR, OURS), seconds=60),
    Scenario(
        "lives-5", "5 jobs a second, for 20 seconds, to their end", 100, rate=5, played=True, lives=True, seconds=60
    ),
    Scenario(
        "served", "2 jobs a second, for 15 seconds, to a served model", 30, rate=2, played=True, lives=True, serves=True
    ),
    Scenario("burst-100", "100 jobs at once, to their end", 100, lives=True, sides=(OURS, FORMER), seconds=60),
    Scenario("finished-5000", "5,000 finished jobs", 5000, rests=True),
    Scenario("lives-1000", "1,000 jobs at once, to their end", 1000, lives=True, sides=(OURS, FORMER), seconds=120),
    Scenario("burst-5000", "5,000 jobs at once", 5000, sides=(FLOOR, OURS), seconds=240),
)
"""In the order in which they are measured: should the time be over, it is the last ones that lack."""
BY_NAME = {scenario.name: scenario for scenario in ALL}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number with its unit. `more`: whether more of it is better."""

    name: str
    unit: str
    digits: int = 1
    more: bool = False


CREATED = Figure("jobs created", "per second", 1, more=True)
RATE = Figure("jobs begun", "per second", 1, more=True)
WAIT_50 = Figure("from a job's creation to its first Job, p50", "s", 3)
WAIT_99 = Figure("from a job's creation to its first Job, p99", "s", 3)
REQUESTS = Figure("API requests until a job has begun", "per job")
STATUS = Figure("status writes until a job has begun", "per job")
MEMORY = Figure("memory, largest", "MB", 0)
CPU = Figure("CPU until a job has begun", "ms per job")
CPU_SERVER = Figure("CPU of the API server until a job has begun", "ms per job")
CPU_OTHERS = Figure("CPU of etcd, controller manager and driver meanwhile", "ms per job")
CPU_ALL = Figure("CPU of all of these together", "ms per job")
BUSY = Figure("CPU while jobs begin", "% of a core", 0)
ELSEWHERE = Figure("CPU of other programs of the machine meanwhile", "% of a core", 0)
LIVES = Figure("whole lives", "per second", more=True)
POD_50 = Figure("from a pod's end to the status, p50", "s", 2)
POD_99 = Figure("from a pod's end to the status, p99", "s", 2)
JOB_50 = Figure("from a Job's end to the status, p50", "s", 3)
JOB_99 = Figure("from a Job's end to the status, p99", "s", 3)
LIFE_REQUESTS = Figure("API requests in a life", "per job")
LIFE_WRITES = Figure("status writes in a life", "per job")
LIFE_CHILDREN = Figure("writes of children in a life", "per job")
LIFE_EVENTS = Figure("events in a life", "per job")
LIFE_CPU = Figure("CPU in a life", "ms per job")
LIFE_MEMORY = Figure("memory, largest, whole lives", "MB", 0)
REST_MEMORY = Figure("memory at rest, all jobs finished", "MB", 0)
REST_CPU = Figure("CPU at rest, all jobs finished", "% of a core")
RESTART = Figure("from a restart to the first Job of a job that waited", "s")
RESTART_ALL = Figure("from a restart to rest", "s")
RESTART_MEMORY = Figure("memory after a restart", "MB", 0)
HANDOVER = Figure("from the leader's SIGTERM to the first Job of a new job", "s")
FAILOVER = Figure("from the leader's SIGKILL to the first Job of a new job", "s")
FIGURES = {figure.name: figure for figure in globals().copy().values() if isinstance(figure, Figure)}


@dataclasses.dataclass(frozen=True)
class Goal:
    """At least, or at most, that much: of our figure itself, or of its ratio to another side's."""

    scenario: str
    figure: Figure
    bound: float
    to: str | None = None

    def reached(self, value: float) -> bool:
        return value >= self.bound if self.figure.more else value <= self.bound


GOALS = (
    Goal("burst-1000", RATE, 0.85, FLOOR),
    Goal("burst-1000", RATE, 1.7, FORMER),
    Goal("steady", WAIT_99, 0.5),
    Goal("burst-1000", REQUESTS, 4),
    Goal("lives-1000", LIFE_REQUESTS, 15),
    Goal("lives-5", LIFE_REQUESTS, 15),
    Goal("lives-5", LIFE_WRITES, 8),
    Goal("lives-1000", LIVES, 2, FORMER),
    Goal("lives-1000", JOB_99, 5),
    Goal("burst-1000", MEMORY, 2.5, PEER),
    Goal("finished-5000", REST_MEMORY, 250),
    Goal("finished-5000", REST_CPU, 5),
    Goal("finished-5000", RESTART, 25),
)
