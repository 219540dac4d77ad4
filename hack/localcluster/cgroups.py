"""The control group of all pods of the node, by which all of their processes can be found and ended."""

import os
import signal
import time
from pathlib import Path

from toolbox import say

_ROOT = Path("/sys/fs/cgroup")
NAME = "finetune-localcluster"


def unified() -> bool:
    """Whether the machine has cgroup v2 only."""
    return (_ROOT / "cgroup.controllers").exists()


def folders() -> list[Path]:
    """The paths of our group: once with cgroup v2, once below every controller with v1."""
    if unified():
        return [_ROOT / NAME]
    hierarchies = [path for path in sorted(_ROOT.glob("*")) if path.is_dir() and not path.is_symlink()]
    return [path / NAME for path in hierarchies if (path / "cgroup.procs").exists()]


def make() -> None:
    if not unified() and not folders():
        raise say.Problem(f"no control groups are mounted below {_ROOT}: the kubelet cannot run on this machine")
    if unified():
        for controller in (_ROOT / "cgroup.controllers").read_text().split():
            try:
                (_ROOT / "cgroup.subtree_control").write_text(f"+{controller}")
            except OSError as error:
                if controller in ("cpu", "memory", "pids"):
                    raise say.Problem(
                        f"the cgroup controller {controller} cannot be handed to pods ({error.strerror}). Inside a"
                        " container this needs a cgroup namespace of its own whose root holds no processes."
                    ) from error
    for folder in folders():
        folder.mkdir(exist_ok=True)
        if folder.parent.name.startswith("cpuset"):
            # A new cpuset of cgroup v1 is empty, and nothing can run in it.
            for name in ("cpuset.cpus", "cpuset.mems"):
                if not (folder / name).read_text().strip():
                    (folder / name).write_text((folder.parent / name).read_text())


def processes() -> set[int]:
    found: set[int] = set()
    for folder in folders():
        for parent, _, _ in os.walk(folder):  # unlike rglob, not troubled by groups that are removed meanwhile
            try:
                found.update(map(int, (Path(parent) / "cgroup.procs").read_text().split()))
            except OSError:
                continue
    return found - {0}


def kill(seconds: float = 10) -> None:
    """Kills every process of every pod, those that they start meanwhile included."""
    deadline = time.monotonic() + seconds
    while (left := processes()) and time.monotonic() < deadline:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)


def remove() -> None:
    for folder in folders():
        if folder.exists():
            for parent, _, _ in os.walk(folder, topdown=False):
                _remove_folder(Path(parent))


def _remove_folder(path: Path) -> None:
    # A group stays busy for a moment after its last process ended.
    for _ in range(50):
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.02)
        else:
            return
