"""Where a step's time and memory go: `python -m tests.bench.trainer.profile` writes docs/benchmarks/trainer-profile.md.

Each workload is trained by the product, as in the benchmark; its last step runs under torch's profiler.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

# hack/ has what the development tools share; it is no package that could be installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "hack"))

from tests.bench.trainer import batch, lengths, machine, models, ours, workloads

from toolbox import say

PAGE = pathlib.Path(__file__).resolve().parents[3] / "docs/benchmarks/trainer-profile.md"
WORKLOADS = ("short", "shared-system")
STEPS = 4
SMALL = 64
"""A product with a side of at most so many is the adapter's or the attention's."""

PRODUCTS = {"aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm_"}
CURVES = {"softmax", "silu", "gelu", "exp", "log", "tanh"}
MOVES = {"copy", "index", "fill", "zero", "scatter", "gather", "cat", "embedding"}
NOTHING = {"view", "slice", "select", "strided", "empty", "transpose", "split", "narrow", "expand", "detach"}
KINDS = {
    "large": "matrix products of the linear layers and the output head",
    "small": "matrix products of the attention and of the adapter's rank",
    "curves": "softmax, activation, exponentials",
    "plain": "other element-wise work and sums: norms, rotary embedding, gradients, AdamW",
    "moves": "copies and gathers",
    "rest": "calls: views, Python, the operators' own start",
}


def main() -> int:
    rate = machine.rate()
    found = {name: measure(name) for name in WORKLOADS}
    PAGE.write_text(page(found, rate))
    return 0


def measure(name: str) -> dict[str, Any]:
    """The child's answer for a workload."""
    model = models.prepare(models.SMALL)
    given = batch.make(workloads.BY_NAME[name], STEPS, lengths.load(model))
    with tempfile.TemporaryDirectory() as temporary, say.step(name, "a minute"):
        work = pathlib.Path(temporary)
        ours.train(model, work, given)  # preflight, and what a first run leaves in the page cache
        for file in (work / "out").rglob("adapter/*"):
            file.unlink()
        place = {"FINETUNE_WORK": str(work / "scratch"), "FINETUNE_METRICS_PORT": "0"}
        words = [
            sys.executable,
            "-m",
            "tests.bench.trainer.profile",
            str(work / "run.json"),
            str(work / "profile.json"),
        ]
        environment = os.environ | place | {"FINETUNE_TERMINATION_PATH": str(work / "end")}
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise say.Problem(done.stderr[-2000:])
        answer: dict[str, Any] = json.loads((work / "profile.json").read_text())
    return answer | {"tokens": given.tokens()[-1]}


def child(run_file: str, answer: pathlib.Path) -> int:
    """Trains, with the profiler around the last step."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as __main__ does, but before torch is here
    import time

    import torch

    from finetune_trainer import __main__ as trainer
    from finetune_trainer.engine import decoder
    from finetune_trainer.training import loop

    step, forward = loop.Loop.step, decoder.Decoder.forward
    computed: list[int] = []

    def counted(self: Any, given: Any, **options: Any) -> Any:
        computed.append(given.tokens)
        return forward(self, given, **options)

    def profiled(self: Any) -> None:
        if self.state.step + 1 < self.plan.steps:
            return step(self)
        computed.clear()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
            begun = time.perf_counter()
            step(self)
            seconds = time.perf_counter() - begun
        averages = profiler.key_averages(group_by_input_shape=True)
        rows = [[one.key, one.input_shapes, one.self_cpu_time_total / 1e6] for one in averages]
        answer.write_text(json.dumps({"seconds": seconds, "computed": sum(computed), "rows": rows}))

    loop.Loop.step, decoder.Decoder.forward = profiled, counted  # type: ignore[method-assign, assignment]
    return trainer.main(["train", "--run", run_file])


def kind(name: str, shapes: list[list[int]]) -> str:
    if name in PRODUCTS:
        sides = [side for shape in shapes for side in shape[-2:]]
        return "large" if name == "aten::mm" and min(sides) > SMALL else "small"
    if name == "aten::t" or any(word in name for word in NOTHING):
        return "rest"
    for group, words in (("curves", CURVES), ("moves", MOVES)):
        if any(word in name for word in words):
            return group
    return "plain" if name.startswith("aten::") else "rest"


def page(found: dict[str, dict[str, Any]], rate: float) -> str:
    lines = [
        "# Where a step's time goes",
        "",
        "The product trains SmolLM2-135M as in [trainer.md](trainer.md); the last of its steps ran under torch's profiler, which "
        "itself makes it somewhat slower. Written by `make bench-trainer-profile`.",
        "",
        f"The machine multiplies bfloat16 matrices at {rate:,.0f} GFLOP/s at best.",
    ]
    for name, one in found.items():
        sums = dict.fromkeys(KINDS, 0.0)
        for key, shapes, seconds in one["rows"]:
            sums[kind(key, shapes)] += seconds
        sums["rest"] += max(0.0, one["seconds"] - sum(sums.values()))
        total = sum(sums.values())
        bound = one["tokens"] / sums["large"]
        lines += [
            "",
            f"## {workloads.BY_NAME[name].title}",
            "",
            f"{one['tokens']:,} tokens of 16 examples, of which {one['computed']:,} are computed (shared beginnings once, filled "
            f"up to round sizes), in {one['seconds']:.2f} s: {one['tokens'] / one['seconds']:,.0f} tokens/s.",
            "",
            "| part | milliseconds | share |",
            "|---|---|---|",
            *(f"| {KINDS[group]} | {1000 * value:,.0f} | {value / total:.0%} |" for group, value in sums.items()),
            "",
            f"If only the first line took time, it would be {bound:,.0f} tokens/s.",
        ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    if len(sys.argv) == 3:
        sys.exit(child(sys.argv[1], pathlib.Path(sys.argv[2])))
    try:
        sys.exit(main())
    except say.Problem as problem:
        say.line(f"bench-trainer-profile: {problem}")
        sys.exit(1)
