"""`make gpu-check`, shrunk on the CPU: it runs where there is a GPU once in a while, and must not rot until then."""

import json
import os
import pathlib
import runpy
import sys
import types
import weakref
from typing import Any

import pytest
import torch
from tests.bench.gpu import __main__ as command
from tests.bench.gpu import equality, models, report, speed, together
from tests.trainer import decoders

from finetune_api import job
from finetune_trainer.engine import passes
from support import warm

CPU = torch.device("cpu")


@pytest.fixture
def one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command without what takes long: one shape, two families, one process."""
    monkeypatch.delitem(models.SHAPES, "Qwen 2.5 7B")
    few = {name: decoders.FAMILIES[name] for name in ("llama 3", "gemma 2, soft-capping")}
    monkeypatch.setattr(decoders, "FAMILIES", few)
    monkeypatch.setattr(together, "cells", lambda **_: iter(()))


def result(folder: pathlib.Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "gpu.json").read_text())
    return found


@pytest.mark.usefixtures("one_shape")
def test_the_command_checks_and_measures_every_workload_with_each_engine(tmp_path: pathlib.Path) -> None:
    assert command.main(["--output", str(tmp_path)]) == 0
    found = result(tmp_path)
    assert len(found["checks"]) == 7
    assert all(one["passed"] for one in found["checks"])
    assert [cell["engine"] for cell in found["cells"]] == ["Fast", "Plain", "TRL"] * len(speed.WORKLOADS)
    assert all(cell["tokens_per_second"] > 0 and cell["estimated"] > 0 for cell in found["cells"])
    table = (tmp_path / "gpu.md").read_text()
    assert table.count("| Llama 3.1 8B |") == 12
    assert "c: a shared prompt of 430 tokens" in table


@pytest.mark.usefixtures("one_shape")
def test_what_ends_with_an_exception_is_recorded_and_the_rest_is_measured(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: a | kernel\nfailed")

    monkeypatch.setattr(speed, "WORKLOADS", speed.WORKLOADS[:1])
    monkeypatch.setattr(equality, "resumed", broken)
    monkeypatch.setattr(speed.peers, "measure", broken)
    monkeypatch.setattr(speed.passes, "Plain", broken)
    assert command.main(["--output", str(tmp_path)]) == 1
    found, errors = result(tmp_path), capsys.readouterr().err
    assert [cell["engine"] for cell in found["cells"] if not cell["fault"]] == ["Fast"]
    assert "Llama 3.1 8B, a: 4,096 tokens packed, Plain: RuntimeError: CUDA error" in errors
    assert "resumed after two of four steps: RuntimeError" in errors
    assert "TRL" not in errors, "a peer's failure is shown, and is none of ours"
    assert "RuntimeError: CUDA error: a / kernel failed |" in (tmp_path / "gpu.md").read_text()


def test_each_cell_is_saved_as_it_is_measured(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def two(*_: Any, **__: Any) -> Any:
        yield speed.Cell("a model", "w", "Fast", 1.0, 0.0, 0, 0, 0.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(equality, "checks", lambda where: iter([equality.Check("llama 3", 0.0, 1.0)]))
    monkeypatch.setattr(speed, "cells", two)
    with pytest.raises(KeyboardInterrupt):
        command.main(["--output", str(tmp_path)])
    assert [len(result(tmp_path)[kind]) for kind in ("checks", "cells")] == [1, 1]


def test_own_passes_that_do_not_prove_themselves_fail_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(models.SHAPES, "Qwen 2.5 7B")
    monkeypatch.setattr(speed, "WORKLOADS", speed.WORKLOADS[:1])
    monkeypatch.setattr(speed.peers, "names", lambda where: [])
    monkeypatch.setattr(speed.passes, "of", lambda *of: passes.Plain(*of, "through transformers' passes: they differ"))
    own, plain = speed.cells(CPU, 1e12, 0.0, shrunk=True)
    assert (own.engine, plain.engine, plain.fault) == ("Fast", "Plain", "")
    assert "do not prove themselves here; training goes through transformers' passes: they differ" in own.fault
    assert report.failures([], [own, plain]) == [f"Llama 3.1 8B, a: 4,096 tokens packed, Fast: {own.fault}"]


def test_an_engine_is_freed_before_the_next_one_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    ours, learn = models.adapted, speed.objective.Supervised.learn

    def adapted(*of: Any, **more: Any) -> Any:
        assert not [one for one in made if one() is not None], "the one before is held"
        tuned = ours(*of, **more)
        made.append(weakref.ref(tuned))
        return tuned

    def short(self: Any, engine: Any, *of: Any) -> Any:
        if engine.shares:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return learn(self, engine, *of)

    monkeypatch.delitem(models.SHAPES, "Qwen 2.5 7B")
    monkeypatch.setattr(speed, "WORKLOADS", speed.WORKLOADS[:1])
    monkeypatch.setattr(speed.peers, "names", lambda where: [])
    monkeypatch.setattr(models, "adapted", adapted)
    monkeypatch.setattr(speed.objective.Supervised, "learn", short)
    own, plain = speed.cells(CPU, 1e12, 0.0, shrunk=True)
    assert (own.fault, own.allowed, len(made)) == ("out of memory", True, 2)
    assert plain.tokens_per_second > 0


def _forked(command: list[str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    assert command[:2] == [sys.executable, "-m"]
    sys.argv = command[2:]
    runpy.run_module(command[2], run_name="__main__")


def start(command: list[str], env: dict[str, str]) -> Any:
    """One of the two processes, forked from one that has torch loaded."""
    process = warm.context.Process(target=_forked, args=(command, env))
    process.start()
    return warm.Forked(process, pathlib.Path(os.devnull), pathlib.Path(os.devnull))


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 3])
def test_two_processes_have_the_same_loss_sharded_and_replicated(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "subprocess", types.SimpleNamespace(Popen=start))
    work = speed.WORKLOADS[number]
    found = [together.measure("Llama 3.1 8B", work, way, on_gpu=False, seconds=0.0) for way in together.WAYS]
    assert found[0][1] == pytest.approx(found[1][1], rel=0.01), "in bfloat16"
    assert all(rate > 0 for rate, *_ in found)


def test_a_resumed_training_is_bit_equal() -> None:
    assert equality.resumed(decoders.FAMILIES["llama 3"](), CPU) == 0.0


def test_own_passes_equal_the_standard_path_in_4_bits() -> None:
    config = decoders.FAMILIES["llama 3"]()
    assert equality.check("llama 3", config, torch.bfloat16, CPU, job.Objective.SFT, quantised=True).passed


def test_the_real_shapes_are_those_of_the_catalogue() -> None:
    made = models.config_of("Llama 3.1 8B", shrunk=False)
    assert (made.hidden_size, made.num_hidden_layers, made.vocab_size) == (4096, 32, 128256)
    assert models.config_of("Qwen 2.5 7B", shrunk=False).intermediate_size == 18944


@pytest.mark.parametrize("kind", [job.Objective.SFT, job.Objective.DPO])
def test_own_passes_equal_the_standard_path(kind: job.Objective) -> None:
    config = decoders.FAMILIES["gemma 2, soft-capping"]()
    found = equality.check("gemma 2", config, torch.float32, CPU, kind)
    assert found.passed
    assert found.difference < 1e-4


def test_a_difference_is_shown_and_fails() -> None:
    wrong = equality.Check("llama 3", 0.5, 1e-3)
    assert not wrong.passed
    assert "FAILS" in report.text("a device", 1e12, [wrong], [])
