"""The memory estimate against measured peaks: `python -m tests.bench.estimate` writes docs/benchmarks/estimate.{json,md}.

Each configuration is a run file of its own: `finetune-trainer preflight`, then `estimate`, then `train` in a process whose peak
the kernel reports. Checkpoints are written and the validation split is scored in each, since both take memory.

    --only NAME ...    measures these again and keeps the rest
    --gpus [MODEL]     measures the catalogue's models with fake tensors instead, or one of them
    --check            only compares estimate.md with estimate.json
"""

import argparse
import dataclasses
import json
import pathlib
import random
import subprocess
import sys
import tempfile
from typing import Any

# hack/ has what the development tools share; it is no package that could be installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "hack"))

from tests.bench.estimate import gpus
from tests.bench.trainer import models, process
from tests.trainer import test_fake_gpu

from toolbox import cache, say

FOLDER = pathlib.Path(__file__).resolve().parents[3] / "docs/benchmarks"

GEMMA = "gemma-2-shaped-random"
SHAPES: dict[str, dict[str, Any]] = {
    GEMMA: {
        "model_type": "gemma2",
        "vocab_size": 128_000,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 192,
        "sliding_window": 512,
        "query_pre_attn_scalar": 192,
        "max_position_embeddings": 8192,
    }
}
"""Models that this command makes; the others are the trainer benchmark's."""


@dataclasses.dataclass(frozen=True)
class Configuration:
    """A run. `prompt` and `answer` are words of an example, `shared` those of a system prompt that all have. Words are made up,
    of two or three tokens each."""

    title: str
    model: str = models.SMALL
    prompt: int = 24
    answer: int = 16
    shared: int = 0
    batch: int = 16
    pairs: bool = False
    training: dict[str, Any] = dataclasses.field(default_factory=dict)


LORA = {"lora": {"rank": 16, "alpha": 32}}
ALL: dict[str, Configuration] = {
    "short": Configuration("short chats, 16 a step"),
    "few": Configuration("short chats, 4 a step", batch=4),
    "shared": Configuration("a shared system prompt of 400 tokens", shared=160),
    "long": Configuration("rows of about 1,000 tokens", prompt=260, answer=100, batch=4),
    "checkpointing": Configuration(
        "rows of about 1,000 tokens, checkpointing",
        prompt=260,
        answer=100,
        batch=4,
        training={"gradientCheckpointing": "Enabled"},
    ),
    "rank-64": Configuration("rank 64", training={"lora": {"rank": 64, "alpha": 64}}),
    "rank-8": Configuration("rank 8, attention only", training={"lora": {"rank": 8, "targetModules": "Attention"}}),
    "float32": Configuration("Float32", training={"precision": "Float32"}),
    "dpo": Configuration("DPO, 8 pairs a step", batch=8, pairs=True, training={"objective": "DPO"}),
    "qlora": Configuration("QLoRA", training={"method": "QLoRA"}),
    "plain": Configuration("dropout, so the plain engine", training={"lora": {"rank": 16, "dropout": 0.05}}),
    "qwen": Configuration("short chats, 8 a step", model=models.LARGE, batch=8),
    "gemma": Configuration("short chats, 16 a step", model=GEMMA),
}

TITLES = models.TITLES | {GEMMA: "a small model of Gemma 2's shape with random weights"}


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Sizes in bytes."""

    name: str
    tokens: int
    checkpointing: bool
    estimate: int
    measured: int

    @property
    def error(self) -> float:
        """Of the measured peak; below zero: more was needed than estimated."""
        return self.estimate / self.measured - 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ALL, default=list(ALL))
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--gpus", nargs="*")
    options = parser.parse_args()
    found = {one["name"]: Measurement(**one) for one in stored()}
    if options.gpus is not None:
        fakes(options.gpus)
    elif not options.check:
        for name in options.only:
            with tempfile.TemporaryDirectory() as temporary, say.step(name, "a minute"):
                found[name] = measure(name, pathlib.Path(temporary))
            one = found[name]
            say.line(f"    estimate {mib(one.estimate)}, measured {mib(one.measured)} MiB, {one.error:+.1%}")
            document = [dataclasses.asdict(found[name]) for name in ALL if name in found]
            (FOLDER / "estimate.json").write_text(json.dumps(document, indent=1) + "\n")
    text = report([found[name] for name in ALL if name in found])
    path = FOLDER / "estimate.md"
    if options.check and path.read_text() != text:
        say.line(f"{path} is not what estimate.json says: python -m tests.bench.estimate --only {next(iter(ALL))}")
        return 1
    path.write_text(text)
    return 0


def fakes(wanted: list[str]) -> None:
    """Measures models with fake tensors and keeps what is stored of the others."""
    path = FOLDER / "estimate-gpus.json"
    found = {(one.model, one.gib): one for one in gpus.stored(path)}
    for model in wanted or test_fake_gpu.CATALOGUE:
        for gib in gpus.SIZES:
            with say.step(f"{model} on {gib} GiB", "a minute"):
                peak = gpus.measure(model, gib)
            if peak is not None:
                found[model, gib] = peak
            order = [(name, size) for name in test_fake_gpu.CATALOGUE for size in gpus.SIZES]
            gpus.write(path, [found[key] for key in order if key in found])


def stored() -> list[dict[str, Any]]:
    path = FOLDER / "estimate.json"
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return [one for one in found if one["name"] in ALL]


# -- one configuration --


def measure(name: str, work: pathlib.Path) -> Measurement:
    wanted = ALL[name]
    (work / "run.json").write_text(json.dumps(document(name, wanted, base(wanted.model), work)))
    rows = data(wanted)
    (work / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "finetune_trainer"]
    environment = {"FINETUNE_WORK": str(work / "scratch"), "FINETUNE_METRICS_PORT": "0"}

    def stage(kind: str, *words: str) -> process.Finished:
        place = {"FINETUNE_TERMINATION_PATH": str(work / f"{kind}.end")}
        return process.run(
            [*command, kind, "--run", work / "run.json", *words], environment | place, work / f"{kind}.log"
        )

    stage("preflight")
    answer = subprocess.run(
        [*command, "estimate", "--run", work / "run.json", "--output", "json"], capture_output=True, text=True
    )
    if answer.returncode:
        raise say.Problem(answer.stderr)
    chosen = json.loads(answer.stdout)["chosen"]
    finished = stage("train")
    lines = [json.loads(line) for line in (work / "train.log").read_text().splitlines() if line.startswith("{")]
    took = next(line for line in lines if line.get("message") == "training")
    if took["micro_batch_tokens"] != chosen["microBatchTokens"]:
        raise say.Problem(f"{name}: trained with {took['micro_batch_tokens']} tokens, estimated for {chosen}")
    return Measurement(
        name, chosen["microBatchTokens"], chosen["gradientCheckpointing"], chosen["bytes"], finished.peak
    )


def base(name: str) -> pathlib.Path:
    """The model's folder; made when it is absent."""
    if name not in SHAPES:
        return models.prepare(name)
    target = cache.folder("bench") / name
    if not target.exists():
        program = models.PROGRAM
        words = [json.dumps(SHAPES[name]), models.prepare(models.SMALL), target]
        subprocess.run([sys.executable, program, *words], check=True, stdout=subprocess.DEVNULL)
    return target


