"""The operator's Prometheus metrics. Labels are bounded: phases, stages, reasons and results, never names of jobs."""

from collections import Counter as Count
from collections.abc import Callable, Iterable

import prometheus_client
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from finetune_api.reasons import Phase
from finetune_operator import decide
from finetune_operator.cache import Cache

STAGE_SECONDS = (5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 48 * 3600)
WAIT_SECONDS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)

stage_duration = Histogram(
    "finetune_stage_duration_seconds",
    "Time from the creation of a stage's Job to its end, waiting for a node included.",
    ["stage", "result"],
    buckets=STAGE_SECONDS,
)
queue_wait = Histogram(
    "finetune_queue_wait_seconds",
    "Time from the creation of a stage's Job to the start of its container.",
    ["stage"],
    buckets=WAIT_SECONDS,
)
retries = Counter("finetune_retries", "Attempts that failed and are repeated.", ["stage", "reason"])
reconcile_duration = Histogram(
    "finetune_reconcile_duration_seconds",
    "Time of one reconcile of one job, its requests to the API server included.",
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30),
)
reconcile_errors = Counter("finetune_reconcile_errors", "Reconciles that failed and are repeated.", ["kind"])
leader = Gauge("finetune_leader", "1 on the replica that reconciles, 0 on those that stand by.")


def ended(facts: Iterable[decide.Ended]) -> None:
    """Observe attempts that ended."""
    for fact in facts:
        stage_duration.labels(fact.stage, fact.result).observe(fact.seconds)
        if fact.waited is not None:
            queue_wait.labels(fact.stage).observe(max(fact.waited, 0))


class Jobs(Collector):
    """Jobs by phase, counted when Prometheus asks; a replica that stands by knows of none and is silent."""

    def __init__(self, cache: Cache, leads: Callable[[], bool]) -> None:
        self._cache, self._leads = cache, leads

    def collect(self) -> Iterable[GaugeMetricFamily]:
        if not self._leads():
            return
        phases = Count(
            (raw.get("status") or {}).get("phase") or Phase.PENDING.value for raw in list(self._cache.parents.values())
        )
        family = GaugeMetricFamily("finetune_jobs", "FineTuneJobs by phase.", labels=["phase"])
        for phase in Phase:
            family.add_metric([phase.value], phases[phase.value])
        yield family


def register(cache: Cache, leads: Callable[[], bool]) -> None:
    prometheus_client.REGISTRY.register(Jobs(cache, leads))
