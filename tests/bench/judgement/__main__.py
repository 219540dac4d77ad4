"""Which method wins on tasks of many kinds, and what the product says: `python -m tests.bench.judgement` writes
docs/benchmarks/judgement.*, a row as each task is done. It runs `finetune run`, so that what is judged is the product.

--task NAME      one of the tasks; may be repeated. Without it all that have no row of this size or a larger one yet
--rows N, --epochs N    smaller jobs; a row of a larger one stays
--render         writes the page again from judgement.json
--check          only compares the page with judgement.json
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

# hack/ has what the development tools share; it is no package that could be installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "hack"))

from tests.bench.judgement import report, tasks
from tests.bench.trainer import machine, models

from toolbox import cache, say

COMMITTED = cache.REPOSITORY / "docs" / "benchmarks"
ROWS, EPOCHS = 600, 3.0
ENDED = (0, 6)
"""Exit codes of `finetune run` for a job that was judged: done, or a gate that did not pass."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", choices=list(tasks.BY_NAME))
    parser.add_argument("--rows", type=int)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    found = report.read(COMMITTED)
    if options.check:
        return check(found, COMMITTED)
    if not options.render:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        text = f"{machine.processor()}, {len(os.sched_getaffinity(0))} cores, {memory / 2**30:.0f} GiB"
        command = " ".join(["make bench-judgement", *([f'ARGS="{" ".join(sys.argv[1:])}"'] if sys.argv[1:] else [])])
        model = str(models.prepare(models.SMALL))
        count, epochs = options.rows or ROWS, options.epochs or EPOCHS
        done = [name for name, row in found.items() if row.size >= (count, epochs)]
        for name in options.task or [name for name in tasks.BY_NAME if name not in done]:
            answer = run(tasks.BY_NAME[name], count, model, epochs)
            made = report.of(answer, tasks.BY_NAME[name], count, epochs, command, text)
            found = report.with_row(report.read(COMMITTED), made)
            report.write(found, COMMITTED)
            say.line(f"    {name}: {made.says}")
    report.write(found, COMMITTED)
    return 0 if all(one.honest for one in found.values()) else 1


def check(found: dict[str, report.Row], folder: pathlib.Path) -> int:
    if found and (folder / report.PAGE).read_text() != report.page(list(found.values())):
        say.line(f"{folder / report.PAGE} is not what its rows give: make bench-judgement ARGS=--render")
        return 1
    return 0


def run(task: tasks.Task, count: int, model: str, epochs: float) -> dict[str, object]:
    """What `finetune run` prints of a task. Its folder stays, so that a stopped run resumes. Raises say.Problem."""
    folder = cache.folder("bench") / "judgement" / f"{task.name}-{count}-{epochs:g}"
    file = tasks.write(task, count, model, folder, epochs)
    command = [sys.executable, "-m", "finetune_cli", "run", str(file), "--output", "json"]
    with say.step(f"{task.name}: {count} rows", "an hour on two cores"):
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    try:
        answer: dict[str, object] = json.loads(done.stdout)
    except ValueError:
        raise say.Problem(f"`{' '.join(command)}` printed no answer; exit code {done.returncode}") from None
    if done.returncode not in ENDED:
        raise say.Problem(f"{task.name}: {answer.get('message')}")
    return answer


if __name__ == "__main__":
    try:
        sys.exit(main())
    except say.Problem as problem:
        say.line(f"bench-judgement: {problem}")
        sys.exit(1)
