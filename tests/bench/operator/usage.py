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


def of(*pids: int) -> Usage:
    """Of these processes together. Raises OSError when there is no such process."""
    each = [_of(pid) for pid in pids]
    return Usage(each[0].at, *(sum(getattr(one, name) for one in each) for name in ("cpu", "memory", "peak")))


def machine() -> float:
    """Seconds of CPU that all programs have used since the machine started."""
    user, nice, system, _, _, interrupts, soft = map(int, pathlib.Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")


def _of(pid: int) -> Usage:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    sizes = {line.partition(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith("Vm")}
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return Usage(time.monotonic(), cpu, int(sizes["VmRSS"]) * 1024, int(sizes["VmHWM"]) * 1024)


def share(before: Usage, after: Usage) -> float:
    """The part of one core that was used in between."""
    return (after.cpu - before.cpu) / max(after.at - before.at, 1e-9)
