"""Several processes that train one adapter: the rank of this one, and sums over all of them.

A pod is a node; on each node runs one process for each of its GPUs, or one on CPUs. Every process computes a part of each
step's examples, gradients are added up once a step, and since all then do the same arithmetic on the same numbers, their
adapters stay equal bit by bit. Only rank 0 reports, saves and uploads.

The environment variables come from the operator (run.NODES, run.NODE, run.RENDEZVOUS) or from torchrun.
"""

import contextlib
import dataclasses
import datetime
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pydantic
import torch

from finetune_api import exits, outcome, reasons, run
from finetune_trainer.process import errors, log, machine, termination
from finetune_trainer.training import rendezvous

PATIENCE = datetime.timedelta(minutes=30)
"""How long a process waits for the others in a collective: loading the model, or a validation, may take longer there. What one of
them does alone has no limit, see `ProcessGroup.wait`."""

PEER_GONE = (
    "gloo/transport",  # closed, reset, broken or timed out: the network's part of gloo
    "ncclRemoteError",
    "communicator was aborted",
    "collective operation timeout",
    "timed out in blocking wait",
)
"""What the backends say when another process no longer answers."""

GRACE = 10.0
"""Seconds that another process of the node has to end."""

WAITING, SAVING = 5.0, 60.0
"""Seconds after the failure of another process of the node until this one is ended: where it waits in a collective, as NCCL's do
without a word until PATIENCE is over, and where it does something else, such as saving a checkpoint."""

COLLECTIVE = (f"{os.sep}torch{os.sep}distributed{os.sep}", __file__)
"""Parts of the names of the files in which a process waits for others."""


@dataclasses.dataclass(frozen=True)
class ProcessGroup:
    """This process among the others."""

    rank: int = 0
    size: int = 1
    local: int = 0
    """Number of this process on its node, and of the GPU that it uses."""

    device: torch.device = torch.device("cpu")  # noqa: RUF009
    """Where the tensors of collectives live: NCCL takes those of its GPU only, gloo those of the CPU."""

    store: Any = None
    """Over which the processes found each other."""

    _waits: Iterator[int] = dataclasses.field(default_factory=itertools.count, repr=False, compare=False)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def add(self, tensors: Sequence[torch.Tensor], numbers: Sequence[float] = ()) -> list[float]:
        """Each tensor becomes, in place, its sum over all processes; returns the numbers' sums."""
        if self.size == 1:
            return list(numbers)
        exact = torch.tensor(list(numbers), dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(exact)
        if tensors:
            flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
            torch.distributed.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view_as(tensor))
        totals: list[float] = exact.tolist()
        return totals

    def maximum(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.size == 1:
            return number
        totals = torch.tensor(number, device=self.device)
        torch.distributed.all_reduce(totals, torch.distributed.ReduceOp.MAX)
        return int(totals)

    def every(self, holds: bool) -> bool:
        """Whether it holds in all processes."""
        return self.maximum(int(not holds)) == 0

    def wait(self) -> None:
        """Waits until all processes have come here: without a limit, as long as each shows that it lives."""
        if self.size > 1:
            rendezvous.gather(self.store, f"wait/{next(self._waits)}", self.rank, self.size)


@contextlib.contextmanager
def collectives(siblings: "SiblingProcesses") -> Iterator[None]:
    """Names what an error of a collective means. A process that is gone: the failure of a process of this node, else Stopped,
    as SIGTERM would do, since that process reports why it is gone. An error of NCCL itself: Failure(CollectiveFailed). Any other
    is a defect and stays as it is."""
    try:
        yield
    except RuntimeError as error:
        text = errors.describe(error)
        if peer_gone(error):
            log.warning("another training process is gone; ending too", problem=text)
            if failure := siblings.failure():
                raise failure from error
            raise errors.Stopped("another training process is gone; the next attempt resumes") from error
        if isinstance(error, torch.distributed.DistBackendError):
            raise errors.Failure(
                reasons.Reason.COLLECTIVE_FAILED,
                f"the training processes cannot exchange tensors: {text}. Check that the pods may use /dev/shm and reach each "
                "other on every port, and that driver and NCCL fit; NCCL_DEBUG=INFO logs the cause.",
            ) from error
        raise


def peer_gone(error: RuntimeError) -> bool:
    """Whether an error says that another process does not answer."""
    if isinstance(error, torch.distributed.DistNetworkError | torch.distributed.DistStoreError):
        return True
    return any(words in str(error) for words in PEER_GONE)


def number(name: str, default: int) -> int:
    return int(os.environ.get(name) or default)


def shared_folder() -> pathlib.Path:
    """The working folder of the node's first process."""
    named = os.environ.get("FINETUNE_SHARED")
    return pathlib.Path(named) if named else machine.work()


def join(where: torch.device, siblings: "SiblingProcesses") -> ProcessGroup:
    """Joins the group of all processes, each on its own device. Raises as `rendezvous.meet`, and as `SiblingProcesses.check`."""
    nodes, per_node = number(run.NODES, 1), number("LOCAL_WORLD_SIZE", 1)
    size = number("WORLD_SIZE", nodes * per_node)
    if size == 1:
        return ProcessGroup()
    local = number("LOCAL_RANK", 0)
    rank = number("RANK", number(run.NODE, 0) * per_node + local)
    at = os.environ.get(run.RENDEZVOUS) or f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    log.info("joining the other training processes", rank=rank, size=size, at=at)
    on_gpu = where.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(where)
        # Errors are raised here, in the main thread; otherwise NCCL's watchdog aborts the process without an outcome.
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    # torchrun has a store of its own there, and watches its processes.
    if "TORCHELASTIC_RUN_ID" in os.environ:
        store, _, _ = next(torch.distributed.rendezvous(f"tcp://{at}", rank, size))  # type: ignore[attr-defined]
    else:
        store = rendezvous.meet(at, rank, size, per_node, siblings.check, PATIENCE)
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=PATIENCE,
        device_id=where if on_gpu else None,
    )
    rendezvous.live(store, rank)
    return ProcessGroup(rank, size, local, where, store)


