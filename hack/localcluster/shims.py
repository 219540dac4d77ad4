"""containerd's shims, which supervise each pod's containers and outlive a killed containerd."""

import contextlib
import socket
from pathlib import Path

from localcluster import process

# containerd has this folder compiled in; another containerd's shims listen here too.
_SOCKETS = Path("/run/containerd/s")


def end(containerd_socket: Path) -> None:
    """Ends the shims that were given our containerd's socket, and removes the sockets that nobody listens on."""
    found: list[process.Record] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if words[0].endswith("containerd-shim-runc-v2") and any(
            word.startswith(str(containerd_socket)) for word in words
        ):
            pid = int(path.parent.name)
            found.append(process.Record("shim", pid, process.start_time(pid) or 0, process.boot_id(), (), ""))
    process.end(found, grace=0)
    for path in _SOCKETS.glob("*"):
        if not _listens(path):
            path.unlink(missing_ok=True)
    for folder in (_SOCKETS, _SOCKETS.parent):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True
