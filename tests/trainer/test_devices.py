"""The device of a process: what happens where GPUs were granted and are not visible, too few, too old, or without bfloat16."""

import pathlib
from collections.abc import Callable

import pytest
import torch

from finetune_api import exits, job, reasons, run
from finetune_trainer import __main__
from finetune_trainer.engine import devices
from finetune_trainer.process import errors

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (run.GPUS, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA of a machine with two Turing GPUs; only what it says of them."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _=None: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90a", "compute_120"])


def test_without_a_granted_gpu_the_cpu_is_used() -> None:
    assert devices.of() == torch.device("cpu")


def test_a_granted_gpu_that_is_not_visible_ends_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real CUDA of a machine without a GPU, such as this one, says why."""
    monkeypatch.setenv(run.GPUS, "2")
    with pytest.raises(errors.Failure) as found:
        devices.of()
    assert found.value.reason is reasons.Reason.GPU_NOT_VISIBLE
    assert found.value.exit == 1, "retried: another node may be well"
    for part in (
        "granted 2",
        "0 can be used",
        "driver",
        f"CUDA {torch.version.cuda}",
        "nvidia-smi",
        "runtimeClassName",
    ):
        assert part in found.value.message


@pytest.mark.parametrize("stage", ["train", "baseline"])
def test_no_stage_that_loads_the_model_runs_on_the_cpu_instead(
    stage: str, world: Callable[..., run.Run], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    from finetune_trainer.stages import preflight

    spec = world()
    preflight.preflight(spec)
    file = tmp_path / "run.json"
    file.write_text(spec.model_dump_json(by_alias=True, exclude_none=True))
    monkeypatch.setenv(run.GPUS, "1")
    assert __main__.main([stage, "--run", str(file)]) == 1
    assert "GpuNotVisible" in (tmp_path / "termination").read_text()


def test_fewer_gpus_than_granted_are_an_error_too(monkeypatch: pytest.MonkeyPatch, gpus: None) -> None:
    monkeypatch.setenv(run.GPUS, "4")
    with pytest.raises(errors.Failure, match=r"granted 4 GPU.*2 can be used"):
        devices.count()
    monkeypatch.setenv(run.GPUS, "2")
    assert devices.count() == 2
    assert devices.of(1) == torch.device("cuda", 1)


def test_gpus_may_be_hidden_on_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(run.GPUS, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.of() == torch.device("cpu")


def test_a_gpu_older_than_every_kernel_of_the_image_is_refused(monkeypatch: pytest.MonkeyPatch, gpus: None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (7, 0))
    with pytest.raises(errors.Failure) as found:
        devices.count()
    assert found.value.reason is reasons.Reason.GPU_UNSUPPORTED
    assert found.value.exit == exits.Exit.INVALID
    assert "7.0" in found.value.message
    assert "7.5 or newer" in found.value.message


def test_bfloat16_is_refused_where_the_gpu_would_emulate_it(gpus: None) -> None:
    with pytest.raises(errors.Failure, match="Tesla T4") as found:
        devices.dtype(job.Precision.BFLOAT16, GPU)
    assert found.value.reason is reasons.Reason.GPU_UNSUPPORTED
    assert devices.dtype(job.Precision.AUTO, GPU) is torch.float32


def test_a_gpu_with_bfloat16_uses_it(monkeypatch: pytest.MonkeyPatch, gpus: None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (8, 0))
    assert devices.dtype(job.Precision.AUTO, GPU) is torch.bfloat16
