"""The evaluation's answers against transformers' own: `python -m tests.bench.evaluation` writes docs/benchmarks/evaluation.*.

--repetitions N, --prompts N, --limit N, --workload NAME    a smaller run, into out/benchmarks
--render       writes the page again from evaluation.json
--check        only compares the page with evaluation.json
"""

import argparse
import importlib.metadata
import json
import pathlib
import sys
import tempfile
from typing import Any

# hack/ has what the development tools share; it is no package that could be installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "hack"))

from tests.bench.evaluation import report, side, workloads
from tests.bench.trainer import machine, models, process

from toolbox import cache, say

COMMITTED = cache.REPOSITORY / "docs" / "benchmarks"
PARTIAL = cache.REPOSITORY / "out" / "benchmarks"

REPETITIONS, PROMPTS, LIMIT = 3, 96, 64
ALONE = 8
"""Prompts that transformers answers one by one: its rate does not depend on how many these are."""
PACKAGES = ("torch", "transformers", "peft")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", action="append", choices=list(workloads.BY_NAME))
    parser.add_argument("--side", action="append", choices=list(side.SIDES))
    for name in ("repetitions", "prompts", "limit"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument(
        "--adapter", action="store_true", help="transformers computes the adapter instead of merging it"
    )
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    chosen = (options.workload, options.side, options.repetitions, options.prompts, options.limit, options.adapter)
    folder = options.output or (PARTIAL if any(chosen) else COMMITTED)
    if options.check or options.render:
        return again(folder, check=options.check)
    found = measure(options, models.prepare(models.SMALL), folder)
    say.result(report.page(found))
    return 0


def again(folder: pathlib.Path, *, check: bool) -> int:
    """The page from the runs: written again, or compared with what is there."""
    if check and not (folder / report.DATA).exists():
        return 0
    found = report.read(folder)
    if not check:
        report.write(found, folder)
    elif (folder / report.PAGE).read_text() != report.page(found):
        say.line(f"{folder / report.PAGE} is not what its runs give: make bench-evaluation ARGS=--render")
        return 1
    return 0


def measure(options: argparse.Namespace, model: pathlib.Path, folder: pathlib.Path) -> report.Results:
    """Every side answers every workload, in turns; the results are written after each run."""
    import transformers

    found = report.Results(
        machine.describe(),
        {name: importlib.metadata.version(name) for name in PACKAGES},
        " ".join(["make bench-evaluation", *([f'ARGS="{" ".join(sys.argv[1:])}"'] if sys.argv[1:] else [])]),
        options.limit or LIMIT,
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(model, local_files_only=True)

    def encode(turns: workloads.Turns) -> list[int]:
        ids: list[int] = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
        return ids

    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(temporary)
        with say.step("a random adapter", "10 s"):
            side.write_adapter(model, work / "adapter")
        for name in options.workload or list(workloads.BY_NAME):
            prompts = workloads.prompts(workloads.BY_NAME[name], options.prompts or PROMPTS, encode)
            lengths = [len(prompt) for prompt in prompts]
            found.asked[name] = report.Asked(len(prompts), workloads.shared(prompts), min(lengths), max(lengths))
            answers: dict[str, list[list[int]]] = {}
            job = {
                "model": str(model),
                "adapter": str(work / "adapter"),
                "precision": "BFloat16",
                "merged": not options.adapter,
                "stops": [tokenizer.eos_token_id],
                "limit": found.limit,
            }
            for repetition in range(options.repetitions or REPETITIONS):
                for one in options.side or list(side.SIDES):
                    some = prompts[:ALONE] if one == side.SINGLE else prompts
                    run, written = answer(job | {"side": one, "prompts": some}, name, repetition, work)
                    found.runs.append(run)
                    answers.setdefault(one, written)
                    found.agreements = [one for one in found.agreements if one.workload != name]
                    found.agreements += agreements(name, answers)
                    report.write(found, folder)
                    say.line(f"    {name} {repetition + 1} {one:30s} {run.rate:7.1f} tokens/s {run.seconds:6.1f} s")
    return found


def answer(
    job: dict[str, Any], workload: str, repetition: int, work: pathlib.Path
) -> tuple[report.Run, list[list[int]]]:
    """One run in a process of its own, and its answers. Raises say.Problem."""
    given, result = work / "job.json", work / "result.json"
    given.write_text(json.dumps(job | {"result": str(result)}))
    environment = side.ENVIRONMENT if job["side"] == side.OURS else {}
    command = [sys.executable, "-m", "tests.bench.evaluation.side", given]
    finished = process.run(command, environment, work / "run.log")
    document = json.loads(result.read_text())
    answers: list[list[int]] = document["answers"]
    tokens = sum(map(len, answers))
    run = report.Run(workload, job["side"], repetition, len(answers), tokens, document["seconds"], finished.peak)
    return run, answers


def agreements(workload: str, answers: dict[str, list[list[int]]]) -> list[report.Agreement]:
    """Of each two sides, in the order in which they ran; those that both answered."""
    found, sides = [], list(answers)
    for place, one in enumerate(sides):
        for other in sides[place + 1 :]:
            both = list(zip(answers[one], answers[other], strict=False))
            same = sum(mine == theirs for mine, theirs in both)
            found.append(report.Agreement(workload, one, other, same, len(both)))
    return found


if __name__ == "__main__":
    try:
        sys.exit(main())
    except say.Problem as problem:
        say.line(f"bench-evaluation: {problem}")
        sys.exit(1)
