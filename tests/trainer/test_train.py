import errno
import hashlib
import json
import os
import pathlib
import shutil
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.trainer import tiny

from finetune_api import exits, outcome, reasons, run
from finetune_trainer import __main__
from finetune_trainer.data import tokens
from finetune_trainer.engine import loss, passes
from finetune_trainer.process import errors, signals
from finetune_trainer.stages import preflight, train
from finetune_trainer.store import folders, storage
from finetune_trainer.training import adapter, checkpoint, loop
from support import warm

World = Callable[..., run.Run]


def trained(spec: run.Run, scale: float = 1.0) -> outcome.Training:
    preflight.preflight(spec)
    found = train.train(spec, 1, scale).training
    assert found is not None
    return found


def path_of(uri: str) -> pathlib.Path:
    return pathlib.Path(uri.removeprefix("file://"))


def losses(spec: run.Run) -> list[float]:
    return [point["loss"] for point in history(spec)["history"]]


def history(spec: run.Run) -> Any:
    return json.loads((path_of(spec.layout.adapter) / "training.json").read_text())


def test_the_loss_falls_and_the_adapter_is_described(world: World) -> None:
    spec = world(training={"maxSteps": 30})
    found = trained(spec)
    assert losses(spec)[-1] < 0.5 * losses(spec)[0]
    assert found.steps == 30
    assert found.validation_loss is not None
    assert found.adapter.rank == 8
    assert found.adapter.chat_template
    folder = path_of(found.adapter.uri)
    assert hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest() == found.adapter.sha256
    assert (folder / "chat_template.jinja").read_text() == tiny.CHAT_TEMPLATE
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny-base"
    assert len(history(spec)["validations"]) >= 5
    assert checkpoint.complete(storage.Storage(), spec.layout) == []


