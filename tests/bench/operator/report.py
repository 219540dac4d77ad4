"""operator-runs.json (what was measured), operator.json (rows to compare) and operator.md (the page). Pure but for the files."""

import dataclasses
import json
import pathlib

from tests.bench.operator import scenarios, stages

from toolbox import say

RUNS, DATA, PAGE = "operator-runs.json", "operator.json", "operator.md"
REST = 20.0
"""Seconds over which rest is measured."""


@dataclasses.dataclass(frozen=True)
class Found:
    """One figure of one side."""

    scenario: str
    jobs: int
    figure: str
    side: str
    value: float


@dataclasses.dataclass(frozen=True)
class Beside:
    """Another side's value of the same figure. `ratio`: ours by it; None where it is 0."""

    value: float
    ratio: float | None


@dataclasses.dataclass(frozen=True)
class Row:
    """A figure of ours, and of each other side that has it."""

    scenario: str
    jobs: int
    figure: str
    ours: float
    others: dict[str, Beside]


@dataclasses.dataclass
class Results:
    """All that one command measured. `machine` and `versions`: facts by name. `former`: the revision of that side, if any."""

    machine: dict[str, str]
    versions: dict[str, str]
    former: str
    minutes: dict[str, float] = dataclasses.field(default_factory=dict)
    """Scenario and side, as in `about` -> how long it took."""
    found: list[Found] = dataclasses.field(default_factory=list)
    remarks: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """The same -> what did not go well."""

    def put(self, scenario: str, side: str, found: list[Found], remarks: list[str], minutes: float) -> None:
        """What one side did in one scenario, in place of what was known of that."""
        self.found = [one for one in self.found if (one.scenario, one.side) != (scenario, side)] + found
        self.found.sort(key=lambda one: list(scenarios.BY_NAME).index(one.scenario))
        self.minutes[about(scenario, side)] = minutes
        self.remarks[about(scenario, side)] = remarks

    def floor(self) -> float:
        """Jobs a second that the floor began, of 1,000 at once."""
        sought = ("burst-1000", scenarios.FLOOR, scenarios.RATE.name)
        for one in self.found:
            if (one.scenario, one.side, one.figure) == sought:
                return one.value
        raise say.Problem("it needs the floor's rate: measure burst-1000 of the floor first")

    def remark(self, scenario: str, side: str, text: str) -> None:
        self.remarks.setdefault(about(scenario, side), []).append(text)


def about(scenario: str, side: str) -> str:
    return f"{scenario}, {side}"


def rows(results: Results) -> list[Row]:
    """In the order in which they were measured."""
    values = {(one.scenario, one.figure, one.side): one.value for one in results.found}
    made = []
    for one in results.found:
        if one.side != scenarios.OURS:
            continue
        others = {
            side: Beside(_rounded(value), round(one.value / value, 3) if value else None)
            for side in scenarios.SIDES
            if side != scenarios.OURS and (value := values.get((one.scenario, one.figure, side))) is not None
        }
        made.append(Row(one.scenario, one.jobs, one.figure, _rounded(one.value), others))
    return made


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def write(results: Results, folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RUNS).write_text(json.dumps(dataclasses.asdict(results), indent=1) + "\n")
    (folder / DATA).write_text(data(results))
    (folder / PAGE).write_text(page(results))


def data(results: Results) -> str:
    return json.dumps([dataclasses.asdict(row) for row in rows(results)], indent=1) + "\n"


def read(folder: pathlib.Path) -> Results:
    document = json.loads((folder / RUNS).read_text())
    found = [Found(**one) for one in document.pop("found")]
    return Results(**document, found=found)


def page(results: Results) -> str:
    made = rows(results)
    lines = [
        "# The operator at scale",
        "",
        "Made by `make bench-operator`; do not edit. What was measured is in [operator-runs.json](operator-runs.json), the rows "
        "of the tables are in [operator.json](operator.json).",
        "",
        f"- Machine: {', '.join(results.machine.values())}; the API server, etcd, the controllers and the driver share it",
        f"- {', '.join(f'{name} {version}' for name, version in results.versions.items())}",
        *([f"- The side *former* is this operator at {results.former}"] if results.former else []),
        f"- {sum(results.minutes.values()):.0f} minutes in all; a part is measured again by "
        '`make bench-operator ARGS="--scenario burst-100"`',
        "",
    ]
    for name in dict.fromkeys(row.scenario for row in made):
        lines += _table(results, name, [row for row in made if row.scenario == name])
    lines += ["## Goals", "", "| scenario | figure | goal | reached |", "|---|---|---|---|"]
    lines += [_goal(made, goal) for goal in scenarios.GOALS]
    lines += ["", *_remarks(results), *_method(results)]
    return "\n".join(lines)


