"""The demo's requirements, checked before anything is changed."""

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from toolbox import cache, say, shell

GIB = 1024**3
MEMORY = 8 * GIB
DISK_COLD = 35 * GIB
DISK_WARM = 6 * GIB


@dataclass(frozen=True)
class Machine:
    system: str
    root: bool
    cores: int
    memory: int  # available bytes
    disk: int  # free bytes at the cache
    warm: bool  # the cache has binaries and images of an earlier run


def look() -> Machine:
    root = cache.root()
    return Machine(
        system=platform.system(),
        root=os.geteuid() == 0,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=_available_memory(),
        disk=shutil.disk_usage(_existing(root)).free,
        warm=(root / "images").exists() and any((root / "bin").glob("*/kubelet")),
    )


def missing_locally(machine: Machine) -> list[str]:
    """Why the local cluster cannot run here, with what to do."""
    other = "or give KUBECONFIG and REGISTRY of an existing cluster"
    if machine.system != "Linux":
        return [f"The local cluster runs on Linux, this is {machine.system}: {other}."]
    found = []
    if not machine.root:
        found.append(f"The local cluster's node needs root (network, mounts): run `sudo make demo`, {other}.")
    if machine.memory < MEMORY:
        found.append(
            f"About {MEMORY // GIB} GB of free memory are needed for training and serving, there are"
            f" {machine.memory / GIB:.1f}: end other programs, {other}."
        )
    disk = DISK_WARM if machine.warm else DISK_COLD
    if machine.disk < disk:
        found.append(
            f"{disk // GIB} GB of free disk are needed below {cache.root()}, there are {machine.disk / GIB:.1f}:"
            " free some, or set FINETUNE_CACHE to a folder on another disk."
        )
    return found


def missing_for_images() -> list[str]:
    """Why images for an existing cluster cannot be built, with what to do."""
    if shell.find("docker") or shell.find("buildah") or (os.geteuid() == 0 and shell.find("apt-get")):
        return []
    return ["Images are built with docker or buildah, and neither is installed: install one of them."]


def require(missing: list[str]) -> None:
    if missing:
        raise say.Problem("this machine cannot run the demo yet.\n  - " + "\n  - ".join(missing))


def _available_memory() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return MEMORY


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
