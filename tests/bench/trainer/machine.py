"""What the benchmark runs on, without names that tell whose it is, and how fast it multiplies matrices."""

import dataclasses
import json
import os
import pathlib
import platform
import subprocess
import sys

from toolbox import say

SETS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")
"""Instruction sets that matter for matrix products, by the names of /proc/cpuinfo."""


@dataclasses.dataclass(frozen=True)
class Machine:
    model: str
    cores: int
    """That this process may use."""
    memory: int
    """Bytes."""
    instructions: list[str]
    system: str
    python: str
    gflops: float
    """Billions of bfloat16 operations per second in matrix products, measured in this run."""


def describe() -> Machine:
    """This machine; measures its matrix products, some seconds. Raises say.Problem."""
    facts = _cpuinfo()
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    return Machine(
        model=processor(),
        cores=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        instructions=[name for name in SETS if name in flags],
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        gflops=rate(),
    )


def processor() -> str:
    return _cpuinfo().get("model name", platform.processor() or platform.machine())


def rate() -> float:
    """GFLOP/s of bfloat16 matrix products. Raises say.Problem."""
    script = pathlib.Path(__file__).parent / "sides" / "matmul.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    if done.returncode:
        raise say.Problem(f"the rate of matrix products could not be measured:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout)["gflops"])


def _cpuinfo() -> dict[str, str]:
    """The facts of the first core."""
    found: dict[str, str] = {}
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if not line.strip():
            break
        found[name.strip()] = value.strip()
    return found
