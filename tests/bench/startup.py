"""From exec to the first optimizer step, and of `finetune` to its answer: `python tests/bench/startup.py` writes
docs/benchmarks/startup.md.

Runs preflight and the first step of training on SmolLM2-135M with 300 examples as processes of their own, the second time
over, so that the files are in the page cache, and reads the moments from the trainer's own log.
"""

import datetime
import json
import os
import pathlib
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "hack"))

MARKS = {
    "base model loaded": "interpreter, imports, base model in memory",
    "training": "adapter, tokens of the split, plan",
    "step": "the first step itself",
}
MODULES = ("torch", "transformers", "transformers.models.llama.modeling_llama", "peft")
REPETITIONS = 3
ROWS = 600


def main() -> None:
    import model  # hack/model.py

    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(temporary)
        spec = prepare(work, model.prepare())
        stage("preflight", spec, work)
        runs = [train(spec, work) for _ in range(REPETITIONS + 1)][1:]
        verbs = commands(work, model.prepare())
    rows = [(text, statistics.median(run[mark] for run in runs)) for mark, text in MARKS.items()]
    lines = [f"| {text} | {seconds:.1f} |" for text, seconds in rows]
    whole = sum(seconds for _, seconds in rows)
    imports = [f"| `import {name}` | {seconds:.1f} |" for name, seconds in imported().items()]
    text = "\n".join(
        [
            "# From exec to the first optimizer step",
            "",
            f"SmolLM2-135M, 300 examples, rank 8, batches of 8, bfloat16, {os.cpu_count()} cores, files in the page cache, "
            f"bytecode compiled as in the image. Median of {REPETITIONS} runs. Written by `make bench-startup`.",
            "",
            "| part | seconds |",
            "|---|---|",
            *lines,
            f"| **together** | **{whole:.1f}** |",
            "",
            "Of the first line the imports take, each with all that it imports and was not imported before (measured by",
            "`python -X importtime`, which itself costs about a third more):",
            "",
            "| import | seconds |",
            "|---|---|",
            *imports,
            "",
            f"`finetune` from exec to exit, {ROWS} rows of chats, in seconds of a processor:",
            "",
            "| command | processor seconds |",
            "|---|---|",
            *(f"| {name} | {seconds:.1f} |" for name, seconds in verbs.items()),
            "",
        ]
    )
    (REPOSITORY / "docs/benchmarks/startup.md").write_text(text)
    print(text)


def prepare(work: pathlib.Path, base: pathlib.Path) -> pathlib.Path:
    """The run file of one step, and its data."""
    lines = (REPOSITORY / "examples/support-desk/train.jsonl").read_text().splitlines(keepends=True)
    (work / "train.jsonl").write_text("".join(lines[:300]))
    document = {
        "name": "startup",
        "namespace": "bench",
        "revision": "r1",
        "evaluationHash": "e1",
        "servedModelName": "startup",
        "baseModel": {"name": base.name, "source": f"file://{base}"},
        "dataset": {"train": [f"file://{work}/train.jsonl"]},
        "storage": {"output": f"file://{work}/out"},
        "training": {"lora": {"rank": 8, "alpha": 16}, "maxSteps": 1, "batchSize": 8},
    }
    path = work / "run.json"
    path.write_text(json.dumps(document))
    # As in the image, where bytecode is compiled once: not part of a start.
    packages = subprocess.run(
        [sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
    ).stdout.strip()
    names = [
        f"{packages}/{name}" for name in ("torch", "transformers", "peft", "accelerate", "sympy", "tokenizers", "boto3")
    ]
    subprocess.run([sys.executable, "-m", "compileall", "-q", *names], check=False)
    return path


def stage(name: str, spec: pathlib.Path, work: pathlib.Path) -> list[tuple[str, float]]:
    """Runs a stage; its log as messages with their seconds since exec."""
    environment = os.environ | {
        "FINETUNE_WORK": str(work / "work"),
        "FINETUNE_METRICS_PORT": "0",
        "FINETUNE_TERMINATION_PATH": str(work / "termination"),
    }
    begun = time.time()
    command = [sys.executable, "-m", "finetune_trainer", name, "--run", str(spec)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    if ended.returncode:
        sys.exit(ended.stderr)
    found = [json.loads(line) for line in ended.stderr.splitlines() if line.startswith("{")]
    return [(line["message"], datetime.datetime.fromisoformat(line["time"]).timestamp() - begun) for line in found]


def train(spec: pathlib.Path, work: pathlib.Path) -> dict[str, float]:
    """Seconds of each part of a training's start."""
    for made in ("adapter", "checkpoints"):
        shutil.rmtree(work / "out/bench/startup/r1" / made, ignore_errors=True)
    moments: dict[str, float] = {}
    for message, moment in stage("train", spec, work):
        moments.setdefault(message, moment)
    found, before = {}, 0.0
    for mark in MARKS:
        found[mark], before = moments[mark] - before, moments[mark]
    return found


def commands(work: pathlib.Path, base: pathlib.Path) -> dict[str, float]:
    """Median processor seconds of verbs of the command line that people wait for: on a quiet machine the time to the answer."""
    lines = (REPOSITORY / "examples/support-desk/train.jsonl").read_text().splitlines()
    (work / "rows.jsonl").write_text("\n".join(lines[number % len(lines)] for number in range(ROWS)) + "\n")
    (work / "job.yaml").write_text(
        f"apiVersion: finetune.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {{name: startup}}\nspec:\n"
        f"  baseModel: {{source: {base}}}\n  dataset: {{train: [rows.jsonl]}}\n  storage: {{output: out}}\n"
    )
    found = {}
    for name, words in {
        "`finetune validate`, without a model": ["validate", work / "rows.jsonl"],
        "`finetune validate --model`": ["validate", work / "rows.jsonl", "--model", base],
        "`finetune advise`": ["advise", work / "job.yaml"],
    }.items():
        times = []
        for _ in range(REPETITIONS + 1):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            ended = subprocess.run([sys.executable, "-m", "finetune_cli", *words], capture_output=True, text=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            if ended.returncode not in (0, 2):
                sys.exit(ended.stderr)
        found[name] = statistics.median(times[1:])
    return found


def imported() -> dict[str, float]:
    """Seconds of each import, one after the other in one process."""
    script = "; ".join(f"import {name}" for name in MODULES)
    text = subprocess.run([sys.executable, "-X", "importtime", "-c", script], capture_output=True, text=True).stderr
    found = {}
    for line in text.splitlines():
        match = re.match(r"import time:\s+\d+ \|\s+(\d+) \|\s+(\S+)$", line)
        if match and match[2] in MODULES:
            found.setdefault(match[2], int(match[1]) / 1e6)
    return {name: found[name] for name in MODULES}


if __name__ == "__main__":
    main()
