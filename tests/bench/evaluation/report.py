"""evaluation.json and evaluation.md: what was measured, and what it says. Pure but for the files."""

import dataclasses
import json
import pathlib
import statistics

from tests.bench.evaluation import workloads
from tests.bench.evaluation.side import ALPHA, BATCH, BATCHED, OURS, RANK, SINGLE
from tests.bench.trainer import machine

DATA, PAGE = "evaluation.json", "evaluation.md"


@dataclasses.dataclass(frozen=True)
class Run:
    """All prompts of a workload, or the first of them, answered once by one side."""

    workload: str
    side: str
    repetition: int
    prompts: int
    tokens: int
    """Of the answers, with their stop tokens."""
    seconds: float
    peak: int
    """Bytes, of the whole process."""

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How many answers two sides share, in the first repetition."""

    workload: str
    one: str
    other: str
    same: int
    compared: int


@dataclasses.dataclass(frozen=True)
class Asked:
    """The prompts of a workload: how many, tokens that all begin with, tokens of the shortest and the longest."""

    prompts: int
    shared: int
    shortest: int
    longest: int


@dataclasses.dataclass
class Results:
    machine: machine.Machine
    versions: dict[str, str]
    command: str
    limit: int
    asked: dict[str, Asked] = dataclasses.field(default_factory=dict)
    runs: list[Run] = dataclasses.field(default_factory=list)
    agreements: list[Agreement] = dataclasses.field(default_factory=list)


def write(found: Results, folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DATA).write_text(json.dumps(dataclasses.asdict(found), indent=1) + "\n")
    (folder / PAGE).write_text(page(found))


def read(folder: pathlib.Path) -> Results:
    document = json.loads((folder / DATA).read_text())
    return Results(
        machine.Machine(**document["machine"]),
        document["versions"],
        document["command"],
        document["limit"],
        {name: Asked(**asked) for name, asked in document["asked"].items()},
        [Run(**run) for run in document["runs"]],
        [Agreement(**one) for one in document["agreements"]],
    )


def ratio(found: Results, workload: str, side: str) -> float:
    """The median over the repetitions of our rate by that of a side in the same repetition."""
    rates = {(run.side, run.repetition): run.rate for run in found.runs if run.workload == workload}
    common = [number for name, number in rates if name == side and (OURS, number) in rates]
    return statistics.median(rates[OURS, number] / rates[side, number] for number in common)


def page(found: Results) -> str:
    here = found.machine
    lines = [
        "# The evaluation's answers against transformers' `generate`",
        "",
        "Made by `make bench-evaluation`; do not edit. Every single run is in [evaluation.json](evaluation.json).",
        "",
        f"- Machine: {here.model}, {here.cores} cores, {here.memory / 2**30:.0f} GiB, {here.system}; "
        f"{', '.join(here.instructions) or 'no instruction sets for matrices'}; "
        f"{here.gflops:.0f} GFLOP/s in bfloat16 matrix products",
        f"- {', '.join(f'{name} {version}' for name, version in found.versions.items())}; Python {here.python}",
        f"- Command: `{found.command}`; repetitions: {1 + max(run.repetition for run in found.runs)}",
        "",
        "| workload | side | prompts | tokens/s | lowest to highest | ours by it | goal | answers like ours | MiB |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(found, workload, side) for workload in list(found.asked) for side in _sides(found, workload)),
        "",
        "## Where we are not ahead",
        "",
        *(_behind(found) or ["Nowhere: both goals are reached."]),
        "",
        "## What was done",
        "",
        *(
            f"- `{name}`: {workloads.BY_NAME[name].title}; {asked.prompts} prompts of {asked.shortest} to {asked.longest} "
            f"tokens, of which all begin with the same {asked.shared}. Mails of `examples/support-desk`."
            for name, asked in found.asked.items()
        ),
        "",
        f"SmolLM2-135M-Instruct with pretrained weights in bfloat16 and a random adapter of rank {RANK} (alpha {ALPHA}, all "
        f"linear layers); greedy answers of at most {found.limit} tokens, which end with the same stop tokens. Each run is a "
        "process of its own, the sides take turns; loading and two answers beforehand are not counted, reading the prompts is. "
        "Tokens are those of the answers, stop tokens included and padding not.",
        "",
        f"- {OURS}: `generate.greedy` as the evaluation calls it, the adapter beside the weights, since the base model takes "
        "part with the same weights.",
        f"- {BATCHED}: prompts sorted by length, padded on the left to batches of {BATCH}, `sdpa` attention, the adapter merged "
        "into the weights, which spares it the products of the adapter.",
        f"- {SINGLE}: the same without batches, the first prompts only.",
        "",
        "*Ours by it* is the median over the repetitions of our rate by that of the side in the same repetition. *Answers like "
        "ours*: bfloat16 rounds otherwise in another order of sums, and a greedy answer that differs in one token differs in all "
        "that follow; in float32 the tests compare token by token. For comparison, transformers with itself:",
        "",
        *(
            f"- `{one.workload}`: {one.one} and {one.other} share {one.same} of {one.compared} answers."
            for one in found.agreements
            if OURS not in (one.one, one.other)
        ),
        "",
    ]
    return "\n".join(lines)


def _sides(found: Results, workload: str) -> list[str]:
    return list(dict.fromkeys(run.side for run in found.runs if run.workload == workload))


def _row(found: Results, workload: str, side: str) -> str:
    runs = [run for run in found.runs if (run.workload, run.side) == (workload, side)]
    rates = [run.rate for run in runs]
    share = next((f"{one.same} of {one.compared}" for one in found.agreements if _is(one, workload, side)), "")
    times = "" if side == OURS else f"**{ratio(found, workload, side):.1f}x**"
    goal = f"{workloads.BY_NAME[workload].goal:g}x" if side == BATCHED else ""
    return (
        f"| {workload} | {side} | {runs[0].prompts} | {statistics.median(rates):.0f} | {min(rates):.0f} to {max(rates):.0f} "
        f"| {times} | {goal} | {share} | {max(run.peak for run in runs) / 2**20:.0f} |"
    )


def _is(one: Agreement, workload: str, side: str) -> bool:
    return (one.workload, one.one, one.other) == (workload, OURS, side)


def _behind(found: Results) -> list[str]:
    lines = []
    for workload in found.asked:
        goal = workloads.BY_NAME[workload].goal
        for side in _sides(found, workload):
            reached = 1.0 if side == OURS else ratio(found, workload, side)
            if reached < (goal if side == BATCHED else 1.0):
                lines.append(f"- {workload}: {reached:.2f}x instead of {goal:g}x the tokens per second of {side}.")
    return lines
