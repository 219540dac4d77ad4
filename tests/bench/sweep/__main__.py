"""How far the learning rate of a job that sets none holds, and what a search and the rank change.

    python -m tests.bench.sweep measure runs.jsonl     (adds every run that the file does not have yet: hours of one core)
    python -m tests.bench.sweep page runs.jsonl        (writes docs/benchmarks/learning-rate.md)

Each run is the stage of a job on SmolLM2-135M (hack/model.py): preflight and training. What is compared is the validation loss of
the adapter that is kept, on rows that no run trains on.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

from tests.bench.judgement import tasks
from tests.bench.replay import __main__ as general

from finetune_api import run
from finetune_trainer.planning import learning_rate
from finetune_trainer.stages import preflight, train

PAGE = pathlib.Path(__file__).parents[3] / "docs" / "benchmarks" / "learning-rate.md"
MODEL = pathlib.Path.home() / ".cache/finetune-operator/model/smollm2-135m-instruct"
TASKS = ("intents10", "extraction", "style", "arithmetic", "desk", "dates")
ROWS, HELD_OUT, TEST, EPOCHS, BATCH = 96, 48, 2, 3, 8
FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0)
TELLING = (1.0, 2.0, 4.0, 0.5, 8.0)
"""The same, in the order of measuring."""
RANKS = (8, 64)
"""Beside the usual one."""
RANK, SEED = 16, 42


def wanted() -> list[dict[str, Any]]:
    """Every run, the most telling first."""
    usual = {"factor": 1.0, "rank": RANK, "seed": SEED, "rows": ROWS, "search": 0}
    runs = [usual | {"factor": factor} for factor in TELLING]
    runs += [usual | {"search": 4}, usual | {"seed": 1}]
    runs += [usual | {"rank": rank} for rank in RANKS]
    return [{"task": task} | one for one in runs for task in TASKS]


def examples(task: str, count: int) -> list[dict[str, Any]]:
    return tasks.BY_NAME[task].rows(count) if task in tasks.BY_NAME else general.examples(task, count)


def measure(one: dict[str, Any]) -> dict[str, Any]:
    """One training. Its rate is the formula's times the factor; with a search, the rates around it."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        os.environ |= {"FINETUNE_WORK": str(folder / "work"), "FINETUNE_METRICS_PORT": "0"}
        rows = examples(one["task"], HELD_OUT + TEST + one["rows"])
        parts = {"validation": rows[:HELD_OUT], "test": rows[HELD_OUT:][:TEST], "train": rows[HELD_OUT + TEST :]}
        for part, few in parts.items():
            (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few))
        width = learning_rate.width(json.loads((MODEL / "config.json").read_text()))
        assert width is not None
        steps = -(-one["rows"] * EPOCHS // BATCH)
        rate = learning_rate.by_formula(width, BATCH, steps).value * one["factor"]
        lora = {"rank": one["rank"], "alpha": 2 * one["rank"]}
        training = {"epochs": EPOCHS, "batchSize": BATCH, "learningRate": rate, "seed": one["seed"], "lora": lora}
        spec = run.Run.model_validate_json(
            json.dumps(
                {
                    "name": one["task"],
                    "namespace": "bench",
                    "revision": "r1",
                    "evaluationHash": "e1",
                    "servedModelName": one["task"],
                    "baseModel": {"name": "smollm2", "source": f"file://{MODEL}"},
                    "dataset": {
                        "train": [f"file://{folder}/train.jsonl"],
                        "validation": {"uris": [f"file://{folder}/validation.jsonl"]},
                        "test": {"uris": [f"file://{folder}/test.jsonl"]},
                        "checks": {"leakage": "Ignore"},
                    },
                    "storage": {"output": f"file://{folder}/out"},
                    "training": training | ({"search": {"learningRates": one["search"]}} if one["search"] else {}),
                    "evaluation": {"gates": []},
                }
            )
        )
        preflight.preflight(spec)
        begun = time.monotonic()
        found = train.train(spec, 1, 1.0).training
        seconds = time.monotonic() - begun
    assert found is not None
    return one | {
        "steps": found.steps,
        "rate": found.learning_rate,
        "loss": round(found.validation_loss or 0.0, 4),
        "seconds": round(seconds, 1),
    }


# --- the page ---


def page(runs: list[dict[str, Any]]) -> str:
    by_task: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for one in runs:
        by_task[one["task"]].append(one)
    return f"""# Learning rates: the formula, a search, the rank

Written by `python -m tests.bench.sweep page`, from the runs of `python -m tests.bench.sweep measure`. SmolLM2-135M-Instruct on a
CPU, {ROWS} training rows, {BATCH} a step, {EPOCHS} epochs, rank {RANK} with an alpha of {2 * RANK}. Each figure is the validation
loss of the adapter that was kept, on {HELD_OUT} other rows. The formula gives {_rate(runs):g} here. Data are made from a seed, in
the shape of public tasks (`tests/bench/judgement/tasks.py`, `tests/bench/replay`).

## The formula's rate, and others

| task | {" | ".join(f"x {factor:g}" for factor in FACTORS)} | another seed | best | the formula's rate is above the best by |
|---|{"---|" * (len(FACTORS) + 3)}
{_lines(_sweep, by_task)}

## A search over four rates

| task | chosen | steps, to one run's | seconds, to one run's | loss | without | best of all |
|---|---|---|---|---|---|---|
{_lines(_search, by_task)}

## The rank

| task | {" | ".join(f"rank {rank}" for rank in sorted((RANK, *RANKS)))} | another seed of rank {RANK} |
|---|{"---|" * (len(RANKS) + 2)}
{_lines(_ranks, by_task)}
"""


def _rate(runs: list[dict[str, Any]]) -> float:
    return next(float(one["rate"]) for one in runs if one["factor"] == 1 and not one["search"])


Pick = Callable[..., dict[str, Any]]


def _lines(line: Callable[[Pick], str], by_task: dict[str, list[dict[str, Any]]]) -> str:
    """A line of each task that has every run of it."""
    lines = []
    for task in TASKS:

        def pick(task: str = task, **different: Any) -> dict[str, Any]:
            sought = {"factor": 1.0, "rank": RANK, "seed": SEED, "search": 0} | different
            return next(one for one in by_task[task] if all(one[key] == value for key, value in sought.items()))

        with contextlib.suppress(StopIteration):
            lines.append(f"| {task} | {line(pick)} |")
    return "\n".join(lines)


def _sweep(pick: Pick) -> str:
    losses = {factor: pick(factor=factor)["loss"] for factor in FACTORS}
    best = min(losses, key=lambda factor: losses[factor])
    cells = [*(f"{loss:.3f}" for loss in losses.values()), f"{pick(seed=1)['loss']:.3f}"]
    return f"{' | '.join(cells)} | x {best:g} | {losses[1.0] / losses[best] - 1:.0%}"


def _search(pick: Pick) -> str:
    plain, searched = pick(), pick(search=4)
    best = min(pick(factor=factor)["loss"] for factor in FACTORS)
    trials = learning_rate.trial_steps(plain["steps"]) * 3 / plain["steps"]
    return (
        f"x {searched['rate'] / plain['rate']:g} | {1 + trials:.2f} | {searched['seconds'] / plain['seconds']:.2f} "
        f"| {searched['loss']:.3f} | {plain['loss']:.3f} | {best:.3f}"
    )


def _ranks(pick: Pick) -> str:
    cells = [f"{pick(rank=rank)['loss']:.3f}" for rank in sorted((RANK, *RANKS))]
    return f"{' | '.join(cells)} | {pick(seed=1)['loss']:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.sweep", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("measure", "page"):
        verbs.add_parser(verb).add_argument("runs", type=pathlib.Path)
    asked = parser.parse_args()
    runs = [json.loads(line) for line in asked.runs.read_text().splitlines()] if asked.runs.exists() else []
    if asked.verb == "page":
        PAGE.write_text(page(runs))
        return
    done = [
        {key: value for key, value in one.items() if key not in ("steps", "rate", "loss", "seconds")} for one in runs
    ]
    for one in wanted():
        if one not in done:
            with asked.runs.open("a") as file:
                file.write(json.dumps(measure(one)) + "\n")


if __name__ == "__main__":
    main()
