"""How the processes of a training share the base model: one pure decision, by the memory estimate.

Workload (model, method, examples, processes), memory of a device -> Plan

preflight reports it, `finetune estimate` prints it, training follows it.
"""

import dataclasses
import enum
from collections.abc import Iterator

from finetune_trainer.planning import memory, workload


class Parallelism(enum.StrEnum):
    ONE_PROCESS = "OneProcess"
    REPLICATED = "Replicated"
    """Every process holds the whole base model; gradients of the adapter are added once a step."""
    SHARDED = "Sharded"
    """Every process holds a part of each layer (FSDP2) under transformers' own modules."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What training runs with on each device."""

    case: workload.Workload
    setup: memory.Setup
    fits: bool

    @property
    def parallelism(self) -> Parallelism:
        if self.case.device.processes == 1:
            return Parallelism.ONE_PROCESS
        return Parallelism.SHARDED if self.sharded else Parallelism.REPLICATED

    @property
    def sharded(self) -> bool:
        return self.case.device.shards > 1


def choose(case: workload.Workload, capacity: int) -> Plan:
    """The base model in every process, which is faster, where that fits; else sharded over all of them. Where neither fits, the
    one that needs less."""
    plans = []
    for placed in _ways(case):
        setup = memory.setup(placed, capacity)
        plans.append(Plan(placed, setup, memory.fits(setup.memory, capacity, placed.device)))
    return next((plan for plan in plans if plan.fits), min(plans, key=lambda plan: plan.setup.memory.needed))


def cannot_fit(case: workload.Workload, capacity: int) -> bool:
    """Whether weights and adapter alone need more than the memory in each way."""
    smallest = [memory.memory(placed, 1, checkpointing=True) for placed in _ways(case)]
    return all(found.weights + found.adapter > capacity for found in smallest)


def _ways(case: workload.Workload) -> Iterator[workload.Workload]:
    """Whole in every process, and sharded over all of them where there are several."""
    for shards in sorted({1, case.device.processes}):
        yield dataclasses.replace(case, device=dataclasses.replace(case.device, shards=shards))
