"""What faults strike on the node's own machine: processes of pods."""

from pathlib import Path


def process(pod_uid: str, word: str) -> Path:
    """The folder in /proc of a pod's first process with this word on its command line.

    Raises LookupError: there is none, so the pod has ended or has not begun.
    """
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            mine = pod_uid in (folder / "cgroup").read_text() and word.encode() in (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if mine:
            found.append(folder)
    if not found:
        raise LookupError(f"no process of pod {pod_uid} has {word} on its command line")
    return min(found, key=lambda folder: int(folder.name))
