"""How far a stage is: what its port answers, and what a progress file holds."""

import datetime
import pathlib
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest

from finetune_api import metrics, outcome, run, status
from finetune_operator import progress as reader
from finetune_trainer.process import progress
from support import ports, prometheus

World = Callable[..., run.Run]


def at(step: int) -> status.Progress:
    return status.Progress(summary=f"{step}%", percent=step, step=step, total_steps=100)


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    """A free port, at which the stage answers."""
    number = ports.free()
    monkeypatch.setenv("FINETUNE_METRICS_PORT", str(number))
    return number


def test_the_port_answers_nothing_first_and_then_the_latest_report(world: World, port: int) -> None:
    report = progress.Progress(world(uid="the-uid"), "train", attempt=3)
    assert answer(port, run.PROGRESS_PATH) == (204, "")
    for step in (1, 42, 43):
        report.update(at(step))
    saved = status.Checkpoint(uri="s3://b/c", step=40, saved_at=datetime.datetime.now(datetime.UTC))
    report.saved(saved)
    code, text = answer(port, run.PROGRESS_PATH)
    found = outcome.ProgressReport.model_validate_json(text)
    assert code == 200
    assert (found.uid, found.revision, found.attempt, found.stage) == ("the-uid", "r1", 3, "train")
    assert (found.progress.summary, found.checkpoint) == ("43%", saved)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_the_operator_reads_it_over_either_family(world: World, port: int, host: str) -> None:
    report = progress.Progress(world(uid="the-uid"), "train", 1)
    async with reader.session() as http:
        assert await reader.ask(http, host, port) is None
        report.update(at(7))
        found = await reader.ask(http, host, port)
    assert found is not None
    assert (found.uid, found.progress.step) == ("the-uid", 7)


def test_the_longest_report_is_short_enough_to_be_read(world: World) -> None:
    report = progress.Progress(world(uid="u" * 36), "train", 10**6)
    wide = status.Progress(
        summary="100%", percent=100, step=10**9, total_steps=10**9, epoch="1" * 20, loss="1" * 20,
        validation_loss="1" * 20, tokens_per_second=10**9, eta="99999h59m", updated_at=progress.now(),
    )  # fmt: skip
    report.update(wide)
    report.saved(status.Checkpoint(uri="s3://" + "x" * 1500, step=10**9, saved_at=progress.now()))
    found = report.report()
    assert found is not None
    assert len(progress.text(found).encode()) < run.PROGRESS_BYTES


def test_nothing_else_is_answered(world: World, port: int) -> None:
    progress.Progress(world(), "train", 1)
    assert answer(port, "/")[0] == answer(port, "/progress/../metrics")[0] == 404


def answer(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as found:
            return found.status, found.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


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


def test_a_progress_file_is_replaced_regularly_and_ends_with_the_last_report(
    world: World, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(progress, "replace", lambda _, content: written.append(content))
    channel = progress.Progress(world(progressFile=str(tmp_path / "progress.json")), "train", 1)
    for step in range(101):
        channel.update(at(step))
    channel.end()
    assert len(written) == 2, "the first one, and the last"
    assert outcome.ProgressReport.model_validate_json(written[-1]).progress.step == 100


def test_a_file_that_cannot_be_written_is_reported_once_and_stops_nothing(
    world: World, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    channel = progress.Progress(world(progressFile=str(tmp_path / "absent" / "progress.json")), "train", 1)
    for step in range(3):
        channel.update(at(step))
        channel.end()
    assert sum("progress cannot be reported" in record.message for record in caplog.records) == 1
