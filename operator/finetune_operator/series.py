"""The Prometheus series of each job, read from its status: they outlive the pods, and end with the job.

A fleet has thousands of finished jobs that do not change, and every scrape returns all of them. So each job's lines are
formatted once per version; a scrape of 5,000 jobs then joins strings instead of formatting 150,000 numbers.
"""

import datetime
import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from finetune_api import metrics
from finetune_api.reasons import Condition, Phase, Stage
from finetune_operator.cache import Cache
from finetune_operator.observe import projections
from finetune_operator.stored import Stored

Sample = tuple[metrics.Metric, tuple[str, ...], float]
"""A metric, the values of its labels, and its value."""
Held = tuple[tuple[str, str, int], ...]
"""Stage, GPU type and number of the GPUs that each running pod of a job holds."""
Lines = tuple[str, ...]
"""The lines of each metric of `metrics.JOBS`, in its order: a tuple, since thousands of jobs keep one each."""
PLACES = {metric: place for place, metric in enumerate(metrics.JOBS)}


class Jobs:
    """The exposition of all jobs in a cache."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._lock = threading.Lock()
        self._written: dict[str, tuple[tuple[str, Held], Lines]] = {}

    def exposition(self) -> Iterator[str]:
        """Prometheus' text format, metric by metric; those without a series are left out."""
        with self._lock:
            parents = dict(self._cache.parents)
            for uid in set(self._written) - set(parents):
                del self._written[uid]
            every = [self._lines(uid, known) for uid, known in parents.items()]
        for metric, place in PLACES.items():
            if text := "".join(lines[place] for lines in every):
                yield f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.kind}\n{text}"

    def _lines(self, uid: str, parent: Stored) -> Lines:
        held = held_by(dict(self._cache.children.get(uid, {})).values())
        version = (parent.version, held)
        known = self._written.get(uid)
        if known is None or known[0] != version:
            known = self._written[uid] = (version, write(samples(parent.raw, held)))
        return known[1]


def held_by(children: Iterable[projections.Child]) -> Held:
    """The GPUs held by the running pods of a job's stages; a server's GPUs are in its record."""
    pods = [c for c in children if isinstance(c, projections.Pod) and c.stage and c.gpus and c.placed and not c.ended]
    return tuple(sorted((pod.stage, pod.gpu_type, pod.gpus) for pod in pods))


def write(found: Iterable[Sample]) -> Lines:
    lines = [""] * len(PLACES)
    for metric, values, value in found:
        labels = ",".join(f'{name}="{escaped(text)}"' for name, text in zip(metric.labels, values, strict=True))
        lines[PLACES[metric]] += f"{metric.name}{{{labels}}} {value!r}\n"
    return tuple(lines)


def escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def samples(raw: projections.Raw, held: Held) -> Iterator[Sample]:
    """All samples of one job. Total: a missing or malformed field of the status gives no sample."""
    state, spec = table(raw.get("status")), table(raw.get("spec"))
    name = (str(raw["metadata"].get("namespace", "")), str(raw["metadata"]["name"]))
    revision = (*name, str(state.get("revision") or ""))
    phase = str(state.get("phase") or Phase.PENDING)
    yield metrics.STATUS, (*revision, str(state.get("stage") or ""), phase, reason(state)), 1.0
    yield from measured(revision, {metrics.START: instant(state.get("startTime"))})
    yield from measured(revision, {metrics.COMPLETION: instant(state.get("completionTime"))})
    yield from training((*revision, Stage.TRAIN.value), state, phase)
    yield from evaluation((*revision, Stage.EVALUATE.value), table(state.get("evaluation")))
    yield from serving(name, spec, state)
    yield from gpus(revision, held)
    cost = table(state.get("cost"))
    yield metrics.GPU_SECONDS, name, (number(cost.get("gpuHours")) or 0.0) * 3600
    if (amount := number(cost.get("amount"))) is not None:
        yield metrics.COST, (*name, str(cost.get("currency", ""))), amount