def document(name: str, wanted: Configuration, folder: pathlib.Path, work: pathlib.Path) -> dict[str, Any]:
    """The run file."""
    training = {"batchSize": wanted.batch, "maxSteps": 8, "checkpoints": {"everyMinutes": 0.01}}
    return {
        "name": name,
        "namespace": "bench",
        "revision": "r1",
        "evaluationHash": "e1",
        "servedModelName": "tuned",
        "intent": {"advice": "Ignore"},
        "baseModel": {"name": wanted.model, "source": f"file://{folder}"},
        "dataset": {"train": [f"file://{work}/train.jsonl"], "minimumExamples": 1},
        "storage": {"output": f"file://{work}/out"},
        "training": LORA | training | wanted.training,
    }


def data(wanted: Configuration) -> list[dict[str, Any]]:
    """Examples of made-up words, enough for the steps of a run; lengths vary by a fifth."""
    number = random.Random(1)
    words = ["".join(number.choices("etaoinshrdlu", k=number.randint(2, 7))) for _ in range(2000)]

    def text(count: int) -> str:
        return " ".join(number.choices(words, k=number.randint(count - count // 5, count + count // 5)))

    system = [{"role": "system", "content": text(wanted.shared)}] if wanted.shared else []
    found = []
    for _ in range(200):
        prompt = [*system, {"role": "user", "content": text(wanted.prompt)}]
        answers = [[{"role": "assistant", "content": text(wanted.answer)}] for _ in range(2)]
        chat = {"messages": [*prompt, *answers[0]]}
        found.append({"prompt": prompt, "chosen": answers[0], "rejected": answers[1]} if wanted.pairs else chat)
    return found


# -- the table --


def mib(size: int) -> str:
    return f"{size / 2**20:,.0f}"


def report(found: list[Measurement]) -> str:
    lines = []
    for one in found:
        wanted = ALL[one.name]
        stored = "yes" if one.checkpointing else "no"
        lines.append(
            f"| {wanted.model} | {wanted.title} | {one.tokens:,} | {stored} | {mib(one.estimate)} | {mib(one.measured)} | "
            f"{one.error:+.1%} |"
        )
    used = [f"- `{name}`: {TITLES[name]}" for name in TITLES if any(ALL[one.name].model == name for one in found)]
    most, least = max(one.error for one in found), min(one.error for one in found)
    return "\n".join(
        [
            "# The memory estimate against measured peaks",
            "",
            "`finetune-trainer train` in a process of its own, on a CPU, in bfloat16 unless named; LoRA of rank 16 on all linear "
            "layers unless named. Eight steps, each run with checkpoints and validations. Estimated is what `finetune-trainer "
            "estimate` says after preflight, with the micro-batch that both choose; measured is the largest resident set that "
            "the kernel saw, shared libraries and mapped files included. Written by `make bench-estimate`.",
            "",
            "| model | run | micro-batch, tokens | checkpointing | estimated, MiB | measured, MiB | error |",
            "|---|---|---|---|---|---|---|",
            *lines,
            "",
            f"Errors reach from {least:+.1%} to {most:+.1%}.",
            "",
            *used,
            "",
            *gpus.report(gpus.stored(FOLDER / "estimate-gpus.json")),
        ]
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except say.Problem as problem:
        say.line(f"bench-estimate: {problem}")
        sys.exit(1)
