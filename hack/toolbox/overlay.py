"""Whether a folder can hold the layers of overlay mounts: not on an overlay itself, nor without the right to mount."""

import os
import tempfile
from pathlib import Path

from toolbox import shell


def works(folder: Path) -> bool:
    if os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory(dir=folder, prefix=".overlay-") as scratch:
        for name in ("lower", "upper", "work", "merged"):
            Path(scratch, name).mkdir()
        options = f"lowerdir={scratch}/lower,upperdir={scratch}/upper,workdir={scratch}/work"
        merged = Path(scratch, "merged")
        shell.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=False)
        mounted = merged.is_mount()
        if mounted:
            shell.run(["umount", merged])
        return mounted
