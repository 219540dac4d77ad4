"""Counters of what clients got, by model and revision: for the operator, which decides rollouts by them, and for Prometheus."""

import asyncio
import bisect
import concurrent.futures
import dataclasses
import datetime
import typing
from collections.abc import Iterable

import prometheus_client

from finetune_api import metrics as contract
from finetune_api import serving
from finetune_trainer.gateway import answers, routing

CHECKING = 100
"""Answers that wait for the check of their schema; more are not checked, and not counted as such."""


def _empty() -> list[int]:
    return [0] * (len(serving.BOUNDS) + 1)


@dataclasses.dataclass
class Times:
    counts: list[int] = dataclasses.field(default_factory=_empty)
    sum: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(serving.BOUNDS, seconds)] += 1
        self.sum += seconds

    def wire(self) -> serving.Histogram:
        return serving.Histogram(counts=self.counts, sum=round(self.sum, 6))


@dataclasses.dataclass
class Count:
    """One revision of one model during one step of a rollout."""

    model: serving.Served
    revision: str
    since: datetime.datetime
    requests: int = 0
    errors: int = 0
    abandoned: int = 0
    empty: int = 0
    cut: int = 0
    checked: int = 0
    invalid: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    seconds: Times = dataclasses.field(default_factory=Times)
    first_token: Times = dataclasses.field(default_factory=Times)

    def wire(self) -> serving.Traffic:
        numbers = (
            "requests", "errors", "abandoned", "empty", "cut", "checked", "invalid", "prompt_tokens", "answer_tokens"
        )  # fmt: skip
        return serving.Traffic(
            namespace=self.model.namespace,
            job=self.model.job,
            name=self.model.name,
            revision=self.revision,
            step=self.model.step,
            since=self.since,
            seconds=self.seconds.wire(),
            first_token=self.first_token.wire(),
            **{name: getattr(self, name) for name in numbers},
        )


Key = tuple[str, str, str]
"""Namespace, name, revision."""


class Traffic:
    """All counters of this process, and its metrics."""

    def __init__(self) -> None:
        self.requests = 0
        """Of clients, for whatever model."""
        self._counts: dict[Key, Count] = {}
        self._checker = concurrent.futures.ThreadPoolExecutor(1, "schemas")
        self._checking = 0
        self._series: dict[Key, tuple[str, str, str, str]] = {}
        self.registry = prometheus_client.CollectorRegistry()
        made = {
            contract.Kind.COUNTER: prometheus_client.Counter,
            contract.Kind.GAUGE: prometheus_client.Gauge,
            contract.Kind.HISTOGRAM: prometheus_client.Histogram,
        }
        self.metrics = {
            key: made[metric.kind](
                metric.family,
                metric.help,
                metric.labels,
                registry=self.registry,
                **({"buckets": metric.buckets} if metric.buckets else {}),
            )
            for key, metric in contract.GATEWAY.items()
        }

    def count(self, model: serving.Served, revision: str) -> Count:
        """Of the step that the index is in now: a new one starts at 0."""
        key = (model.namespace, model.name, revision)
        found = self._counts.get(key)
        if found is None or found.model.step != model.step or found.model.job != model.job:
            found = Count(model, revision, datetime.datetime.now(datetime.UTC))
            self._counts[key] = found
        return found

    def ended(
        self,
        model: serving.Served,
        count: Count,
        reading: answers.Reading,
        result: answers.Result,
        seconds: float,
        first: float | None,
    ) -> None:
        """A request is over. A mistake of the client says nothing of the revision."""
        count.requests += result != "Refused"
        count.errors += result == "Failed"
        count.abandoned += result == "Abandoned"
        if result == "Answered":
            count.seconds.add(seconds)
            if first is not None:
                count.first_token.add(first)
            count.empty += reading.empty
            count.cut += reading.cut
            count.prompt_tokens += reading.prompt_tokens
            count.answer_tokens += reading.answer_tokens
            if model.json_schema is not None:
                self._check(count, reading, model.json_schema)
        self._observe((model.namespace, model.name, count.revision), model.job, result, reading, seconds, first)

    def _observe(
        self, key: Key, job: str, result: answers.Result, reading: answers.Reading, seconds: float, first: float | None
    ) -> None:
        self.requests += 1
        namespace, name, revision = key
        labels = self._series[key] = (namespace, job, revision, name)
        self.metrics["requests"].labels(*labels, result).inc()
        if result == "Answered":
            self.metrics["tokens"].labels(*labels, "Prompt").inc(reading.prompt_tokens)
            self.metrics["tokens"].labels(*labels, "Answer").inc(reading.answer_tokens)
            self.metrics["seconds"].labels(*labels).observe(seconds)
            if first is not None:
                self.metrics["first_token"].labels(*labels).observe(first)

    def _check(self, count: Count, reading: answers.Reading, schema: str) -> None:
        """Beside the requests: a schema is a tenant's, and may be slow."""
        if self._checking >= CHECKING:
            return
        self._checking += 1

        def checked(future: asyncio.Future[bool | None]) -> None:
            self._checking -= 1
            if not future.cancelled() and future.exception() is None and (fits := future.result()) is not None:
                count.checked += 1
                count.invalid += not fits

        loop = asyncio.get_running_loop()
        loop.run_in_executor(self._checker, reading.fits, schema).add_done_callback(checked)

    def base(
        self,
        namespace: str,
        name: str,
        reading: answers.Reading,
        result: answers.Result,
        seconds: float,
        first: float | None,
    ) -> None:
        """A request for the base model: no revision is judged by it."""
        self._observe((namespace, name, ""), "", result, reading, seconds, first)

    def forget(self, table: routing.Table) -> None:
        """Drops what the index has no longer, so that old models leave no series."""
        served = {
            (model.namespace, model.name, route.revision) for model in table.index.models for route in model.routes
        }
        self._counts = {key: count for key, count in self._counts.items() if key in served}
        for key in [key for key in self._series if key not in served and key[2]]:
            labels = self._series.pop(key)
            for result in typing.get_args(answers.Result):
                self.metrics["requests"].remove(*labels, result)
            for kind in ("Prompt", "Answer"):
                self.metrics["tokens"].remove(*labels, kind)
            self.metrics["seconds"].remove(*labels)
            self.metrics["first_token"].remove(*labels)

    def wire(self) -> Iterable[serving.Traffic]:
        return [count.wire() for count in self._counts.values()]
