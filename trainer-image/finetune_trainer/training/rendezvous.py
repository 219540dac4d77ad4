"""Where the processes of a training meet before they form a group, so that one that is gone is noticed while the others wait.

    each process -> store of the first -> all have come -> `processes.join` -> signs of life -> `gather`, before work in common

A process of this node starts from the same image as this one: it comes within minutes, or its end is seen at once. A process of
another node may still wait for its node or image, and when its pod fails, the operator's Job ends this one.

Later they wait here for what one of them does alone and what has no time limit, such as a download: collectives have one.
"""

import contextlib
import datetime
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from finetune_api import reasons
from finetune_trainer.process import errors, log, signals

NODE = 300.0
"""Seconds that processes of the same node may take to come: to import torch and to find their GPU."""

OTHERS = 1800.0
"""Seconds that other nodes may take; then the process ends, and the next attempt waits again."""

ROUND, REPORT = 5.0, 60.0
"""Seconds of one attempt to reach the store, and between two lines of the log."""

BEAT, SILENCE = 5.0, 300.0
"""Seconds between two signs of life of a process, and without one until it counts as gone."""

POLL = 0.5
"""Seconds between two questions whether the others have come."""


def meet(
    address: str, rank: int, size: int, per_node: int, watch: Callable[[], None], patience: datetime.timedelta
) -> Any:
    """The store of all processes, when each has come.

    address: host:port of the first process; watch: raises when a process of this node has ended; patience: of the store's later
    requests. Raises Failure when a process of this node does not come, Stopped when one of another node does not.
    """
    host, _, port = address.rpartition(":")
    waiting = _Waiting(rank // per_node, per_node, watch)
    while True:
        waiting.check([0] if rank else [])
        try:
            # the first has the store itself: its name may not be known to it yet
            store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
                "localhost" if rank == 0 else host.strip("[]"),
                int(port),
                is_master=rank == 0,
                timeout=datetime.timedelta(seconds=ROUND),
                wait_for_workers=False,
            )
            break
        except (torch.distributed.DistNetworkError, torch.distributed.DistStoreError):
            if rank == 0:
                raise
    store.set(f"come/{rank}", "")
    while missing := [other for other in range(size) if not store.check([f"come/{other}"])]:
        waiting.check(missing)
        time.sleep(0.2)
    store.set_timeout(patience)
    return store


class _Waiting:
    """How long this process has waited, and for whom."""

    def __init__(self, node: int, per_node: int, watch: Callable[[], None]) -> None:
        self._node, self._per_node, self._watch = node, per_node, watch
        self._begun = self._reported = time.monotonic()

    def check(self, missing: Sequence[int]) -> None:
        """Raises when one of the missing is waited for in vain."""
        signals.check()
        self._watch()
        now = time.monotonic()
        waited = now - self._begun
        near = [rank % self._per_node for rank in missing if rank // self._per_node == self._node]
        nodes = sorted({rank // self._per_node for rank in missing} - {self._node})
        if now - self._reported >= REPORT:
            self._reported = now
            log.info("waiting for other training processes", of_this_node=near, nodes=nodes, seconds=round(waited))
        if near and waited > NODE:
            raise errors.Failure(
                reasons.Reason.TRAINER_ERROR,
                f"training processes {near} of this node did not come within {NODE:.0f} s of their start; look at their log "
                "lines, and whether the node's GPUs answer (nvidia-smi)",
            )
        if waited > OTHERS:
            raise errors.Stopped(
                f"nodes {nodes} did not come to train within {OTHERS:.0f} s; the next attempt waits for them again"
            )


def live(store: Any, rank: int) -> None:
    """From now on, while the group exists: signs of life for those that wait for this process in `gather`."""
    threading.Thread(target=_live, args=(store, rank), name="signs of life", daemon=True).start()


def _live(store: Any, rank: int) -> None:
    with contextlib.suppress(RuntimeError):  # the first process is gone
        while torch.distributed.is_initialized():
            store.add(f"alive/{rank}", 1)
            time.sleep(BEAT)


def gather(store: Any, name: str, rank: int, size: int) -> None:
    """Waits until all processes have come to `name`, however long it takes them. Raises Stopped when one of them is gone."""
    store.set(f"{name}/{rank}", "")
    signs, silent = [0] * size, [0.0] * size
    begun = reported = time.monotonic()
    while missing := [other for other in range(size) if not store.check([f"{name}/{other}"])]:
        signals.check()
        for other in missing:
            before, signs[other] = signs[other], store.add(f"alive/{other}", 0)
            silent[other] = silent[other] + POLL if signs[other] == before else 0.0
            if silent[other] > SILENCE:
                raise errors.Stopped(f"training process {other} is gone; the next attempt resumes")
        if time.monotonic() - reported >= REPORT:
            reported = time.monotonic()
            log.info("waiting for other training processes", ranks=missing, seconds=round(reported - begun))
        time.sleep(POLL)
