"""What a process uses, as the kernel counts it."""

import dataclasses
import os
import pathlib
import time


@dataclasses.dataclass(frozen=True)
class Usage:
    """At one moment. `at`: seconds of a steady clock; `cpu`: seconds since the process began; the rest are bytes."""

    at: float
    cpu: float
    memory: int
    peak: int


def of(pid: int) -> Usage:
    """Raises OSError when there is no such process."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    sizes = {line.partition(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith("Vm")}
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return Usage(time.monotonic(), cpu, int(sizes["VmRSS"]) * 1024, int(sizes["VmHWM"]) * 1024)


def share(before: Usage, after: Usage) -> float:
    """The part of one core that was used in between."""
    return (after.cpu - before.cpu) / max(after.at - before.at, 1e-9)