def test_the_adapter_loads_in_peft_with_the_same_logits(world: World, base: pathlib.Path) -> None:
    import peft
    import transformers

    spec = world(training={"precision": "Float32"})
    trained(spec)
    ids = torch.tensor([tokens.load(base, spec.training).tokenizer("Is 12 late?")["input_ids"]])
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    expected = plain(ids).logits
    loaded = peft.PeftModel.from_pretrained(plain, str(path_of(spec.layout.adapter)))
    theirs = loaded(ids).logits
    from finetune_trainer.engine import lora, model

    mine = lora.add(model.load(base, spec.training.precision, torch.device("cpu")), spec.training.lora, "tiny-base")
    adapter.load(path_of(spec.layout.adapter), mine)
    mine.eval()
    torch.testing.assert_close(mine(ids).logits, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(theirs, expected, atol=1e-3)


def test_a_finished_adapter_is_not_trained_again(world: World) -> None:
    spec = world()
    first = trained(spec)
    written = (path_of(spec.layout.adapter) / "adapter_model.safetensors").stat().st_mtime_ns
    again = train.train(spec, 2, 1.0).training
    assert again == first
    assert (path_of(spec.layout.adapter) / "adapter_model.safetensors").stat().st_mtime_ns == written


def test_micro_batches_change_neither_losses_nor_weights(world: World, tmp_path: pathlib.Path) -> None:
    """Half the micro-batch after an out-of-memory is the same training."""
    whole = world(training={"precision": "Float32"})
    trained(whole)
    halved = whole.model_copy(update={"revision": "r2"})
    trained(halved, scale=0.2)
    assert losses(halved) == pytest.approx(losses(whole), rel=1e-3)


def test_early_stopping_keeps_the_best_adapter(world: World) -> None:
    """Validation examples with the opposite answers: the better training does, the worse validation becomes."""
    rows = tiny.examples(60)
    wrong = [
        json.loads(json.dumps(row).replace("true", "tru").replace("false", "true"))
        for row in tiny.examples(40, start=100)
    ]
    spec = world(rows)
    path = path_of(spec.dataset.train[0]).with_name("other.jsonl")
    path.write_text(tiny.jsonl(wrong))
    spec = world(
        rows,
        dataset={"validation": {"uris": [f"file://{path}"]}},
        training={"maxSteps": 200, "earlyStopping": {"patience": 1}, "learningRate": 0.05},
    )
    found = trained(spec)
    assert found.steps < 200
    assert found.best_step is not None
    assert found.best_step < found.steps
    assert found.validation_loss == min(point["loss"] for point in history(spec)["validations"])


def test_a_diverging_loss_ends_with_its_own_code(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = world(training={"maxSteps": 3})
    preflight.preflight(spec)
    monkeypatch.setattr(loss, "total", lambda states, *_: (float("nan"), states))
    with pytest.raises(errors.Failure, match=r"training\.learningRate") as caught:
        train.train(spec, 1, 1.0)
    assert caught.value.reason is reasons.Reason.LOSS_DIVERGED
    assert caught.value.exit == exits.Exit.DIVERGED


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_ends_with_its_own_code(
    error: Exception, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    spec = world()
    preflight.preflight(spec)

    def run_out(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(passes.Fast, "forward", run_out)
    monkeypatch.setattr(signals, "install", lambda: None)
    monkeypatch.setattr("finetune_trainer.process.log.configure", lambda: None)
    (tmp_path / "run.json").write_text(spec.model_dump_json(by_alias=True, exclude_none=True))
    assert __main__.main(["train", "--run", str(tmp_path / "run.json")]) == exits.Exit.OUT_OF_MEMORY
    answer = outcome.Outcome.model_validate_json((tmp_path / "termination").read_text())
    assert answer.reason is reasons.Reason.TRAINER_OUT_OF_MEMORY


def test_without_preflight_training_says_what_to_do(world: World) -> None:
    with pytest.raises(errors.Failure, match="run the preflight stage"):
        train.train(world(), 1, 1.0)


class Interrupted(Exception):
    """A test's own end of a run."""


def interrupt_after(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
    """Makes a run end in the middle of the step after `step`, between forward and backward."""
    original = loss.total

    def total(*given: Any) -> Any:
        if len(seen) == step:
            raise error
        return original(*given)

    seen: list[int] = []
    accounted = loop.Loop.record

    def record(course: loop.Loop, *given: Any) -> None:
        accounted(course, *given)
        seen.append(course.state.step)

    monkeypatch.setattr(loss, "total", total)
    monkeypatch.setattr(loop.Loop, "record", record)


def test_an_error_in_the_middle_keeps_the_steps_before_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory in step 6: the next attempt, with half the micro-batch, begins there."""
    spec = world()
    preflight.preflight(spec)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5, torch.OutOfMemoryError("CUDA out of memory"))
        with pytest.raises(torch.OutOfMemoryError):
            train.train(spec, 1, 1.0)
    found = train.train(spec, 2, 0.5).training
    assert found is not None
    assert found.resumed_from == 5


def weights_of(spec: run.Run) -> str:
    return folders.sha256(path_of(spec.layout.adapter) / "adapter_model.safetensors")


@pytest.mark.parametrize(("step", "dropout"), [(1, 0.1), (7, 0), (11, 0.1)])
def test_a_stopped_run_resumes_to_the_same_curve_bit_for_bit(
    step: int, dropout: float, world: World, monkeypatch: pytest.MonkeyPatch, fresh: Callable[[], None]
) -> None:
    """Dropout included: the state of the generator is part of a checkpoint."""
    spec = world(training={"lora": {"rank": 8, "dropout": dropout}})
    trained(spec)
    other = spec.model_copy(update={"revision": "r2"})
    preflight.preflight(other)
    with monkeypatch.context() as patch:
        interrupt_after(patch, step, errors.Stopped())
        with pytest.raises(errors.Stopped):
            train.train(other, 1, 1.0)
    assert checkpoint.complete(storage.Storage(), other.layout) == [step]
    fresh()
    again = train.train(other, 2, 1.0).training
    assert again is not None
    assert again.resumed_from == step
    assert losses(other) == losses(spec)
    assert history(other)["validations"] == history(spec)["validations"]
    assert weights_of(other) == weights_of(spec)


def checkpointed(spec: run.Run, monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...]) -> None:
    """A run that saved checkpoints after these steps and then crashed."""
    preflight.preflight(spec)
    with monkeypatch.context() as patch:
        stepped = loop.Loop.step

        def step(course: loop.Loop) -> None:
            stepped(course)
            if course.state.step in steps:
                course.saver.save(course.snapshot())
            if course.state.step == steps[-1]:
                raise Interrupted

        patch.setattr(loop.Loop, "step", step)
        with pytest.raises(Interrupted):
            train.train(spec, 1, 1.0)


def test_half_written_and_damaged_checkpoints_are_passed_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = world(training={"checkpoints": {"keep": 9}})
    checkpointed(spec, monkeypatch, (3, 5, 7))
    half, damaged = (path_of(spec.layout.checkpoint(step)) for step in (7, 5))
    (half / "manifest.json").unlink()
    data = bytearray((damaged / "optimizer.safetensors").read_bytes())
    data[-1] ^= 1
    (damaged / "optimizer.safetensors").write_bytes(data)
    found = train.train(spec, 2, 1.0).training
    assert found is not None
    assert found.resumed_from == 3
    plain = spec.model_copy(update={"revision": "r2"})
    trained(plain)
    assert losses(spec) == losses(plain)


def test_checkpoints_of_other_data_or_settings_are_not_resumed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = world()
    checkpointed(spec, monkeypatch, (3,))
    changed = spec.model_copy(update={"training": spec.training.model_copy(update={"learning_rate": 0.001})})
    found = train.train(changed, 2, 1.0).training
    assert found is not None
    assert found.resumed_from is None


def test_only_the_newest_checkpoints_are_stored(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = world(training={"checkpoints": {"keep": 2}})
    checkpointed(spec, monkeypatch, (2, 4, 6, 8))
    assert checkpoint.complete(storage.Storage(), spec.layout) == [6, 8]
    assert not path_of(spec.layout.checkpoint(4)).exists()


def test_checkpoints_hold_no_pickle(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = world()
    checkpointed(spec, monkeypatch, (6,))
    names = sorted(path.name for path in path_of(spec.layout.checkpoint(6)).iterdir())
    assert names == [
        "adapter.safetensors",
        "best.safetensors",
        "manifest.json",
        "optimizer.safetensors",
        "random.safetensors",
        "state.json",
    ]


@pytest.mark.parametrize(
    "problem",
    [errors.Failure(reasons.Reason.STORAGE_UNAVAILABLE, "gone"), OSError(errno.ENOSPC, "No space left on device")],
    ids=["outage", "full disk"],
)
def test_training_continues_while_checkpoints_cannot_be_saved(
    problem: Exception, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = world(training={"checkpoints": {"everyMinutes": 0.01}})
    preflight.preflight(spec)
    saved = folders.save

    def save(store: storage.Storage, local: pathlib.Path, uri: str, extra: Any = None) -> folders.Manifest:
        if "checkpoints" in uri:
            raise problem
        return saved(store, local, uri, extra)

    monkeypatch.setattr(folders, "save", save)
    clock = iter(range(10**6))
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    assert train.train(spec, 1, 1.0).training is not None


def test_a_stop_during_the_last_upload_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, fresh: Callable[[], None]
) -> None:
    spec = world()
    preflight.preflight(spec)

    def upload(*_: Any) -> Any:
        raise errors.Stopped

    with monkeypatch.context() as patch:
        patch.setattr(adapter, "upload", upload)
        with pytest.raises(errors.Stopped):
            train.train(spec, 1, 1.0)
    assert checkpoint.complete(storage.Storage(), spec.layout) == [12]
    fresh()
    found = train.train(spec, 2, 1.0).training
    assert found is not None
    assert found.resumed_from == 12
    assert len(losses(spec)) == 12


def start(folder: pathlib.Path, run_file: pathlib.Path) -> warm.Forked:
    environment = os.environ | {
        "FINETUNE_WORK": str(folder / f"work-{time.monotonic_ns()}"),
        "FINETUNE_TERMINATION_PATH": str(folder / "termination"),
    }
    log = folder / f"log-{time.monotonic_ns()}"
    return warm.start("finetune_trainer", ["train", "--run", str(run_file)], environment, log)


def until(process: warm.Forked, message: str, step: int) -> None:
    """Reads the log until this message at or after this step."""
    while process.poll() is None:
        text = process.err.read_text() if process.err.exists() else ""
        for line in text.rpartition("\n")[0].splitlines():
            if line.startswith("{"):
                record = json.loads(line)
                if record["message"] == message and record.get("step", 0) >= step:
                    return
        time.sleep(0.02)
    raise AssertionError("the process ended early")


@pytest.mark.slow
def test_sigterm_and_sigkill_lose_nothing(world: World, tmp_path: pathlib.Path) -> None:
    """Real processes: killed, then stopped, then left alone; the curve is that of a run without any of it."""
    spec = world(training={"maxSteps": 120, "checkpoints": {"everyMinutes": 0.01}, "earlyStopping": {"patience": 100}})
    trained(spec)
    other = spec.model_copy(update={"revision": "r2"})
    preflight.preflight(other)
    run_file = tmp_path / "run.json"
    run_file.write_text(other.model_dump_json(by_alias=True, exclude_none=True))

    killed = start(tmp_path, run_file)
    until(killed, "checkpoint saved", 1)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(30) == -signal.SIGKILL
    steps = checkpoint.complete(storage.Storage(), other.layout)
    assert steps
    assert steps[-1] < 120

    stopped = start(tmp_path, run_file)
    until(stopped, "step", steps[-1] + 5)
    begun = time.monotonic()
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(30) == exits.Exit.STOPPED
    assert time.monotonic() - begun < 20
    assert "stopped" in outcome.Outcome.model_validate_json((tmp_path / "termination").read_text()).message
    assert checkpoint.complete(storage.Storage(), other.layout)[-1] >= steps[-1] + 5

    last = start(tmp_path, run_file)
    assert last.wait(60) == exits.Exit.DONE
    answer = outcome.Outcome.model_validate_json((tmp_path / "termination").read_text())
    assert answer.training is not None
    assert answer.training.resumed_from is not None
    assert losses(other) == losses(spec)
    assert weights_of(other) == weights_of(spec)


def test_the_micro_batch_is_that_of_the_engine_which_trains(
    world: World,
    base: pathlib.Path,
    tmp_path: pathlib.Path,
    fresh: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A family that is known by name, but with dropout in its attention, which the fast engine does not compute."""
    other = tmp_path / "other"
    shutil.copytree(base, other)
    config = json.loads((base / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.1}))
    rows = tiny.examples(40)
    for row in rows:
        row["messages"][0]["content"] = "You sort mail of a shop that sells old books by their colour. " * 12
    planned = {}
    for name, folder in (("fast", base), ("plain", other)):
        spec = world(
            rows,
            name=name,
            baseModel={"name": "tiny-base", "source": f"file://{folder}"},
            training={"maxSteps": 1, "batchSize": 16},
        )
        with caplog.at_level("INFO", "finetune"):
            trained(spec)
        (messages,) = [record.fields for record in caplog.records if record.getMessage() == "training"]
        planned[messages["engine"]] = messages["micro_batch_tokens"]
        caplog.clear()
        fresh()
    assert planned["plain"] <= 640 < planned["fast"], "what a long common prefix allows helps only where it is shared"
