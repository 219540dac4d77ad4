"""Our side: the operator as the chart installs it, but as processes."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

from tests.bench.operator import audit, place

from finetune_operator import cluster
from flow import world
from support import controlplane, installed

NAME = "finetune-operator"
SIDE = audit.Side(f"system:serviceaccount:{installed.SYSTEM}:finetune-operator", "finetunejobs", "jobs")
PATH = cluster.path_of("FineTuneJob", place.NAMESPACE)
VALUES = {"retryBackoffSeconds": 10, "drainSeconds": 20, "progressSeconds": 3}
"""The chart's own, where the tests are quicker."""
READY = "the caches are filled"


def manifest(name: str, serves: bool) -> dict[str, Any]:
    """The smallest FineTuneJob; a served one goes on to a server of its model."""
    return world.finetunejob(name, **{"spec.deployment.enabled": serves})


class Operator:
    """The replicas that were started."""

    def __init__(self, folder: pathlib.Path, kubeconfig: pathlib.Path, settings: pathlib.Path) -> None:
        self._folder, self._given = folder, (kubeconfig, settings)
        self.replicas: list[installed.Replica] = []

    def start(self) -> installed.Replica:
        self.replicas.append(installed.start(f"operator-{len(self.replicas)}", self._folder, *self._given))
        return self.replicas[-1]

    def leading(self, replica: installed.Replica) -> installed.Replica:
        """The replica, once it reconciles."""
        installed.eventually(lambda: replica.heard(READY), 120)
        return replica


@contextlib.contextmanager
def operator(plane: controlplane.ControlPlane, folder: pathlib.Path) -> Iterator[Operator]:
    """The chart's objects; whatever was started ends with the block."""
    kubeconfig, settings = installed.install(plane, folder, VALUES)
    found = Operator(folder, kubeconfig, settings)
    try:
        yield found
    finally:
        for replica in found.replicas:
            replica.end(9)
