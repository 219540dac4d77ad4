import datetime
import http.server
import json
import pathlib
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from finetune_api import metrics, outcome, run, status
from finetune_trainer.process import progress
from support import prometheus

World = Callable[..., run.Run]


def certificate(folder: pathlib.Path) -> pathlib.Path:
    """A self-signed certificate for 127.0.0.1 with its key, in one file."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kubernetes")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "ca.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "tls.pem").write_bytes(private + (folder / "ca.crt").read_bytes())
    return folder / "tls.pem"


@pytest.fixture
def patches(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """A small API server over TLS; the patches that it got."""
    found: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PATCH(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.append({"path": self.path, "headers": dict(self.headers), "body": body})
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            pass

    account = tmp_path / "account"
    account.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(account))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (account / "token").write_text("the-token\n")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.server_address[1]))
    monkeypatch.setenv("FINETUNE_SERVICE_ACCOUNT", str(account))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setattr(progress, "FIRST", 0.05)
    monkeypatch.setattr(progress, "PAUSE", 0.05)
    yield found
    server.shutdown()


def at(step: int) -> status.Progress:
    return status.Progress(summary=f"{step}%", percent=step, step=step, total_steps=100)


def reported(patch: dict[str, Any]) -> outcome.ProgressReport:
    return outcome.ProgressReport.model_validate_json(patch["body"]["data"][run.PROGRESS_KEY])


def test_progress_and_checkpoint_reach_the_config_map(world: World, patches: list[dict[str, Any]]) -> None:
    spec = world(progressConfigMap="tiny-progress")
    report = progress.Progress(spec, "train", attempt=3)
    report.update(at(43))
    saved = status.Checkpoint(uri="s3://b/c", step=40, saved_at=datetime.datetime.now(datetime.UTC))
    report.saved(saved)
    report.end()
    last = reported(patches[-1])
    assert (last.revision, last.attempt, last.progress.summary) == ("r1", 3, "43%")
    assert last.checkpoint == saved
    assert patches[0]["path"] == "/api/v1/namespaces/ml/configmaps/tiny-progress"
    assert patches[0]["headers"]["Authorization"] == "Bearer the-token"
    assert patches[0]["headers"]["Content-Type"] == "application/merge-patch+json"


def test_reports_are_throttled_and_the_last_one_is_never_lost(
    world: World, patches: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "FIRST", 0.3)
    report = progress.Progress(world(progressConfigMap="x"), "train", 1)
    for step in range(101):
        report.update(at(step))
    report.end()
    assert len(patches) <= 3
    assert reported(patches[-1]).progress.step == 100


def test_a_dead_api_server_is_reported_once_and_stops_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "9")
    monkeypatch.setattr(progress, "FIRST", 0.01)
    monkeypatch.setattr(progress, "PAUSE", 0.01)
    report = progress.Progress(world(progressConfigMap="x"), "train", 1)
    for step in range(3):
        report.update(at(step))
        report.end()
    assert sum("progress cannot be reported" in record.message for record in caplog.records) == 1


def test_outside_a_cluster_nothing_is_sent(world: World) -> None:
    report = progress.Progress(world(progressConfigMap="x"), "train", 1)
    report.update(at(1))
    report.end()
    assert progress.address(world(progressConfigMap="x")) is None


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    """A free port, on which the metrics are."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = int(free.getsockname()[1])
    monkeypatch.setenv("FINETUNE_METRICS_PORT", str(number))
    return number


def scraped(port: int) -> str:
    return str(urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode())


def test_metrics_are_served_with_the_jobs_labels(world: World, port: int) -> None:
    report = progress.Progress(world(), "train", 1)
    report.metrics.set(loss=0.5, step=7)
    text = scraped(port)
    labels = '{finetunejob="tiny",namespace="ml",revision="r1",stage="train"}'
    assert f"finetune_trainer_loss{labels} 0.5" in text
    assert f"finetune_trainer_step{labels} 7.0" in text
    assert "finetune_trainer_validation_loss{" not in text, "what is not known yet is not 0"
    progress.Progress(world(), "train", 1)  # the port is taken: a warning, no end


def test_how_far_a_stage_is_is_a_metric_of_every_stage(world: World, port: int) -> None:
    progress.Progress(world(), "evaluate", 1).update(at(43))
    assert 'finetune_trainer_progress_ratio{finetunejob="tiny",namespace="ml",revision="r1",stage="evaluate"} 0.43' in (
        scraped(port)
    )


def test_promtool_likes_what_the_trainer_exports(world: World, port: int) -> None:
    report = progress.Progress(world(), "train", 1)
    report.metrics.set(**dict.fromkeys(metrics.TRAINER, 1.0))
    text = scraped(port)
    assert text.count("# TYPE ") == len(metrics.TRAINER)
    assert prometheus.problems(text) == ""


@pytest.mark.parametrize("seconds, text", [(0.4, "0s"), (45, "45s"), (750, "12m30s"), (11_130, "3h05m")])
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def test_outside_a_cluster_the_run_file_may_name_a_file(world: World, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "progress.json"
    channel = progress.Progress(world(progressFile=str(path)), "train", 2)
    channel.update(status.Progress(percent=50, step=1, total_steps=2))
    channel.end()
    report = outcome.ProgressReport.model_validate_json(path.read_bytes())
    assert (report.revision, report.attempt, report.progress.step) == ("r1", 2, 1)
