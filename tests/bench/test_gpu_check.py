"""`make gpu-check`, shrunk on the CPU: it runs where there is a GPU once in a while, and must not rot until then."""

import json

import pytest
import torch
from tests.bench.gpu import equality, models, report, speed
from tests.trainer import decoders

from finetune_api import job

CPU = torch.device("cpu")


def test_every_workload_is_measured_with_both_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(models.SHAPES, "Qwen 2.5 7B")
    cells = list(speed.cells(CPU, 1e12, 0.0, shrunk=True))
    assert [cell.engine for cell in cells] == ["Fast", "Plain"] * len(speed.WORKLOADS)
    assert all(cell.tokens_per_second > 0 and cell.estimated > 0 for cell in cells)
    table = report.text("a device", 1e12, [], cells)
    assert table.count("| Llama 3.1 8B |") == 8
    assert "c: a shared prompt of 430 tokens" in table
    assert len(json.loads(report.document("a device", 1e12, [], cells))["cells"]) == 8


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
