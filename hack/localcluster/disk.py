"""The disk space of the tools, and how to free it."""

import os
import shutil
from pathlib import Path

from localcluster import machine, plan, process
from toolbox import cache, mounts, say

# Made again by building and pushing images; the rest takes minutes or a network to make again.
_IMAGES = ("images", "registry", "containerd")
_REST = ("bin", "model", "bench", "logs")


def usage() -> dict[str, int]:
    """Bytes on disk by part of the cache; files that are linked several times count once."""
    return {name: size(cache.root() / name) for name in (*_IMAGES, *_REST, "clusters")}


def size(folder: Path) -> int:
    total = 0
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder):
        # The view through an overlay's mount repeats what lies in its layers.
        folders[:] = [name for name in folders if not os.path.ismount(os.path.join(place, name))]
        for name in files:
            try:
                status = os.lstat(os.path.join(place, name))
            except OSError:
                continue
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total += status.st_blocks * 512
    return total


def clean(*, everything: bool) -> None:
    """Removes what the tools can make again; refuses while a cluster uses it."""
    alive = [found.name for found in plan.all_plans() if any(map(process.alive, process.load(found.records).values()))]
    if alive:
        raise say.Problem(f"still running: {', '.join(alive)}. Stop with: python3 hack/localcluster down --all")
    if (left := machine.current()) and left.cache == str(cache.root()):
        machine.clean(left)
    shutil.rmtree(cache.run_folder(), ignore_errors=True)
    freed = 0
    for name in (*_IMAGES, *(_REST if everything else ()), "clusters"):
        folder = cache.root() / name
        amount = size(folder)
        if not folder.exists():
            continue
        mounts.remove(folder)
        shutil.rmtree(folder)
        freed += amount
        say.line(f"  removed {folder}: {say.size(amount)}")
    say.line(
        f"  {say.size(freed)} freed"
        + ("" if everything else "; --all removes models, benchmark, binaries and logs too")
    )
