"""chaos-rounds.jsonl (what was seen, run after run) and chaos.md (the page made of it). Pure but for the files.

Three sorts of lines: a `run` (its beginning and its end), a `round` (one fault and what was wrong with the jobs that lived
through it), a `job` (one life).
"""

import collections
import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from chaos import fleet, rounds
from localcluster import binaries
from support import machine
from toolbox import say

ROUNDS, PAGE = "chaos-rounds.jsonl", "chaos.md"
CAUSES = {
    (
        "20261123-062137",
        "paused-44",
    ): "containerd died while it made the container of preflight; the kubelet made it once more "
    "and it ended well, but the operator read the end of the first one and tried again: a stage too many, nothing lost. "
    "Mended since; tests/flow/test_machines.py has it as `test_a_container_that_was_created_twice_ends_only_once`",
}
"""(Run, job) of a violation -> what was found to be its cause, and what became of it."""


def header(wanted: rounds.Plan) -> str:
    fields = {"run": wanted.run, "seed": wanted.seed, "asked": wanted.rounds, "size": wanted.size}
    facts = {"machine": machine.facts(), "kubernetes": binaries.version("k8s.io/kubernetes")}
    return rounds.line("run", {**fields, **facts})


def append(results: IO[str], one: rounds.Round) -> None:
    results.write(rounds.line("round", dataclasses.asdict(one)))


def append_lives(results: IO[str], run: str, lives: Iterable[fleet.Life]) -> None:
    for life in lives:
        seconds = round(life.ended - life.began, 1)
        wrong = [str(violation) for violation in life.violations]
        fields = {"job": life.job, "kind": life.kind, "seconds": seconds, "jobs": life.attempts, "violations": wrong}
        results.write(rounds.line("job", {"run": run, **fields}))


def finish(results: IO[str], wanted: rounds.Plan, seconds: float, left: tuple[str, ...]) -> None:
    results.write(rounds.line("end", {"run": wanted.run, "minutes": round(seconds / 60, 1), "left": left}))


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / ROUNDS).read_text().splitlines()]


def write(folder: Path) -> None:
    (folder / PAGE).write_text(page(read(folder)))


def again(folder: Path, *, check: bool) -> int:
    """The page from the results: written again, or compared with what is there."""
    if not (folder / ROUNDS).exists():
        return 0
    if not check:
        write(folder)
    elif (folder / PAGE).read_text() != page(read(folder)):
        say.line(f"{folder / PAGE} is not what was seen: make chaos ARGS=--render")
        return 1
    return 0


def page(lines: list[dict[str, Any]]) -> str:
    of = collections.defaultdict(list)
    for one in lines:
        of[one["is"]].append(one)
    return "\n".join(
        [
            "# What faults do to a fleet of jobs",
            "",
            f"Made by `make chaos`; do not edit. Every round is in [{ROUNDS}]({ROUNDS}).",
            "",
            *_runs(of["run"], of["round"], of["end"]),
            *_faults(of["round"]),
            *_kinds(of["job"], of["round"]),
            *_wrong(of["round"], of["job"], of["end"]),
            *METHOD,
            "",
        ]
    )


def _runs(runs: list[dict[str, Any]], done: list[dict[str, Any]], ends: list[dict[str, Any]]) -> list[str]:
    lines = [f"**{len(done)} rounds**, in {len(runs)} run{'s' if len(runs) > 1 else ''}:", ""]
    lines += ["| run | seed | rounds | minutes | machine |", "|---|---|---|---|---|"]
    minutes = {end["run"]: f"{end['minutes']:.0f}" for end in ends}
    for run in runs:
        mine = sum(one["run"] == run["run"] for one in done)
        where = f"{', '.join(run['machine'].values())}; Kubernetes {run['kubernetes']}"
        lines.append(f"| {run['run']} | {run['seed']} | {mine} | {minutes.get(run['run'], 'stopped')} | {where} |")
    return [*lines, ""]


