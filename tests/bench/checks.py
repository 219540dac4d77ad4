"""A million rows through preflight's checks: `python tests/bench/checks.py [ROWS]` writes docs/benchmarks/checks.md.

The rows are made up from a seed: chats of one or two turns, with a little of everything that the rules look for. They are read,
encoded with SmolLM2's tokenizer, reviewed and split as preflight does it, in a process of its own, and each part is timed.
"""

import dataclasses
import json
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "hack"))

ROWS = 1_000_000


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))))
        return
    import model  # hack/model.py

    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(temporary)
        with (work / "train.jsonl").open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in made(rows))
        size = (work / "train.jsonl").stat().st_size
        command = [sys.executable, __file__, "--child", str(work), str(model.prepare())]
        result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    text = report(rows, size, result)
    (REPOSITORY / "docs/benchmarks/checks.md").write_text(text)
    print(text)


def made(count: int) -> Iterator[dict[str, Any]]:
    """Chats of about 100 words, one in a thousand of them a repetition, nearly one, or with something in it."""
    rng = random.Random(1)
    words = [
        "".join(rng.choices("etaoinshrdlucmfwypvbgkjqxz", range(26, 0, -1), k=rng.randint(2, 9))) for _ in range(20_000)
    ]
    before: list[dict[str, Any]] = []
    for number in range(count):
        if before and number % 1000 < 4:
            row = json.loads(json.dumps(rng.choice(before)))
            answer = row["messages"][-1]
            if number % 1000 == 1:
                answer["content"] = answer["content"].replace(" ", " really ", 1)
            elif number % 1000 == 2:
                answer["content"] += f" Mail {rng.choice(words)}@{rng.choice(words)}.io"
            elif number % 1000 == 3:
                answer["content"] = "I'm sorry, but I can't help with that."
        else:
            turns = [{"role": "system", "content": "You are the desk of a library. Answer politely."}]
            for _ in range(1 + number % 2):
                turns.append({"role": "user", "content": " ".join(rng.choices(words, k=rng.randint(10, 40))) + "?"})
                turns.append(
                    {"role": "assistant", "content": " ".join(rng.choices(words, k=rng.randint(10, 40))) + "."}
                )
            row = {"messages": turns}
        if len(before) < 1000:
            before.append(row)
        yield row


def child(work: pathlib.Path, base: pathlib.Path) -> dict[str, Any]:
    """Reads, reviews and splits; the seconds of each part, and the peak memory in bytes."""
    from finetune_api import run
    from finetune_trainer.checks import review
    from finetune_trainer.data import tokens
    from finetune_trainer.stages import collect, preflight
    from finetune_trainer.store import storage

    document = {
        "name": "checks",
        "namespace": "bench",
        "revision": "r1",
        "evaluationHash": "e1",
        "servedModelName": "checks",
        "baseModel": {"name": base.name, "source": f"file://{base}"},
        "dataset": {"train": [f"file://{work}/train.jsonl"]},
        "storage": {"output": f"file://{work}/out"},
        "training": {},
    }
    spec = run.Run.model_validate(document)
    encoder = tokens.load(base, spec.training)
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clocks = {"encode": 0.0, "review": 0.0}
    timed(tokens.Encoder, "details", clocks, "encode")
    timed(review.Review, "take", clocks, "review")
    begun = time.perf_counter()
    gathered = collect.read_all(spec, storage.Storage(), encoder, work)
    read = time.perf_counter()
    judgement = gathered.review.apply_rules(gathered.corpus, gathered.examples)
    place = judgement.after_split(preflight.assign(spec, judgement))
    judged = time.perf_counter()
    return {
        "seconds": {**clocks, "rest": read - begun - sum(clocks.values()), "judge": judged - read},
        "start": start * 1024,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "kept": int((place >= 0).sum()),
        "tokens": int(gathered.corpus.lengths.sum()),
        "findings": [dataclasses.replace(finding, places=()).line() for finding in judgement.findings],
    }


def timed(kind: type, name: str, clocks: dict[str, float], clock: str) -> None:
    """Adds up the seconds spent in a method."""
    method: Callable[..., Any] = getattr(kind, name)

    def counted(*given: Any) -> Any:
        begun = time.perf_counter()
        try:
            return method(*given)
        finally:
            clocks[clock] += time.perf_counter() - begun

    setattr(kind, name, counted)


def report(rows: int, size: int, result: dict[str, Any]) -> str:
    seconds, peak = result["seconds"], result["peak"] / 2**20
    parts = {
        "read, parse, write to the disk": seconds["rest"],
        "chat template and tokenizer": seconds["encode"],
        "look at every row (patterns, hashes, sketches, languages)": seconds["review"],
        "judge: duplicates, near duplicates, contradictions, split, leakage": seconds["judge"],
    }
    whole = sum(parts.values())
    lines = [f"| {name} | {part:.0f} | {rows / part:,.0f} |" for name, part in parts.items()]
    return "\n".join(
        [
            "# Data checks on a million rows",
            "",
            f"{rows:,} chats of one or two turns ({size / 2**20:,.0f} MiB, {result['tokens'] / 1e6:,.0f} million tokens of "
            f"SmolLM2), all rules, 2 cores that other work shared. Written by `make bench-checks`.",
            "",
            "| part | seconds | rows/s |",
            "|---|---|---|",
            *lines,
            f"| **together** | **{whole:.0f}** | **{rows / whole:,.0f}** |",
            "",
            f"Peak memory {peak:,.0f} MiB, of which {result['start'] / 2**20:,.0f} MiB were taken before the first row (Python, "
            "transformers, the tokenizer's vocabulary).",
            "",
            f"{result['kept']:,} rows were kept. Found:",
            "",
            *(f"- {line}" for line in result["findings"]),
            "",
        ]
    )


if __name__ == "__main__":
    main()
