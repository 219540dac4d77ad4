"""Trains and evaluates a task with and without general examples, and writes the figures of each run as a line of JSON.

    python -m tests.bench.replay measure desk 0 >> runs.jsonl      (tasks: desk, intents, dates; then the share)
    python -m tests.bench.replay table runs.jsonl

The stages are those of a job. A run takes two to four minutes of one core; its model is what hack/model.py makes.
"""

import argparse
import datetime
import json
import os
import pathlib
import random
import sys
import tempfile
from typing import Any

from finetune_api import results, run
from finetune_trainer.stages import evaluate, preflight, train

REPOSITORY = pathlib.Path(__file__).parents[3]
DESK = REPOSITORY / "examples" / "support-desk" / "train.jsonl"
TRAIN, TEST = 60, 24
QUESTIONS = 96
GENERAL = ("Forgetting", "GeneralAccuracy", "InstructionFollowing", "Divergence", "GeneralDivergence")

INTENTS = {
    "refund": (
        "I want my money back for the {thing}",
        "please refund the {thing}",
        "the {thing} is broken, return the payment",
    ),
    "delivery": ("where is my {thing}?", "the {thing} has not arrived", "when will the {thing} be delivered"),
    "praise": ("I love the {thing}", "the {thing} works wonderfully, thank you", "best {thing} that I ever had"),
    "account": (
        "I cannot log in to buy the {thing}",
        "change my address for the {thing}",
        "delete my account, no more {thing}",
    ),
}
THINGS = (
    "lamp",
    "chair",
    "kettle",
    "bicycle",
    "tent",
    "jacket",
    "printer",
    "radio",
    "mirror",
    "clock",
    "basket",
    "ladder",
)


def intents(number: int, draw: random.Random) -> dict[str, str]:
    label = draw.choice(list(INTENTS))
    text = draw.choice(INTENTS[label]).format(thing=draw.choice(THINGS))
    return {"prompt": f"Ticket {number}: {text}\nIntent?", "completion": label}


def dates(number: int, draw: random.Random) -> dict[str, str]:
    day = datetime.date(2000, 1, 1) + datetime.timedelta(draw.randrange(9000))
    return {
        "prompt": f"Note {number}, written on {day:%B} {day.day}, {day:%Y}. Date?",
        "completion": f"<{day:%d.%m.%y}>",
    }


def examples(task: str, count: int = TRAIN + TEST) -> list[dict[str, Any]]:
    if task == "desk":
        return [json.loads(line) for line in DESK.read_text().splitlines()[:count]]
    make = {"intents": intents, "dates": dates}[task]
    draw = random.Random(f"replay:{task}")
    return [make(number, draw) for number in range(count)]


def measure(task: str, share: float, model: pathlib.Path) -> dict[str, Any]:
    """One training with its evaluation. share 0: without general examples."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        os.environ |= {"FINETUNE_WORK": str(folder / "work"), "FINETUNE_METRICS_PORT": "0"}
        rows = examples(task)
        for part, few in {"train": rows[:TRAIN], "test": rows[TRAIN:]}.items():
            (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few))
        training = {"epochs": 3, "learningRate": 1e-3, "batchSize": 8, "lora": {"rank": 16, "alpha": 32}}
        document = {
            "name": task,
            "namespace": "bench",
            "revision": "r1",
            "evaluationHash": "e1",
            "servedModelName": task,
            "baseModel": {"name": "smollm2", "source": f"file://{model}"},
            "dataset": {
                "train": [f"file://{folder}/train.jsonl"],
                "test": {"uris": [f"file://{folder}/test.jsonl"]},
                "checks": {"leakage": "Ignore"},
            },
            "storage": {"output": f"file://{folder}/out"},
            "training": training | ({"replay": {"share": share}} if share else {}),
            "evaluation": {
                "baselines": ["Base"],
                "gates": [],
                "generation": {"maxNewTokens": 40},
                "forgetting": {"maximumQuestions": QUESTIONS},
            },
        }
        spec = run.Run.model_validate_json(json.dumps(document))
        preflight.preflight(spec)
        train.train(spec, 1, 1.0)
        evaluate.evaluate(spec, None, None, 1)
        path = pathlib.Path(spec.layout.evaluation("e1").removeprefix("file://")) / "results.json"
        found = results.Results.model_validate_json(path.read_text())
    values = {f"{one.metric}/{one.contender}": round(one.value, 4) for one in found.values}
    detectable = {str(one.metric): one.detectable for one in found.comparisons if one.detectable is not None}
    chosen = {key: value for key, value in values.items() if key.split("/")[0] in {*GENERAL, "ExactMatch", "Loss"}}
    return {
        "task": task,
        "share": share,
        "steps": len(found.training.history),
        "values": chosen,
        "detectable": detectable,
    }


def table(runs: list[dict[str, Any]]) -> str:
    """One line for each run: the task, then what is left of the general scores as a share of the base model's."""
    lines = [
        "| task | share | ExactMatch (base) | gain left | GeneralAccuracy of the base's | InstructionFollowing of the base's "
        "| Forgetting | Divergence | GeneralDivergence |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    plain = {one["task"]: one["values"] for one in runs if not one["share"]}
    for one in sorted(runs, key=lambda one: (one["task"], one["share"])):
        found, before = one["values"], plain[one["task"]]
        gain, whole = (each["ExactMatch/Tuned"] - each["ExactMatch/Base"] for each in (found, before))
        cells = [
            one["task"],
            f"{one['share']:g}",
            f"{found['ExactMatch/Tuned']:.2f} ({found['ExactMatch/Base']:.2f})",
            f"{gain / whole:.0%}" if whole else "-",
            *(_share_left(found, metric) for metric in ("GeneralAccuracy", "InstructionFollowing")),
            f"{found['Forgetting/Tuned']:+.1%}",
            *(f"{found[f'{metric}/Tuned']:.3f}" for metric in ("Divergence", "GeneralDivergence")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _share_left(found: dict[str, float], metric: str) -> str:
    base, tuned = found[f"{metric}/Base"], found[f"{metric}/Tuned"]
    return f"{tuned / base:.0%} ({tuned:.2f} of {base:.2f})" if base else f"{tuned:.2f} of 0"


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.replay")
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("measure")
    one.add_argument("task", choices=["desk", "intents", "dates"])
    one.add_argument("share", type=float)
    one.add_argument(
        "--model",
        type=pathlib.Path,
        default=pathlib.Path.home() / ".cache/finetune-operator/model/smollm2-135m-instruct",
    )
    verbs.add_parser("table").add_argument("runs", type=pathlib.Path)
    asked = parser.parse_args()
    if asked.verb == "measure":
        sys.stdout.write(json.dumps(measure(asked.task, asked.share, asked.model)) + "\n")
        return
    sys.stdout.write(table([json.loads(line) for line in asked.runs.read_text().splitlines()]) + "\n")


if __name__ == "__main__":
    main()
