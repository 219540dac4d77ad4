"""Our side: `finetune-trainer preflight`, which is not measured, then `finetune-trainer train`, which is.

As in a pod, but with a run file that names local folders.
"""

import datetime
import json
import pathlib
import sys
from typing import Any

from tests.bench.trainer import batch, course, process, recipe, workloads

from finetune_api import run
from toolbox import say

NAME = "finetune-trainer"

STANDARD = pathlib.Path(__file__).parent / "sides" / "standard_path.py"

HELD_OUT: list[workloads.Chat] = [
    [{"role": "user", "content": f"{word}?"}, {"role": "assistant", "content": "Yes."}] for word in ("Now", "Soon")
]
"""One example to validate on and one to test on, as few as the product takes."""


def train(model: pathlib.Path, work: pathlib.Path, given: batch.Batches, *, standard: bool = False) -> course.Course:
    """One run in `work`, an empty folder; standard: through transformers' passes. Raises say.Problem."""
    spec = _write(model, work, given)
    environment = {"FINETUNE_WORK": str(work / "scratch"), "FINETUNE_METRICS_PORT": "0"}
    command = [sys.executable, STANDARD] if standard else [pathlib.Path(sys.executable).parent / "finetune-trainer"]

    def stage(name: str) -> process.Finished:
        place = {"FINETUNE_TERMINATION_PATH": str(work / f"{name}.json")}
        return process.run([*command, name, "--run", work / "run.json"], environment | place, work / f"{name}.log")

    stage("preflight")
    found = json.loads((work / "preflight.json").read_text())["preflight"]
    theirs, counted = (found["tokens"], found["trainableTokens"]), (sum(given.tokens()), sum(given.labelled()))
    if theirs != counted:
        raise say.Problem(f"preflight counts {theirs} tokens and learned tokens, the benchmark {counted}")
    finished = stage("train")
    (taken,) = (line["engine"] for line in _lines(work / "train.log") if line.get("message") == "training")
    if taken != ("plain" if standard else "fast"):
        raise say.Problem(f"the product trained with the {taken} engine")
    return _course(work, spec, given, finished)


def _write(model: pathlib.Path, work: pathlib.Path, given: batch.Batches) -> run.Run:
    """The data and the run file."""
    for name, rows in (("train", given.rows), ("validation", HELD_OUT[:1]), ("test", HELD_OUT[1:])):
        (work / f"{name}.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    document: dict[str, Any] = {
        "name": "bench",
        "namespace": "bench",
        "revision": "r1",
        "evaluationHash": "e1",
        "servedModelName": "bench-tuned",
        "intent": {"advice": "Ignore"},
        "baseModel": {"name": "bench-base", "source": f"file://{model}"},
        "dataset": {
            "train": [f"file://{work}/train.jsonl"],
            "validation": {"uris": [f"file://{work}/validation.jsonl"]},
            "test": {"uris": [f"file://{work}/test.jsonl"]},
            "minimumExamples": 1,
        },
        "storage": {"output": f"file://{work}/out"},
        "training": {
            "lora": {"rank": recipe.RANK, "alpha": recipe.ALPHA, "dropout": recipe.DROPOUT},
            "learningRate": recipe.LEARNING_RATE,
            "batchSize": recipe.BATCH,
            "maxSteps": len(given.steps),
            "maxSequenceLength": recipe.MAXIMUM_LENGTH,
            "seed": recipe.SEED,
            # The one held-out example says nothing, and must end nothing.
            "earlyStopping": {"patience": 100},
        },
    }
    text = json.dumps(document)
    (work / "run.json").write_text(text)
    return run.Run.model_validate_json(text)


def _course(work: pathlib.Path, spec: run.Run, given: batch.Batches, finished: process.Finished) -> course.Course:
    steps = [line for line in _lines(work / "train.log") if line.get("message") == "step"]
    folder = pathlib.Path(spec.layout.adapter.removeprefix("file://"))
    history = json.loads((folder / "training.json").read_text())["history"]
    wanted = recipe.learning_rates(len(given.steps))
    taken = [point["learningRate"] for point in history]
    if any(abs(one - other) > 1e-9 for one, other in zip(taken, wanted, strict=True)):
        raise say.Problem(f"the product trained with the learning rates {taken}, the recipe says {wanted}")
    return course.Course(
        started=finished.started,
        ends=[datetime.datetime.fromisoformat(line["time"]).timestamp() for line in steps],
        losses=[point["loss"] for point in history],
        tokens=given.tokens(),
        labelled=given.labelled(),
        peak=finished.peak,
        seconds=finished.seconds,
    )


def _lines(log: pathlib.Path) -> list[dict[str, Any]]:
    """The log's JSON lines."""
    found = (line.strip() for line in log.read_text(errors="replace").splitlines())
    return [json.loads(line) for line in found if line.startswith("{") and line.endswith("}")]