def leave() -> None:
    if torch.distributed.is_initialized():
        with contextlib.suppress(RuntimeError):
            torch.distributed.destroy_process_group()


def start_siblings(gpus: int, command: Sequence[str]) -> "SiblingProcesses":
    """Starts another process of this command for each further GPU of the node, unless torchrun did."""
    if "LOCAL_RANK" in os.environ:
        isolate()
        return SiblingProcesses([])
    if gpus < 2:
        return SiblingProcesses([])
    os.environ["LOCAL_WORLD_SIZE"] = str(gpus)
    if number(run.NODES, 1) == 1:
        os.environ.setdefault(run.RENDEZVOUS, f"127.0.0.1:{run.RENDEZVOUS_PORT}")
    work, started = machine.work(), []
    for local in range(1, gpus):
        outcome_of(work, local).unlink(missing_ok=True)  # of an earlier attempt
        started.append(subprocess.Popen(command, env=os.environ | {"LOCAL_RANK": str(local)}))
    os.environ["LOCAL_RANK"] = "0"
    return SiblingProcesses(started)


def outcome_of(work: pathlib.Path, local: int) -> pathlib.Path:
    """Where a further process of the node writes its outcome."""
    return work / f"rank{local}" / "outcome"


def isolate() -> None:
    """Gives a further process of the node its own folder and outcome, and no port; it shares only the base model with the
    first."""
    local = number("LOCAL_RANK", 0)
    if local and "FINETUNE_SHARED" not in os.environ:
        work = machine.work()
        outcome_of(work, local).parent.mkdir(parents=True, exist_ok=True)
        os.environ |= {
            "FINETUNE_SHARED": str(work),
            "FINETUNE_WORK": str(work / f"rank{local}"),
            "FINETUNE_METRICS_PORT": "0",
            "FINETUNE_TERMINATION_PATH": str(outcome_of(work, local)),
        }


@dataclasses.dataclass
class SiblingProcesses:
    """The further processes of this node, by their local rank from 1 on."""

    started: list[subprocess.Popen[Any]]
    _stopped: threading.Event = dataclasses.field(default_factory=threading.Event)

    def watch(self) -> None:
        """From now on, until `stop`: ends the processes of this node, this one too, when one has failed and this one does not
        end of its own accord. The outcome is then the failure."""
        if self.started:
            threading.Thread(target=self._watch, name="siblings", daemon=True).start()

    def _watch(self) -> None:
        failed_at = None
        while not self._stopped.wait(0.5):
            if self._failed() is None:
                continue
            failed_at = failed_at or time.monotonic()
            waited = time.monotonic() - failed_at
            if waited > SAVING or (waited > WAITING and _in_collective()):
                if failure := self.failure():
                    _end(self.started, failure)
                return

    def failure(self) -> errors.Failure | None:
        """Why one of them ended, where it failed: the pod reports this, since nobody else does."""
        deadline = time.monotonic() + GRACE
        while not (failed := self._failed()) and time.monotonic() < deadline and None in self._codes():
            time.sleep(0.1)
        if failed is None:
            return None
        local, code = failed
        try:
            reported = outcome.Outcome.model_validate_json(outcome_of(machine.work(), local).read_bytes())
        except (OSError, pydantic.ValidationError):
            reported = outcome.Outcome(
                stage=reasons.Stage.TRAIN, message=f"it ended with exit code {code}{_name(code)}"
            )
        return errors.Failure(
            reported.reason or reasons.Reason.TRAINER_ERROR,
            f"training process {local} of this node failed: {reported.message}",
        )

    def check(self) -> None:
        """Raises Failure when one of them has ended with an error, Stopped when one was told to stop."""
        if self._failed() and (failure := self.failure()):
            raise failure
        if any(code is not None for code in self._codes()):
            raise errors.Stopped("another training process of this node has ended")

    def _codes(self) -> list[int | None]:
        return [process.poll() for process in self.started]

    def _failed(self) -> tuple[int, int] | None:
        """The first that ended neither well nor because it lost another one."""
        fine = (None, exits.Exit.DONE, exits.Exit.STOPPED)
        return next(((local, code) for local, code in enumerate(self._codes(), 1) if code not in fine), None)

    def stop(self) -> None:
        """Stops those that still run, and waits a few seconds for them."""
        self._stopped.set()
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.started:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()


def _name(code: int) -> str:
    """In brackets, the signal that an exit code stands for."""
    known = {number.value: number.name for number in signal.Signals}
    return f" ({known[-code]})" if -code in known else ""


def _in_collective() -> bool:
    """Whether the main thread is in a call that waits for other processes."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if any(part in frame.f_code.co_filename for part in COLLECTIVE):
            return True
        frame = frame.f_back
    return False


def _end(others: Sequence[subprocess.Popen[Any]], failure: errors.Failure) -> None:
    """Ends the processes of this node at once; the main thread may never return from its call."""
    log.warning(failure.message, reason=failure.reason)
    for process in others:
        process.kill()  # they have nothing to save
    termination.write(outcome.Outcome(stage=reasons.Stage.TRAIN, reason=failure.reason, message=failure.message))
    os._exit(failure.exit)