def measured(labels: tuple[str, ...], values: Mapping[metrics.Metric, float | None]) -> Iterator[Sample]:
    for metric, value in values.items():
        if value is not None:
            yield metric, labels, value


def training(labels: tuple[str, ...], state: Mapping[str, Any], phase: str) -> Iterator[Sample]:
    """The progress of training, or its last value when its pod ended."""
    progress, checkpoint = table(state.get("progress")), table(state.get("checkpoint"))
    percent = number(progress.get("percent"))
    yield from measured(
        labels,
        {
            metrics.PROGRESS: None if percent is None else percent / 100,
            metrics.STEPS: number(progress.get("step")),
            metrics.PLANNED_STEPS: number(progress.get("totalSteps")),
            metrics.EPOCHS: number(progress.get("epoch")),
            metrics.LOSS: number(progress.get("loss")),
            metrics.VALIDATION_LOSS: number(progress.get("validationLoss")),
            metrics.SPEED: number(progress.get("tokensPerSecond")),
            metrics.ETA: seconds(progress.get("eta")) if phase == Phase.TRAINING else None,
            metrics.CHECKPOINT_STEP: number(checkpoint.get("step")),
            metrics.CHECKPOINT_TIME: instant(checkpoint.get("savedAt")),
        },
    )


def evaluation(labels: tuple[str, ...], found: Mapping[str, Any]) -> Iterator[Sample]:
    """Every metric of every contender, and whether the gates passed."""
    for one in rows(found.get("metrics")):
        if (value := number(one.get("value"))) is not None:
            yield metrics.EVALUATION, (*labels, str(one.get("name")), str(one.get("contender"))), value
    if "passed" in found:
        yield metrics.PASSED, labels, float(bool(found["passed"]))


def serving(name: tuple[str, str], spec: Mapping[str, Any], state: Mapping[str, Any]) -> Iterator[Sample]:
    """The release that serves; the GPUs of its own servers come from its record: an edit of the spec changes it later."""
    deployed = table(state.get("deployment"))
    try:
        release = table(json.loads(str(state.get("serving"))))
    except ValueError:
        return
    record = table(release.get("deployment"))
    if not deployed or not record:
        return
    labels = (*name, str(deployed.get("revision", "")), metrics.SERVE)
    ready = number(deployed.get("readyReplicas")) or 0.0
    yield from measured(
        labels,
        {
            metrics.REPLICAS: 0
            if deployed.get("heldSince")
            else number(table(spec.get("deployment")).get("replicas", 1)),
            metrics.READY_REPLICAS: ready,
            metrics.SERVED_SPEED: number(deployed.get("tokensPerSecond")),
        },
    )
    resources = table(record.get("resources"))
    if release.get("pool"):
        return  # the GPUs are the pool's
    if each := number(resources.get("gpus")):
        yield metrics.GPUS, (*labels, str(resources.get("gpuType") or "")), ready * each


def gpus(revision: tuple[str, ...], held: Held) -> Iterator[Sample]:
    for stage, kind in sorted({(stage, kind) for stage, kind, _ in held}):
        count = sum(each for its_stage, its_kind, each in held if (its_stage, its_kind) == (stage, kind))
        yield metrics.GPUS, (*revision, stage, kind), float(count)


def reason(state: Mapping[str, Any]) -> str:
    """The reason of Ready, which is that of the condition that matters most."""
    found = [c for c in rows(state.get("conditions")) if c.get("type") == Condition.READY]
    return str(found[0].get("reason", "")) if found else ""


def table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def rows(value: Any) -> list[Mapping[str, Any]]:
    return [table(item) for item in value] if isinstance(value, list) else []


def number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def instant(text: Any) -> float | None:
    """Unix time of an RFC 3339 time."""
    try:
        return datetime.datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp() if text else None
    except ValueError:
        return None


DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def seconds(text: Any) -> float | None:
    """Seconds of a duration in the status: 45s, 12m30s, 3h05m."""
    found = DURATION.fullmatch(str(text)) if text else None
    if found is None:
        return None
    hours, minutes, rest = (int(part or 0) for part in found.groups())
    return float(3600 * hours + 60 * minutes + rest)
