"""Free TCP ports, also between several clusters that start at the same moment.

They are taken below the kernel's range for outgoing connections and below Kubernetes' NodePorts (30000), so that
nothing else takes one between choosing it here and listening on it there.
"""

import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from toolbox import say

_FIRST, _LAST = 20000, 29999


def reserve(names: Sequence[str], state: Path) -> dict[str, int]:
    """Chooses a port for every name and records them in the cluster's state, where other clusters see them.

    The caller holds the lock of the clusters' folder.
    """
    taken = reserved(state.parent)
    chosen: dict[str, int] = {}
    # Start elsewhere in each process: tools of other caches do not see these records.
    candidate = _FIRST + os.getpid() * 37 % (_LAST - _FIRST)
    for _ in range(_LAST - _FIRST):
        if len(chosen) == len(names):
            break
        candidate = _FIRST + (candidate - _FIRST + 1) % (_LAST - _FIRST)
        if candidate not in taken and free(candidate):
            chosen[names[len(chosen)]] = candidate
    else:
        raise say.Problem(f"no free TCP port between {_FIRST} and {_LAST}")
    (state / "ports.json").write_text(json.dumps(chosen))
    return chosen


def reserved(clusters: Path) -> set[int]:
    taken: set[int] = set()
    for path in clusters.glob("*/ports.json"):
        try:
            taken.update(int(port) for port in json.loads(path.read_text()).values())
        except (ValueError, OSError):
            continue
    return taken


def free(port: int, address: str = "") -> bool:
    """Whether a server could listen on this port, on every address of the machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def answers(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=0.5):
            return True
    except OSError:
        return False