def _table(results: Results, name: str, made: list[Row]) -> list[str]:
    sides = [side for side in scenarios.SIDES if any(side in row.others for row in made)]
    head = "".join(f" {side} | ours by it |" for side in sides)
    lines = [f"## {scenarios.BY_NAME[name].title}", "", f"| figure | unit | {scenarios.OURS} |{head}"]
    lines += ["|---|---|---|" + "---|---|" * len(sides)]
    for row in made:
        figure = scenarios.FIGURES[row.figure]
        line = f"| {row.figure} | {figure.unit} | {row.ours:,.{figure.digits}f} |"
        for side in sides:
            beside = row.others.get(side)
            line += " | |" if beside is None else f" {beside.value:,.{figure.digits}f} | {_times(beside.ratio)} |"
        lines.append(line)
    return [*lines, ""]


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"**{ratio:.2g}x**"


def _goal(made: list[Row], goal: scenarios.Goal) -> str:
    row = next((row for row in made if (row.scenario, row.figure) == (goal.scenario, goal.figure.name)), None)
    beside = row.others.get(goal.to) if row is not None and goal.to else None
    value = beside.ratio if beside is not None else row.ours if row is not None and goal.to is None else None
    how = "at least" if goal.figure.more else "at most"
    unit = f"times that of {goal.to}" if goal.to else goal.figure.unit
    verdict = "not measured"
    if value is not None:
        seen = f"{value:.2f}" if goal.to else f"{value:,.{goal.figure.digits}f}"
        verdict = f"{'yes' if goal.reached(value) else '**no**'}: {seen}"
    return f"| {goal.scenario} | {goal.figure.name} | {how} {goal.bound:g} {unit} | {verdict} |"


def _remarks(results: Results) -> list[str]:
    lines = [f"- {where}: {text}" for where, texts in results.remarks.items() for text in texts]
    return ["## What did not go well", "", *lines, ""] if lines else []


def _method(results: Results) -> list[str]:
    """What the words of the tables mean."""
    return [
        "## What was done",
        "",
        "Every scenario has a fresh control plane (etcd, kube-apiserver, kube-controller-manager) for each side. The operator "
        "runs as a process with the ServiceAccount, Role and settings of its chart, the peers' controllers with those of their "
        "manifests; each with its own limit of requests a second. The driver creates the jobs over 32 connections.",
        "",
        "- *Begun*: our job has its first Job, whose pod kube-controller-manager makes on the same two cores; so has a TrainJob "
        f"of {scenarios.PEER_JOBSET}, whose JobSet controller runs with its webhooks as its manifests install it. A TrainJob of "
        f"{scenarios.PEER} alone has its JobSet, its only child: no Job and no pod is made. The peer's own validating webhook is "
        "not there: it would cost it more.",
        "- *Floor*: a bare client, with the operator's own HTTP client, account and number of workers and nothing else of it, "
        "writes for each job what the operator wrote for one: the same status, Job and events, recorded on their way to the API "
        "server until the job had begun.",
        "- *Former*: an earlier revision of the operator, from a worktree of it, with its own chart and CRDs, in the same "
        "Python environment; its pods are played as its own benchmark plays them.",
        "- Unless it is said otherwise, neither scheduler nor kubelets are there while jobs begin. Those that live to their end "
        "do so afterwards: kube-scheduler places their pods on nodes that KWOK plays.",
        f"- KWOK starts each container at once and ends it after {stages.RUNS:g} s with exit code 0 and the termination message "
        "of a stage that went well (preflight, training, evaluation, verification), so that the operator runs every stage. "
        "No progress is reported meanwhile. After a burst pods wait for each other, and so do their ends: read the latencies of "
        "`lives-5` for those of a cluster that is not saturated.",
        "- Requests, status writes and times of creation are those of the API server's audit log; a pod's end is KWOK's write, "
        "a Job's end the Job controller's, which waits up to a second of its own; the status is as a client sees it that "
        "watches.",
        "- Memory is the largest resident set of the process (VmHWM), at rest the present one (VmRSS); CPU is its user and "
        f"system time; rest is measured over {REST:g} s.",
        "- Finished jobs are copies of one that lived, with its status; Jobs and pods are gone an hour after the end. They were "
        "made while no operator ran.",
        "- The rate at which jobs begin is bounded by the cores that all share: where the CPU figures of a burst times its rate "
        "come to as many seconds a second as there are cores, a faster operator would not help, only less work "
        "for the API server.",
        "- *Other programs of the machine* used what is said of them while jobs began: the more, the lower are all rates, and a "
        "ratio of rates is fair where both sides had as much of it. CPU per job depends less on it.",
        "- A restart: the operator ends by SIGTERM, a job is created, and a process starts, whose imports count. Handover and "
        "failover: a second replica stands by; the new job is created right after the signal.",
        "",
    ]
