"""Cores and memory that this process may use, by its cgroup's limits rather than by the host's size. No torch."""

import os
import pathlib
import re
import shutil

CODES = 128
"""Shapes of matrix products whose generated code oneDNN caches. More would make long rows of many lengths faster, at 0.65 MiB
each."""

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
"""Parameters of glibc's mallopt(3)."""

LARGE = 4 << 20
"""Bytes of a block that gets its own pages."""

CGROUP = pathlib.Path("/sys/fs/cgroup")


def c_compiler() -> bool:
    """Whether there is a C compiler, which Triton and torch.compile need for kernels."""
    return bool(os.environ.get("CC") or any(shutil.which(name) for name in ("cc", "gcc", "clang")))


def threads() -> int:
    """OMP_NUM_THREADS where it is set, else the cores of this process's affinity, or fewer where its cgroup has a CPU limit."""
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()  # cgroup v2
    except (OSError, ValueError):
        try:
            quota = (CGROUP / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (CGROUP / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return cores
    if quota in ("max", "-1"):
        return cores
    return min(cores, max(1, -(-int(quota) // int(period))))


def memory() -> int:
    """Bytes that this process may use: its cgroup's limit, or the host's memory."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return min(physical, int((CGROUP / name).read_text()))
        except (OSError, ValueError):
            continue
    return physical


def return_freed_memory() -> None:
    """Makes glibc return large blocks to the system when they are freed, in every thread, instead of keeping them in a heap."""
    import ctypes

    try:
        choose = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library
    choose(M_MMAP_THRESHOLD, LARGE)
    choose(M_ARENA_MAX, 2)


def accelerated() -> bool:
    """Whether there is a GPU, without asking torch."""
    return any(pathlib.Path("/dev").glob("nvidia[0-9]*")) or pathlib.Path("/dev/kfd").exists()


def bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16: as `model.dtype` asks torch."""
    try:
        flags = re.search(r"^flags\s*:(.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return False
    return flags is not None and not {"avx512_bf16", "amx_tile"}.isdisjoint(flags[1].split())


def peak() -> int:
    """Peak memory of this process in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work() -> pathlib.Path:
    """The folder for what a stage downloads and writes; the pods mount an emptyDir there."""
    folder = pathlib.Path(os.environ.get("FINETUNE_WORK", "/tmp/finetune"))  # noqa: S108
    folder.mkdir(parents=True, exist_ok=True)
    return folder
