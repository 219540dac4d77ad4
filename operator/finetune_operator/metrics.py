"""The operator's Prometheus metrics: its own work, counted as it is done, and the jobs, read on each scrape.

Labels of counters are bounded: phases, stages, reasons and results. The series of single jobs are in `series`.
"""

from collections import Counter as Count
from collections.abc import Callable, Iterable, Iterator

import prometheus_client
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from finetune_api import metrics as contract
from finetune_api.reasons import Phase, Reason, Stage
from finetune_operator import series
from finetune_operator.cache import Cache
from finetune_operator.decide import verdict
from finetune_operator.observe import projections

# an unused extra series for each metric
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

RESULTS = ("succeeded", "failed", "disrupted")
REPEATED = (Reason.TRAINER_ERROR, Reason.TRAINER_OUT_OF_MEMORY, Reason.STORAGE_UNAVAILABLE)
"""Why attempts are usually retried."""
KINDS_OF_ERRORS = ("refused", "unreachable", "defect")


def histogram(metric: contract.Metric) -> Histogram:
    return Histogram(metric.family, metric.help, metric.labels, buckets=metric.buckets)


def counter(metric: contract.Metric) -> Counter:
    return Counter(metric.family, metric.help, metric.labels)


stage_duration = histogram(contract.STAGE_DURATION)
queue_wait = histogram(contract.QUEUE_WAIT)
retries = counter(contract.RETRIES)
reconcile_duration = histogram(contract.RECONCILE_DURATION)
reconcile_errors = counter(contract.RECONCILE_ERRORS)
leader = Gauge(contract.LEADER.family, contract.LEADER.help)

# For Prometheus, a series that starts at 1 has not increased, so the expected series start at 0.
for _stage in Stage:
    queue_wait.labels(_stage)
    for _result in RESULTS:
        stage_duration.labels(_stage, _result)
    for _reason in REPEATED:
        retries.labels(_stage, _reason)
for _kind in KINDS_OF_ERRORS:
    reconcile_errors.labels(_kind)


def ended(facts: Iterable[verdict.Ended]) -> None:
    """Observe attempts that ended."""
    for fact in facts:
        stage_duration.labels(fact.stage, fact.result).observe(fact.seconds)
        if fact.waited is not None:
            queue_wait.labels(fact.stage).observe(max(fact.waited, 0))


def waited(found: Iterable[tuple[Stage, float]]) -> None:
    """Observe waits in a queue that ended."""
    for stage, seconds in found:
        queue_wait.labels(stage).observe(max(seconds, 0))


class Fleet(Collector):
    """Jobs by phase, and the GPUs of pools, counted on each scrape; a standby replica exports none."""

    def __init__(self, cache: Cache, leads: Callable[[], bool]) -> None:
        self._cache, self._leads = cache, leads

    def collect(self) -> Iterable[GaugeMetricFamily]:
        if not self._leads():
            return
        phases = Count(parent.phase or Phase.PENDING.value for parent in list(self._cache.parents.values()))
        family = GaugeMetricFamily(contract.FLEET.name, contract.FLEET.help, labels=contract.FLEET.labels)
        for phase in Phase:
            family.add_metric([phase.value], phases[phase.value])
        yield family
        yield self._gpus()

    def _gpus(self) -> GaugeMetricFamily:
        held = Count[tuple[str, str, str]]()
        for uid, pool in list(self._cache.pools.items()):
            for child in list(self._cache.children.get(uid, {}).values()):
                if isinstance(child, projections.Pod) and child.gpus and child.placed and not child.ended:
                    held[pool.namespace, pool.name, child.gpu_type] += child.gpus
        family = GaugeMetricFamily(contract.POOL_GPUS.name, contract.POOL_GPUS.help, labels=contract.POOL_GPUS.labels)
        for labels, count in sorted(held.items()):
            family.add_metric(labels, count)
        return family


class Exposition:
    """The content of /metrics: all counters, and every job that the leader knows."""

    def __init__(self, cache: Cache, leads: Callable[[], bool]) -> None:
        self._leads, self._jobs, self.fleet = leads, series.Jobs(cache), Fleet(cache, leads)
        prometheus_client.REGISTRY.register(self.fleet)

    def parts(self) -> Iterator[bytes]:
        """Prometheus' text format, in parts, since 5,000 jobs make 15 MB. Slow for new jobs: not for the event loop."""
        yield prometheus_client.generate_latest()
        if self._leads():
            for part in self._jobs.exposition():
                yield part.encode()
