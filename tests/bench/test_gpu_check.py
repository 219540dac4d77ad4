"""`make gpu-check`, shrunk on the CPU: it runs where there is a GPU once in a while, and must not rot until then."""

import json
import os
import pathlib
import runpy
import sys
import types
from typing import Any

import pytest
import torch
from tests.bench.gpu import equality, models, report, speed, together
from tests.trainer import decoders

from finetune_api import job
from support import warm

CPU = torch.device("cpu")


def test_every_workload_is_measured_with_both_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(models.SHAPES, "Qwen 2.5 7B")
    cells = list(speed.cells(CPU, 1e12, 0.0, shrunk=True))
    assert [cell.engine for cell in cells] == ["Fast", "Plain", "TRL"] * len(speed.WORKLOADS)
    assert all(cell.tokens_per_second > 0 and cell.estimated > 0 for cell in cells)
    table = report.text("a device", 1e12, [], cells)
    assert table.count("| Llama 3.1 8B |") == 12
    assert "c: a shared prompt of 430 tokens" in table
    assert len(json.loads(report.document("a device", 1e12, [], cells))["cells"]) == 12


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
