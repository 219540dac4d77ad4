"""TCP ports for the servers of tests, chosen before they listen.

A port that the kernel chooses (bind to 0) is in the range of outgoing connections: between choosing it here and listening on
it there, any connection of this machine may take it. These are below that range and below those of the local clusters
(hack/localcluster/ports.py), and each worker of a test run has its own.
"""

import itertools
import os
import socket

_FIRST, _LAST, _WORKERS = 10000, 19999, 16
_EACH = (_LAST - _FIRST + 1) // _WORKERS


def _start() -> int:
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    return _FIRST + int(worker) % _WORKERS * _EACH


# Another process of the same worker, or another run, begins elsewhere.
_numbers = itertools.count(os.getpid() * 37)


def free(address: str = "127.0.0.1") -> int:
    """A port on which nothing listens; this process does not give it a second time before it gave all others.

    Raises OSError where none is free.
    """
    first = _start()
    for _ in range(_EACH):
        port = first + next(_numbers) % _EACH
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return port
    raise OSError(f"no free TCP port on {address} between {first} and {first + _EACH - 1}")
