"""The cost of a job: the GPU time held by the pods of its stages, and its price. An integral over time, recorded in the status.

    cost(now) = cost(counted until) + what the pods held between then and now

Pods are counted from their binding to a node, from when on their GPUs are taken, to the end of their last container. The
status says up to when it was counted, so an operator that was down counts what it missed from the pods that still exist, and
nothing is counted twice.
"""

import datetime

from finetune_api import status
from finetune_operator import settings
from finetune_operator.decide.verdict import AS_IT_IS, Verdict
from finetune_operator.decide.world import World
from finetune_operator.observe import projections

PAUSE = datetime.timedelta(seconds=60)
"""The minimum time between two counts, except for the last of an attempt."""


def settle(world: World) -> Verdict:
    """In every world: count up to now, if there is something new to count."""
    before = world.state.cost
    since = before.counted_until if before else None
    holding = [pod for pod in world.obs.pods if pod.stage and held(pod, since, world.now)]
    if not holding:
        return AS_IT_IS
    uncounted = world.now - (since or min(pod.placed for pod in holding if pod.placed))
    if uncounted < PAUSE and not any(pod.ended and goes(world, pod) for pod in holding):
        return AS_IT_IS
    return Verdict(edits={"cost": counted(before, holding, world.now, world.obs.settings)})


def goes(world: World, pod: projections.Pod) -> bool:
    """Whether a pod that ended may not be seen again: it is being deleted, or its Job is over."""
    job = world.obs.jobs.get(pod.parent)
    return pod.deleting or job is None or job.over


def held(pod: projections.Pod, since: datetime.datetime | None, until: datetime.datetime) -> float:
    """GPU-seconds that a pod held between two times; `since` None: from its binding to a node."""
    if pod.placed is None:
        return 0.0
    begin = max(pod.placed, since) if since else pod.placed
    end = min(pod.ended, until) if pod.ended else until
    return pod.gpus * max(0.0, (end - begin).total_seconds())


def counted(
    before: status.Cost | None, pods: list[projections.Pod], until: datetime.datetime, chart: settings.Settings
) -> status.Cost:
    """The cost up to `until`, including these pods."""
    since = before.counted_until if before else None
    hours, amount = float(before.gpu_hours) if before else 0.0, before.amount if before else None
    for pod in pods:
        share = held(pod, since, until) / 3600
        hours += share
        price = chart.gpu_types.get(pod.gpu_type, settings.GpuType()).price_per_hour
        if price is not None:
            amount = f"{float(amount or 0) + share * price:.6f}"
    return status.Cost(
        gpu_hours=f"{hours:.6f}",
        amount=amount,
        currency=chart.currency if amount is not None else None,
        counted_until=until,
    )
