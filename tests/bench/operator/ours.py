"""Our side: the operator as its chart installs it, but as processes."""

import contextlib
import pathlib
import urllib.request
from collections.abc import Iterator
from typing import Any

from tests.bench.operator import audit, place, revision

from finetune_operator import cluster
from flow import world
from support import controlplane, installed

SIDE = audit.Side(frozenset({f"system:serviceaccount:{installed.SYSTEM}:finetune-operator"}), "finetunejobs", "jobs")
PATH = cluster.path_of("FineTuneJob", place.NAMESPACE)


def manifest(name: str, serves: bool) -> dict[str, Any]:
    """The smallest FineTuneJob; a served one also gets a server of its model."""
    return world.finetunejob(name, **{"spec.deployment.enabled": serves})


class Operator:
    """The replicas that were started."""

    def __init__(
        self, code: revision.Code, folder: pathlib.Path, kubeconfig: pathlib.Path, settings: pathlib.Path
    ) -> None:
        self._code, self._folder, self._settings = code, folder, settings
        self.kubeconfig = kubeconfig
        self.replicas: list[installed.Replica] = []

    def start(self, kubeconfig: pathlib.Path | None = None) -> installed.Replica:
        given = (self._folder, kubeconfig or self.kubeconfig, self._settings, self._code.environment)
        self.replicas.append(installed.start(f"operator-{len(self.replicas)}", *given))
        return self.replicas[-1]

    def leading(self, replica: installed.Replica) -> installed.Replica:
        """The replica, once it reconciles."""
        installed.eventually(replica.leads, 120)
        return replica

    def standing_by(self, replica: installed.Replica) -> installed.Replica:
        """The replica, once it waits for the lease."""

        def ready() -> bool:
            with urllib.request.urlopen(f"http://127.0.0.1:{replica.port}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)

        installed.eventually(ready, 60)
        return replica


@contextlib.contextmanager
def operator(plane: controlplane.ControlPlane, folder: pathlib.Path, code: revision.Code) -> Iterator[Operator]:
    """The chart's objects with its own values; whatever was started ends with the block."""
    kubeconfig, settings = installed.install(plane, folder, chart=code.chart, quick={})
    found = Operator(code, folder, kubeconfig, settings)
    try:
        yield found
    finally:
        for replica in found.replicas:
            replica.end(9)
