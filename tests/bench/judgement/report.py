"""judgement.json and judgement.md: a row for each task that was measured. Pure but for the files."""

import dataclasses
import json
import pathlib
from typing import Any

from tests.bench.judgement import tasks

DATA, PAGE = "judgement.json", "judgement.md"


@dataclasses.dataclass(frozen=True)
class Row:
    """One task, as `finetune run` judged it."""

    task: str
    rows: int
    epochs: float
    examples: int
    """Test examples."""
    metric: str
    values: dict[str, float]
    """Of each contender."""
    best: str | None
    """The best baseline."""
    gain: tuple[float, float, float] | None
    """Of the tuned model over it, with its 95 % interval."""
    p_value: float | None
    passed: bool | None
    """Whether every gate passed; None: the job ended before an evaluation."""
    says: str
    """The product's words: of the gate over the best baseline, or why the job ended before."""
    preflight: str | None
    sufficient: str | None
    """The prompt that the baseline found to be enough."""
    left_out: list[str]
    seconds: dict[str, float]
    """Of each stage."""
    prompt_tokens: dict[str, float]
    command: str
    machine: str

    @property
    def size(self) -> tuple[int, float]:
        return self.rows, self.epochs

    @property
    def won(self) -> bool:
        """Whether training beats the best baseline, by the evidence that a gate takes."""
        return self.gain is not None and self.gain[0] > 0 and (self.p_value or 0.0) <= 0.05

    @property
    def honest(self) -> bool:
        """Whether the product let nothing serve that has not won."""
        return self.won or not self.passed


def of(answer: dict[str, Any], task: tasks.Task, count: int, epochs: float, command: str, machine: str) -> Row:
    """answer: what `finetune run --output json` printed."""
    values = {one["contender"]: one["value"] for one in answer.get("contenders", ()) if one["metric"] == task.metric}
    sizes = [one["examples"] for one in answer.get("contenders", ()) if one["metric"] == task.metric]
    best = answer.get("bestBaseline")
    over = [one for one in answer.get("comparisons", ()) if (one["metric"], one["over"]) == (task.metric, best)]
    gates = [one for one in answer.get("gates", ()) if "baseline" in one["requirement"]]
    return Row(
        task.name,
        count,
        epochs,
        max(sizes, default=0),
        task.metric,
        values,
        best,
        (over[0]["gain"], over[0]["low"], over[0]["high"]) if over else None,
        over[0]["pValue"] if over else None,
        answer.get("passed"),
        gates[0]["observed"] if gates else answer.get("message", ""),
        answer.get("verdict"),
        (answer.get("baseline") or {}).get("sufficient"),
        answer.get("leftOut", []),
        {one["stage"]: one["seconds"] for one in answer.get("stages", ())},
        {one["contender"]: one["prompt"] for one in answer.get("tokens", ())},
        command,
        machine,
    )


def read(folder: pathlib.Path) -> dict[str, Row]:
    """The rows by task; empty where nothing was measured."""
    if not (folder / DATA).exists():
        return {}
    found = json.loads((folder / DATA).read_text())
    return {one["task"]: Row(**one | {"gain": one["gain"] and tuple(one["gain"])}) for one in found}


def with_row(found: dict[str, Row], made: Row) -> dict[str, Row]:
    """The rows with a new one, unless there is one of a larger job."""
    there = found.get(made.task)
    return found if there is not None and there.size > made.size else {**found, made.task: made}


def write(found: dict[str, Row], folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    ordered = [found[task.name] for task in tasks.TASKS if task.name in found]
    (folder / DATA).write_text(json.dumps([dataclasses.asdict(one) for one in ordered], indent=1) + "\n")
    (folder / PAGE).write_text(page(ordered))


def page(found: list[Row]) -> str:
    missing = [task.name for task in tasks.TASKS if task.name not in {one.task for one in found}]
    return "\n".join(
        [
            "# Which method wins, and whether the product says so",
            "",
            "Made by `make bench-judgement`; do not edit. The rows are in [judgement.json](judgement.json).",
            "",
            "SmolLM2-135M-Instruct, LoRA of rank 8, `finetune run` with a gate over the best baseline. The data are made from a "
            "seed, in the shape of public tasks (`tests/bench/judgement/tasks.py`, which has what was expected before, too).",
            "",
            "| task | rows, epochs | metric | test | every contender | tuned over the best baseline (95 %) | gates passed | "
            "prompt tokens, best to tuned | baseline, training, evaluation |",
            "|---|---|---|---|---|---|---|---|---|",
            *map(_line, found),
            "",
            f"The baselines may take {tasks.BUDGET} times the training's time (a user's a tenth, unless the job says more). "
            "A row that names what was left out had 30 s for them. Times depend on what else the machine did.",
            "",
            "## What was expected, and what the product says",
            "",
            *[line for one in found for line in _words(one)],
            *([f"Not measured yet: {', '.join(missing)}.", ""] if missing else []),
        ]
    )


def _line(one: Row) -> str:
    values = ", ".join(f"{who} {value:.2f}" for who, value in one.values.items())
    gain = f"{one.gain[0]:+.2f} ({one.gain[1]:+.2f} to {one.gain[2]:+.2f}) over {one.best}" if one.gain else "none"
    tokens = " to ".join(
        f"{one.prompt_tokens[who]:.0f}" for who in (str(one.best), "Tuned") if who in one.prompt_tokens
    )
    times = ", ".join(f"{one.seconds.get(stage, 0):.0f} s" for stage in ("baseline", "train", "evaluate"))
    passed = {True: "yes", False: "no", None: "no evaluation"}[one.passed]
    sizes = f"{one.rows}, {one.epochs:g} | {one.metric} | {one.examples}"
    return f"| {one.task} | {sizes} | {values} | {gain} | {passed} | {tokens} | {times} |"


def _words(one: Row) -> list[str]:
    task = tasks.BY_NAME[one.task]
    honest = "" if one.honest else " **It let a model serve that has not won.**"
    size = f"{one.rows} rows, {one.epochs:g} epochs"
    return [
        f"- **{one.task}** ({task.shape}; {size}). Expected: {task.expected}. The product: {one.says}.{honest}",
        *([f"  Enough before training: {one.sufficient}."] if one.sufficient else []),
        *([f"  Left out: {'; '.join(one.left_out)}."] if one.left_out else []),
        f"  `{one.command}`; {one.machine}.",
        "",
    ]
