"""How far a stage is: into the run's ConfigMap for `kubectl get`, and onto a port for Prometheus.

The operator created the ConfigMap and lets this pod's service account patch just that one. Outside a cluster the run file may
name a file instead. A thread sends the latest report; the loop never waits for the API server, and a failure is logged once.
"""

import datetime
import json
import os
import pathlib
import ssl
import threading
import urllib.request
from typing import Any

from finetune_api import metrics as contract
from finetune_api import outcome, reasons, run, status
from finetune_trainer.process import errors, log

ACCOUNT = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount")

FIRST, PAUSE = 1.0, 2.0
"""Seconds between reports: at the start, and later."""


class Progress:
    """The channel of one stage's progress. Without a ConfigMap or a file it only feeds the metrics."""

    def __init__(self, job: run.Run, stage: str, attempt: int) -> None:
        self._run, self._attempt = job, attempt
        self._lock = threading.Condition()
        self._report: outcome.ProgressReport | None = None
        self._progress: status.Progress | None = None
        self._checkpoint: status.Checkpoint | None = None
        self._sending, self._ended, self._failed = False, False, False
        self._stage = reasons.Stage(stage)
        self.metrics = Metrics(job, stage)
        self._url, self._file = address(job), job.progress_file
        self._reported = bool(self._url or self._file)
        if self._reported:
            threading.Thread(target=self._work, name="progress", daemon=True).start()

    def update(self, progress: status.Progress) -> None:
        """The latest state; returns at once."""
        self.metrics.set(progress_ratio=progress.percent / 100)
        self._put(progress, self._checkpoint)

    def saved(self, checkpoint: status.Checkpoint) -> None:
        self._put(self._progress, checkpoint)

    def end(self) -> None:
        """Sends what is left, for at most a few seconds."""
        with self._lock:
            self._ended = True
            self._lock.notify_all()
            if self._reported:
                self._lock.wait_for(lambda: self._report is None and not self._sending, 5)

    def _put(self, progress: status.Progress | None, checkpoint: status.Checkpoint | None) -> None:
        with self._lock:
            self._progress, self._checkpoint = progress, checkpoint
            if progress is not None:
                self._report = outcome.ProgressReport(
                    revision=self._run.revision,
                    attempt=self._attempt,
                    stage=self._stage,
                    progress=progress,
                    checkpoint=checkpoint,
                )
                self._lock.notify_all()

    def _work(self) -> None:
        pause = FIRST
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._report is not None)
                report, self._report, self._sending = self._report, None, True
            self._send(report)
            with self._lock:
                self._sending = False
                self._lock.notify_all()
                self._lock.wait_for(lambda: self._ended, pause)
            pause = PAUSE

    def _send(self, report: outcome.ProgressReport | None) -> None:
        if report is None:
            return
        text = report.model_dump_json(by_alias=True, exclude_none=True)
        try:
            if self._url:
                patch(self._url, {"data": {run.PROGRESS_KEY: text}})
            elif self._file:
                replace(pathlib.Path(self._file), text)
        except Exception as error:
            if not self._failed:
                log.warning("progress cannot be reported; the stage continues", problem=errors.describe(error))
            self._failed = True
        else:
            self._failed = False


def address(job: run.Run) -> str | None:
    """The URL of the run's ConfigMap; None outside a cluster."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not job.progress_config_map:
        return None
    host = f"[{host}]" if ":" in host else host
    return f"https://{host}:{port}/api/v1/namespaces/{job.namespace}/configmaps/{job.progress_config_map}"


def replace(path: pathlib.Path, text: str) -> None:
    """Readers see the old report or the new one, never a part."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)


def patch(url: str, body: dict[str, Any]) -> None:
    """A merge patch with the pod's token, read again each time since the kubelet renews it."""
    account = pathlib.Path(os.environ.get("FINETUNE_SERVICE_ACCOUNT", str(ACCOUNT)))
    request = urllib.request.Request(  # noqa: S310
        url,
        data=json.dumps(body).encode(),
        method="PATCH",
        headers={
            "Content-Type": "application/merge-patch+json",
            "Authorization": f"Bearer {(account / 'token').read_text().strip()}",
        },
    )
    context = ssl.create_default_context(cafile=str(account / "ca.crt"))
    # Never through a proxy of the environment: the API server is inside the cluster.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    with opener.open(request, timeout=10) as answer:
        answer.read()


class Metrics:
    """Prometheus gauges of one stage on run.METRICS_PORT. A gauge appears when it is first set: no loss is not a loss of 0."""

    def __init__(self, job: run.Run, stage: str) -> None:
        import prometheus_client

        registry = prometheus_client.CollectorRegistry()
        self._labels = (job.namespace, job.name, job.revision, stage)
        self._gauges = {
            key: prometheus_client.Gauge(metric.family, metric.help, metric.labels, registry=registry)
            for key, metric in contract.TRAINER.items()
        }
        port = int(os.environ.get("FINETUNE_METRICS_PORT", run.METRICS_PORT))
        try:
            if port:
                prometheus_client.start_http_server(port, registry=registry)
        except OSError as error:
            log.warning("no metrics port", port=port, problem=str(error))

    def set(self, **values: float | None) -> None:
        for key, value in values.items():
            if value is not None:
                self._gauges[key].labels(*self._labels).set(value)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def duration(seconds: float) -> str:
    """For people: 45s, 12m30s, 3h05m."""
    seconds = max(0, round(seconds))
    hours, minutes = seconds // 3600, seconds // 60 % 60
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds % 60:02d}s" if minutes else f"{seconds}s"
