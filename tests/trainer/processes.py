"""Training in processes of their own that start in a moment: forked from one that has torch and transformers loaded."""

import dataclasses
import json
import os
import pathlib
from multiprocessing.process import BaseProcess
from typing import Any

from finetune_api import run
from support import ports
from support.warm import context

CGROUP = "TEST_CGROUP"
"""A folder that stands for the process's cgroup, with its limit of memory."""

DIFFERS = "TEST_DIFFERS"
"""Set: the plan is that each process holds the base, and the trainer's own passes do not prove themselves."""


SHORT = "TEST_SHORT"
"""Tokens of a micro-batch of which the memory of the second process is short for more; for the comparison of passes too."""


def _main(run_file: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    from finetune_trainer import __main__
    from finetune_trainer.process import machine

    if limit := os.environ.get(CGROUP):
        machine.CGROUP = pathlib.Path(limit)

    if os.environ.get(DIFFERS):
        _differ()
    if (tokens := os.environ.get(SHORT)) and os.environ[run.NODE] == "1":
        _run_short(int(tokens))
    code = __main__.main(["train", "--run", run_file])
    os._exit(code)


def _differ() -> None:
    from finetune_trainer.engine import comparison, layers
    from finetune_trainer.stages import train

    planned = train.parallel

    def whole(*given: Any) -> Any:
        plan = planned(*given)
        case = dataclasses.replace(plan.case, device=dataclasses.replace(plan.case.device, shards=1))
        return dataclasses.replace(plan, case=case)

    def refuse(*_: Any) -> None:
        raise layers.Unknown("states differ by 1")

    train.parallel, comparison.precision = whole, refuse  # type: ignore[assignment]


def _run_short(tokens: int) -> None:
    import torch

    from finetune_trainer.engine import comparison, passes

    forward = passes.Plain.forward

    def short(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def limited(self: Any, rows: Any, **given: Any) -> Any:
        if sum(len(row.ids) for row in rows) > tokens:
            short()
        return forward(self, rows, **given)

    comparison.precision, passes.Plain.forward = short, limited  # type: ignore[assignment, method-assign]


def start(spec: run.Run, folder: pathlib.Path, **environment: str) -> BaseProcess:
    """`finetune-trainer train` of a run, with its log in `folder`/log."""
    run_file = folder / f"{spec.revision}.json"
    run_file.write_text(spec.model_dump_json(by_alias=True, exclude_none=True))
    own = {
        "FINETUNE_WORK": str(folder / f"work-{len(list(folder.iterdir()))}"),
        "FINETUNE_METRICS_PORT": "0",
        "FINETUNE_TERMINATION_PATH": str(folder / "termination"),
        "FINETUNE_LOG_LEVEL": "WARNING",
        "OMP_NUM_THREADS": "1",
    }
    process = context.Process(target=_main, args=(str(run_file), own | environment))
    process.start()
    return process


def together(spec: run.Run, folder: pathlib.Path, count: int, **more: str) -> list[BaseProcess]:
    """Several processes that train together, as the pods of several nodes would."""
    port = ports.free()
    started = []
    for node in range(count):
        place = folder / f"node{node}"
        place.mkdir(exist_ok=True)
        environment = {run.NODES: str(count), run.NODE: str(node), run.RENDEZVOUS: f"127.0.0.1:{port}"}
        started.append(start(spec, place, **environment, **more))
    return started


def ended(process: BaseProcess, seconds: float = 400) -> int:
    """The exit code; a process that does not end is an error."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"the process did not end within {seconds} s")
    return process.exitcode


def losses(spec: run.Run) -> list[float]:
    """The loss of every step of a finished run."""
    path = pathlib.Path(spec.layout.adapter.removeprefix("file://")) / "training.json"
    return [point["loss"] for point in json.loads(path.read_text())["history"]]
