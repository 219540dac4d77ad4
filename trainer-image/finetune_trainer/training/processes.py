"""Several processes that train one adapter: who this one is, and the sums over all of them.

A pod is a node; on each node runs one process for each of its GPUs, or one on CPUs. Every process computes a part of each
step's examples, gradients are added up once a step, and since all then do the same arithmetic on the same numbers, their
adapters stay equal bit by bit. Rank 0 alone reports, saves and delivers.

The environment is the operator's (run.NODES, run.NODE, run.RENDEZVOUS), or torchrun's.
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
"""How long a process waits for the others: they load the model, or validate, at their own pace."""


@dataclasses.dataclass(frozen=True)
class ProcessGroup:
    """This process among the others."""

    rank: int = 0
    size: int = 1
    local: int = 0
    """Number of this process on its node: the GPU that it uses."""

    @property
    def first(self) -> bool:
        return self.rank == 0

    def add(self, tensors: Sequence[torch.Tensor], numbers: Sequence[float] = ()) -> list[float]:
        """Each tensor becomes, in place, its sum over all processes; returns the numbers' sums. Raises Stopped when another
        process is gone: what it was stopped by is its own to tell."""
        if self.size == 1:
            return list(numbers)
        where = tensors[0].device if tensors else torch.device("cpu")
        flat = torch.cat([*(tensor.reshape(-1).float() for tensor in tensors)]) if tensors else torch.zeros(0)
        exact = torch.tensor(list(numbers), dtype=torch.float64, device=where)
        with lost():
            torch.distributed.all_reduce(exact)
            if tensors:
                torch.distributed.all_reduce(flat)
        offset = 0
        for tensor in tensors:
            tensor.copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
            offset += tensor.numel()
        found: list[float] = exact.tolist()
        return found

    def most(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.size == 1:
            return number
        found = torch.tensor(number)
        if torch.distributed.get_backend() == "nccl":
            found = found.cuda()
        with lost():
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return int(found)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            with lost():
                torch.distributed.barrier()


@contextlib.contextmanager
def lost() -> Iterator[None]:
    """The loss of another process ends this one as if it were asked to stop."""
    try:
        yield
    except RuntimeError as error:
        log.warning("another training process is gone; ending too", problem=errors.describe(error))
        raise errors.Stopped("another training process is gone; the next attempt resumes") from error


def number(name: str, otherwise: int) -> int:
    return int(os.environ.get(name) or otherwise)


def shared() -> pathlib.Path:
    """The working folder of the node's first process."""
    named = os.environ.get("FINETUNE_SHARED")
    return pathlib.Path(named) if named else machine.work()


def join(where: torch.device) -> ProcessGroup:
    """Meets the other processes. Raises Stopped when they do not come."""
    nodes, per_node = number(run.NODES, 1), number("LOCAL_WORLD_SIZE", 1)
    size = number("WORLD_SIZE", nodes * per_node)
    if size == 1:
        return ProcessGroup()
    local = number("LOCAL_RANK", 0)
    rank = number("RANK", number(run.NODE, 0) * per_node + local)
    meeting = os.environ.get(run.RENDEZVOUS) or f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    log.info("meeting the other training processes", rank=rank, size=size, at=meeting)
    with lost():
        torch.distributed.init_process_group(
            "nccl" if where.type == "cuda" else "gloo",
            init_method=f"tcp://{meeting}",
            rank=rank,
            world_size=size,
            timeout=PATIENCE,
        )
    return ProcessGroup(rank, size, local)


def leave(ranks: ProcessGroup) -> None:
    if ranks.size > 1 and torch.distributed.is_initialized():
        with contextlib.suppress(RuntimeError):
            torch.distributed.destroy_process_group()


def start_others(gpus: int) -> "Others":
    """Starts one more process of this very command for each GPU of the node but the first, unless torchrun did."""
    if "LOCAL_RANK" in os.environ:
        keep_apart()
        return Others([])
    if gpus < 2:
        return Others([])
    os.environ["LOCAL_WORLD_SIZE"] = str(gpus)
    if number(run.NODES, 1) == 1:
        os.environ.setdefault(run.RENDEZVOUS, f"127.0.0.1:{run.RENDEZVOUS_PORT}")
    command = [sys.executable, "-m", "finetune_trainer", *sys.argv[1:]]
    started = [subprocess.Popen(command, env=os.environ | {"LOCAL_RANK": str(at)}) for at in range(1, gpus)]
    os.environ["LOCAL_RANK"] = "0"
    return Others(started)


def keep_apart() -> None:
    """A node's further processes share its base model with the first, and nothing else: no folder, no port, no answer."""
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
class Others:
    """The node's further processes."""

    started: list[subprocess.Popen[Any]]

    def stop(self) -> None:
        """Asks those that are left to stop, and waits for them for a few seconds."""
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
