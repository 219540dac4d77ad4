"""How far a stage is: on run.METRICS_PORT, where the operator reads the report and Prometheus the metrics.

Nothing is sent: the loop leaves its latest report, and whoever asks gets it. Outside a cluster the run file may name a file,
which is replaced now and then.
"""

import datetime
import http.server
import os
import pathlib
import socket
import threading
import time
from typing import Any

from finetune_api import metrics as contract
from finetune_api import outcome, reasons, run, status
from finetune_trainer.process import errors, log

PAUSE = 1.0
"""Seconds between two writes of a progress file."""


def of(step: int, steps: int, **more: Any) -> status.Progress:
    """How far a stage is, by steps or examples. 100 % is said at the end, not before."""
    percent = 100 * step // max(1, steps)
    return status.Progress(
        summary=f"{percent}%", percent=percent, step=step, total_steps=steps, updated_at=now(), **more
    )


class Progress:
    """The latest report of one stage, and its metrics."""

    def __init__(self, job: run.Run, stage: str, attempt: int) -> None:
        self._run, self._attempt, self._stage = job, attempt, reasons.Stage(stage)
        self._progress: status.Progress | None = None
        self._checkpoint: status.Checkpoint | None = None
        self._file = pathlib.Path(job.progress_file) if job.progress_file else None
        self._written, self._failed = 0.0, False
        self.metrics = Metrics(job, stage)
        listen(self)

    def update(self, progress: status.Progress) -> None:
        """The latest state."""
        self.metrics.set(progress_ratio=progress.percent / 100)
        self._progress = progress
        if time.monotonic() - self._written >= PAUSE:
            self._write()

    def saved(self, checkpoint: status.Checkpoint) -> None:
        self._checkpoint = checkpoint

    def end(self) -> None:
        """The last report reaches the file, whenever the one before it did."""
        self._write()

    def report(self) -> outcome.ProgressReport | None:
        """None before the first state."""
        if self._progress is None:
            return None
        return outcome.ProgressReport(
            uid=self._run.uid,
            revision=self._run.revision,
            attempt=self._attempt,
            stage=self._stage,
            progress=self._progress,
            checkpoint=self._checkpoint,
        )

    def _write(self) -> None:
        report = self.report()
        if self._file is None or report is None:
            return
        self._written = time.monotonic()
        try:
            replace(self._file, text(report))
        except OSError as error:
            if not self._failed:
                log.warning("progress cannot be reported; the stage continues", problem=errors.describe(error))
            self._failed = True
        else:
            self._failed = False


def text(report: outcome.ProgressReport) -> str:
    return report.model_dump_json(by_alias=True, exclude_none=True)


def replace(path: pathlib.Path, content: str) -> None:
    """Readers see the old report or the new one, never a part."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(content)
    new.replace(path)


class Metrics:
    """Prometheus gauges of one stage. A gauge appears when it is first set: no loss is not a loss of 0."""

    def __init__(self, job: run.Run, stage: str) -> None:
        import prometheus_client

        self.registry = prometheus_client.CollectorRegistry()
        self._labels = (job.namespace, job.name, job.revision, stage)
        self._gauges = {
            key: prometheus_client.Gauge(metric.family, metric.help, metric.labels, registry=self.registry)
            for key, metric in contract.TRAINER.items()
        }

    def set(self, **values: float | None) -> None:
        for key, value in values.items():
            if value is not None:
                self._gauges[key].labels(*self._labels).set(value)


def listen(progress: Progress) -> None:
    """Answer on the metrics port for as long as the process lives; a port that is taken costs a warning."""
    port = int(os.environ.get("FINETUNE_METRICS_PORT", run.METRICS_PORT))
    if not port:
        return
    try:
        server = Server(progress, port)
    except OSError as error:
        log.warning("metrics and progress cannot be read: their port cannot be opened", port=port, problem=str(error))
        return
    threading.Thread(target=server.serve_forever, name="progress", daemon=True).start()


class Server(http.server.ThreadingHTTPServer):
    """One stage's report and metrics, over IPv6 and IPv4."""

    daemon_threads = True
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def __init__(self, progress: Progress, port: int) -> None:
        self.progress = progress
        super().__init__(("", port), Handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # Not HTTPServer's, which asks a name server for this machine's name.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "", self.socket.getsockname()[1]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    timeout = 10

    def do_GET(self) -> None:
        if self.path == run.PROGRESS_PATH:
            report = self.server.progress.report()
            self._answer(200 if report else 204, text(report).encode() if report else b"", "application/json")
        elif self.path == "/metrics":
            import prometheus_client

            exposition = prometheus_client.generate_latest(self.server.progress.metrics.registry)
            self._answer(200, exposition, prometheus_client.CONTENT_TYPE_LATEST)
        else:
            self._answer(404, b"there are /metrics and /progress\n", "text/plain")

    def _answer(self, code: int, body: bytes, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        if code != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Requests are no news."""


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def duration(seconds: float) -> str:
    """For people: 45s, 12m30s, 3h05m."""
    seconds = max(0, round(seconds))
    hours, minutes = seconds // 3600, seconds // 60 % 60
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds % 60:02d}s" if minutes else f"{seconds}s"
