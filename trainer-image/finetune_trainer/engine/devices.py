"""The device of a process: the GPUs that its pod was granted, or the CPU.

A pod that was granted GPUs which it cannot use must not train on the CPU in silence: it ends at once, and says what it sees.
"""

import os
import pathlib

import torch

from finetune_api import job, reasons, run
from finetune_trainer.process import errors, log

DRIVERS = {13: 580, 12: 525}
"""The oldest branch of NVIDIA's driver for each major version of CUDA (its release notes, "CUDA minor version compatibility")."""

BFLOAT16 = (8, 0)
"""The oldest compute capability that multiplies in bfloat16."""

DRIVER = pathlib.Path("/proc/driver/nvidia/version")


def count() -> int:
    """GPUs that this process may use; 0 where none was granted and none is there. Raises Failure(GpuNotVisible) when fewer are
    visible than were granted, Failure(GpuUnsupported) when one is too old for the image."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return 0  # hidden on purpose, as on a node whose GPUs exist for the scheduler alone
    granted, visible = int(os.environ.get(run.GPUS) or 0), torch.cuda.device_count()
    problem = _problem() if granted or visible else None
    if visible < granted or problem:
        raise errors.Failure(
            reasons.Reason.GPU_NOT_VISIBLE, _not_visible(granted, visible, problem or "CUDA starts without an error")
        )
    for number in range(visible):
        _check_age(number)
    return visible


def of(number: int = 0) -> torch.device:
    """The GPU of this number, else the CPU. Raises as `count`."""
    return torch.device("cuda", number) if count() else torch.device("cpu")


def dtype(precision: job.Precision, where: torch.device) -> torch.dtype:
    """The precision of the frozen base. Auto: bfloat16 where the hardware has it. Raises Failure(GpuUnsupported) where a job
    demands what the GPU lacks."""
    if where.type == "cuda":
        fast = torch.cuda.get_device_capability(where) >= BFLOAT16
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if precision is job.Precision.AUTO:
        if where.type == "cuda" and not fast:
            log.warning("the GPU has no bfloat16; the base model is loaded in float32", gpu=_name(where.index or 0))
        return torch.bfloat16 if fast else torch.float32
    if precision is job.Precision.BFLOAT16 and where.type == "cuda" and not fast:
        raise errors.Failure(
            reasons.Reason.GPU_UNSUPPORTED,
            f"training.precision is BFloat16, and {_name(where.index or 0)} has no bfloat16: it needs compute capability "
            f"{_text(BFLOAT16)} (Ampere or newer). Choose another resources.gpuType, or precision Auto or Float32",
        )
    return torch.bfloat16 if precision is job.Precision.BFLOAT16 else torch.float32


def _problem() -> str | None:
    """Why CUDA does not start."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return errors.describe(error)
    return None


def _not_visible(granted: int, visible: int, problem: str) -> str:
    files = sorted(str(path) for path in pathlib.Path("/dev").glob("nvidia[0-9]*"))
    cuda = torch.version.cuda
    needed = DRIVERS.get(int(cuda.partition(".")[0])) if cuda else None
    wanted = (
        f"CUDA {cuda}" + (f", which needs driver {needed} or newer" if needed else "") if cuda else "no CUDA at all"
    )
    return (
        f"the pod was granted {granted} GPU(s), and {visible} can be used: {problem}. Device files: "
        f"{', '.join(files) or 'none'}; driver: {_driver()}; the image's torch is built for {wanted}. Check nvidia-smi on the "
        "node, the NVIDIA container toolkit or GPU operator there, and the runtime class of the pod (runtimeClassName of the "
        "chart's gpuTypes)"
    )


def _driver() -> str:
    try:
        return " ".join(DRIVER.read_text().split("\n")[0].removeprefix("NVRM version:").split())
    except OSError:
        return "none visible"


def _check_age(number: int) -> None:
    """Raises Failure(GpuUnsupported) for a GPU that is older than all for which the image's torch has kernels."""
    built = [
        int(name.removeprefix("sm_").rstrip("af")) for name in torch.cuda.get_arch_list() if name.startswith("sm_")
    ]
    capability = torch.cuda.get_device_capability(number)
    if built and capability[0] * 10 + capability[1] < min(built):
        oldest = divmod(min(built), 10)
        raise errors.Failure(
            reasons.Reason.GPU_UNSUPPORTED,
            f"{_name(number)} has compute capability {_text(capability)}, and the image's torch (CUDA {torch.version.cuda}) "
            f"needs {_text(oldest)} or newer. Choose another resources.gpuType",
        )


def _name(number: int) -> str:
    return f"GPU {number} ({torch.cuda.get_device_name(number)})"


def _text(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
