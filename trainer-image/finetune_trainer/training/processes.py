"""Several processes that train one adapter: the rank of this one, and sums over all of them.

A pod is a node; on each node runs one process for each of its GPUs, or one on CPUs. Every process computes a part of each
step's examples, gradients are added up once a step, and since all then do the same arithmetic on the same numbers, their
adapters stay equal bit by bit. Only rank 0 reports, saves and uploads.

The environment variables come from the operator (run.NODES, run.NODE, run.RENDEZVOUS) or from torchrun.
"""

import contextlib
import dataclasses
import datetime
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from finetune_api import run
from finetune_trainer.process import errors, log, machine

PATIENCE = datetime.timedelta(minutes=30)
"""How long a process waits for the others: loading the model, or a validation, may take longer there."""


@dataclasses.dataclass(frozen=True)
class ProcessGroup:
    """This process among the others."""

    rank: int = 0
    size: int = 1
    local: int = 0
    """Number of this process on its node, and of the GPU that it uses."""

    @property
    def first(self) -> bool:
        return self.rank == 0

    def add(self, tensors: Sequence[torch.Tensor], numbers: Sequence[float] = ()) -> list[float]:
        """Each tensor becomes, in place, its sum over all processes; returns the numbers' sums. Raises Stopped when another
        process is gone: that process reports why."""
        if self.size == 1:
            return list(numbers)
        where = tensors[0].device if tensors else torch.device("cpu")
        flat = torch.cat([*(tensor.reshape(-1).float() for tensor in tensors)]) if tensors else torch.zeros(0)
        exact = torch.tensor(list(numbers), dtype=torch.float64, device=where)
        with stopping_with_others():
            torch.distributed.all_reduce(exact)
            if tensors:
                torch.distributed.all_reduce(flat)
        offset = 0
        for tensor in tensors:
            tensor.copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
            offset += tensor.numel()
        totals: list[float] = exact.tolist()
        return totals

    def maximum(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.size == 1:
            return number
        totals = torch.tensor(number)
        if torch.distributed.get_backend() == "nccl":
            totals = totals.cuda()
        with stopping_with_others():
            torch.distributed.all_reduce(totals, torch.distributed.ReduceOp.MAX)
        return int(totals)

    def wait(self) -> None:
        """Waits until all processes have come here."""
        if self.size > 1:
            with stopping_with_others():
                torch.distributed.barrier()


@contextlib.contextmanager
def stopping_with_others() -> Iterator[None]:
    """Ends this process as SIGTERM would when another one is gone."""
    try:
        yield
    except RuntimeError as error:
        log.warning("another training process is gone; ending too", problem=errors.describe(error))
        raise errors.Stopped("another training process is gone; the next attempt resumes") from error


def number(name: str, default: int) -> int:
    return int(os.environ.get(name) or default)


def shared_folder() -> pathlib.Path:
    """The working folder of the node's first process."""
    named = os.environ.get("FINETUNE_SHARED")
    return pathlib.Path(named) if named else machine.work()


def join(where: torch.device) -> ProcessGroup:
    """Joins the group of all processes. Raises Stopped when the others do not come."""
    nodes, per_node = number(run.NODES, 1), number("LOCAL_WORLD_SIZE", 1)
    size = number("WORLD_SIZE", nodes * per_node)
    if size == 1:
        return ProcessGroup()
    local = number("LOCAL_RANK", 0)
    rank = number("RANK", number(run.NODE, 0) * per_node + local)
    rendezvous = os.environ.get(run.RENDEZVOUS) or f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    log.info("joining the other training processes", rank=rank, size=size, at=rendezvous)
    with stopping_with_others():
        torch.distributed.init_process_group(
            "nccl" if where.type == "cuda" else "gloo",
            init_method=f"tcp://{rendezvous}",
            rank=rank,
            world_size=size,
            timeout=PATIENCE,
        )
    return ProcessGroup(rank, size, local)


def leave(group: ProcessGroup) -> None:
    if group.size > 1 and torch.distributed.is_initialized():
        with contextlib.suppress(RuntimeError):
            torch.distributed.destroy_process_group()


def start_siblings(gpus: int) -> "SiblingProcesses":
    """Starts another process of this command for each further GPU of the node, unless torchrun did."""
    if "LOCAL_RANK" in os.environ:
        isolate()
        return SiblingProcesses([])
    if gpus < 2:
        return SiblingProcesses([])
    os.environ["LOCAL_WORLD_SIZE"] = str(gpus)
    if number(run.NODES, 1) == 1:
        os.environ.setdefault(run.RENDEZVOUS, f"127.0.0.1:{run.RENDEZVOUS_PORT}")
    command = [sys.executable, "-m", "finetune_trainer", *sys.argv[1:]]
    started = [subprocess.Popen(command, env=os.environ | {"LOCAL_RANK": str(at)}) for at in range(1, gpus)]
    os.environ["LOCAL_RANK"] = "0"
    return SiblingProcesses(started)


def isolate() -> None:
    """Gives a further process of the node its own folder, and no port and no outcome; it shares only the base model with the
    first."""
    local = number("LOCAL_RANK", 0)
    if local and "FINETUNE_SHARED" not in os.environ:
        work = machine.work()
        os.environ |= {
            "FINETUNE_SHARED": str(work),
            "FINETUNE_WORK": str(work / f"rank{local}"),
            "FINETUNE_METRICS_PORT": "0",
            "FINETUNE_TERMINATION_PATH": os.devnull,
        }


@dataclasses.dataclass
class SiblingProcesses:
    """The further processes of this node."""

    started: list[subprocess.Popen[Any]]

    def stop(self) -> None:
        """Stops those that still run, and waits a few seconds for them."""
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