def _faults(done: list[dict[str, Any]]) -> list[str]:
    lines = [
        "## By fault",
        "",
        "| fault | rounds | jobs that lived through it | s, median | s, longest | rounds with a violation |",
        "|---|---|---|---|---|---|",
    ]
    for fault in sorted({one["fault"] for one in done}):
        mine = [one for one in done if one["fault"] == fault]
        seconds = sorted(one["seconds"] for one in mine)
        wrong = sum(bool(one["violations"]) for one in mine)
        lived = sum(len(one["jobs"]) for one in mine)
        median = seconds[len(seconds) // 2]
        lines.append(f"| {fault} | {len(mine)} | {lived} | {median:.0f} | {seconds[-1]:.0f} | {_bold(wrong)} |")
    wrong = sum(bool(one["violations"]) for one in done)
    lines.append(f"| all | {len(done)} | {sum(len(one['jobs']) for one in done)} | | | {_bold(wrong)} |")
    return [*lines, ""]


def _kinds(lives: list[dict[str, Any]], done: list[dict[str, Any]]) -> list[str]:
    hits = collections.Counter((one["run"], name) for one in done for name in one["jobs"])
    lines = [
        "## By kind of job",
        "",
        "| kind | what it does | jobs | faults in its life, mean | Jobs it took, mean | with a violation |",
        "|---|---|---|---|---|---|",
    ]
    for kind, live in fleet.KINDS.items():
        mine = [life for life in lives if life["kind"] == kind]
        if not mine:
            continue
        faults = sum(hits[life["run"], life["job"]] for life in mine) / len(mine)
        jobs = sum(life["jobs"] for life in mine) / len(mine)
        wrong = sum(bool(life["violations"]) for life in mine)
        text = (live.__doc__ or "").strip().rstrip(".")
        lines.append(f"| {kind} | {text} | {len(mine)} | {faults:.1f} | {jobs:.1f} | {_bold(wrong)} |")
    return [*lines, ""]


def _bold(wrong: int) -> str:
    return f"**{wrong}**" if wrong else "0"


def _wrong(done: list[dict[str, Any]], lives: list[dict[str, Any]], ends: list[dict[str, Any]]) -> list[str]:
    shown: dict[str, list[str]] = {}
    for one in done:
        for violation in one["violations"]:
            where = f"round {one['round']} ({one['fault']}: {one['words']}, seed {one['seed']})"
            shown.setdefault(f"{one['run']}: {violation}", []).append(where)
    for life in lives:
        for violation in life["violations"]:
            shown.setdefault(f"{life['run']}: {violation}", [])
    left = [f"{end['run']}: an orphan: {child}" for end in ends for child in end["left"]]
    if not shown and not left:
        return ["No invariant was violated.", ""]
    lines = ["## What went wrong", ""]
    for violation, where in shown.items():
        run, job = violation.split(": ", 2)[:2]
        cause = CAUSES.get((run, job), "not known yet")
        lines.append(f"- {violation}. Cause: {cause}. Its rounds: {'; '.join(where) or 'none'}")
    return [*lines, *(f"- {orphan}" for orphan in left), ""]


METHOD = [
    "## What was done",
    "",
    "On one real node (`hack/localcluster`) with the operator of the chart (two replicas), S3 and a tiny base model, workers "
    "apply, edit, suspend, resume and delete jobs without a pause. Meanwhile one fault after another strikes, each as often as "
    "the others, with a random pause, a random way and a random victim, by dice of the seed; the moment that it meets is "
    "the machine's own.",
    "",
    "- *API server, etcd, kubelet, containerd, S3*: SIGKILL and started again at once; SIGKILL and away for a while; SIGSTOP, "
    "so that connections stay open and nothing answers.",
    "- *Operator*: a replica's pod deleted without grace, or its process killed. *Operator hangs*: SIGSTOP for up to twice its "
    "lease, and then resumed.",
    "- *Operator's clock*: the wall clock of one replica or both jumps by up to three days, forward or back, and after a while "
    "back again (libfaketime; monotonic clocks are not affected, as on a real node).",
    "- *Stage's pod*: the process of a stage is killed, or its pod is deleted. *Eviction*: as a drain does.",
    "",
    "After its end every job is compared with one of its kind that had lived before the first fault: same end and reason, same "
    "revision, **the very same trained weights** by their hash, same metrics and gates. Besides, for every job: no two Jobs for "
    "one revision, stage and attempt (by what was watched and by the API server's audit log); never two pods that train at once; "
    "no attempt without a cause (only strikes at the job's own pods, its author's suspensions and S3 that is away for longer "
    "than preflight waits may cost one, and only kills count as failures); an end is final; "
    "every file of the adapter is in S3 with the hash of its manifest, also after the job's deletion; no child outlives it.",
    "",
    "A job is small, 120 steps; most have no server, since one takes half a minute of a core to start. A round whose "
    "jobs include one with a violation counts as violated, whichever fault did it.",
]
