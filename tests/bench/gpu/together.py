"""Two processes that train together, each on a GPU of its own: with the whole base model in each, and with its layers sharded.

`measure` starts them; `python -m tests.bench.gpu.together` is one of them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import torch
from tests.bench.gpu import models, speed
from tests.support import ports

from finetune_api import run
from finetune_trainer.engine import lora, model, passes, sharded
from finetune_trainer.training import objective, processes

WAYS = ("replicated", "sharded")


def cells(*, on_gpu: bool, seconds: float) -> Iterator[speed.Cell]:
    """Shrunk on the CPU."""
    name = next(iter(models.SHAPES))
    for work in (speed.WORKLOADS[0], speed.WORKLOADS[3]):
        for way in WAYS:
            engine = f"two processes, {way}"
            try:
                rate, _, peak, first = measure(name, work, way, on_gpu=on_gpu, seconds=seconds)
            except Exception as problem:
                fault = f"{type(problem).__name__}: {problem}"[:300]
                yield speed.Cell(name, work.name, engine, 0.0, 0.0, 0, 0, 0.0, fault=fault, allowed=False)
                continue
            yield speed.Cell(name, work.name, engine, round(rate, 1), 0.0, peak if on_gpu else 0, 0, round(first, 2))


def measure(
    name: str, work: speed.Workload, way: str, *, on_gpu: bool, seconds: float
) -> tuple[float, float, int, float]:
    """Tokens per second of both together, their sum of losses in the first step, peak bytes of the first, seconds to the end of
    the first step."""
    port = ports.free()
    begun = time.monotonic()
    with tempfile.NamedTemporaryFile("r") as result:
        started = []
        for rank in range(2):
            environment = os.environ | {
                run.RENDEZVOUS: f"127.0.0.1:{port}",
                "LOCAL_WORLD_SIZE": "2",
                "LOCAL_RANK": str(rank),
            }
            command = [sys.executable, "-m", "tests.bench.gpu.together", name, work.name, way, result.name]
            command += ["--seconds", str(seconds), *(["--gpu"] if on_gpu else [])]
            started.append(subprocess.Popen(command, env=environment))
        codes = [process.wait(600) for process in started]
        if any(codes):
            raise RuntimeError(f"two processes, {way}, ended with {codes}")
        found = json.load(result)
    return found["rate"], found["loss"], found["peak"], found["first"] - begun


def main() -> None:
    parser = argparse.ArgumentParser()
    for argument in ("model", "work", "way", "result"):
        parser.add_argument(argument)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--gpu", action="store_true")
    given = parser.parse_args()
    where = torch.device("cuda", processes.number("LOCAL_RANK", 0)) if given.gpu else torch.device("cpu")
    if not given.gpu:
        torch.set_num_threads(1)
    group = processes.join(where, processes.SiblingProcesses([]))
    work = next(one for one in speed.WORKLOADS if one.name == given.work)
    config = models.config_of(given.model, shrunk=not given.gpu)
    shares = given.way == "sharded"
    tuned = models.adapted(config, torch.device("cpu") if shares else where, quantised=work.quantised)
    if shares:
        sharded.shard(tuned, where)
        for weight in lora.parameters(tuned).values():
            weight.data = weight.data.to(where)
    engine = passes.of(tuned, model.head(tuned.get_base_model()), where, sharded=shares)
    rows = work.rows(config.vocab_size, 1.0 if given.gpu else 0.05)
    weights, goal = lora.parameters(tuned), objective.Supervised()
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-4, weight_decay=0.0, fused=True)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        value = goal.learn(engine, rows, 2 * goal.units(rows))
        (total,) = group.add([weight.grad for weight in weights.values() if weight.grad is not None], [value])
        optimizer.step()
        engine.refresh()
        return total

    loss, first = step(), time.monotonic()
    steps = 0
    while not steps or group.maximum(int(time.monotonic() - first < given.seconds)):
        step()
        steps += 1
    rate = 2 * sum(len(row.ids) for row in rows) * steps / (time.monotonic() - first)
    if group.first:
        with open(given.result, "w") as file:
            json.dump({"rate": rate, "loss": loss, "peak": model.peak(where), "first": first}, file)
    processes.leave()


if __name__ == "__main__":
    main()
