"""A real control plane for tests: etcd, the API server and the controllers on loopback, by hack/localcluster.

A machine where it cannot start fails the tests that need it: a skip would hide that nothing was proven.
"""

import contextlib
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes.client
import kubernetes.config

REPOSITORY = Path(__file__).resolve().parents[2]
HARNESS = REPOSITORY / "hack" / "localcluster"
CRDS = REPOSITORY / "crds"


@dataclasses.dataclass(frozen=True)
class ControlPlane:
    """A running control plane: its administrator's kubeconfig, and the folder with kubectl and helm."""

    name: str
    kubeconfig: Path
    bin: Path
    facts: dict[str, Any]

    def run(self, *words: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs kubectl as the administrator, whatever its exit code."""
        return subprocess.run(
            [self.bin / "kubectl", f"--kubeconfig={self.kubeconfig}", *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def kubectl(self, *words: str | Path, stdin: str | None = None) -> str:
        """Runs kubectl as the administrator and returns what it printed; fails the test when kubectl fails."""
        done = self.run(*words, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(map(str, words))}: {done.stderr}"
        return done.stdout

    def client(self) -> kubernetes.client.ApiClient:
        return kubernetes.config.new_client_from_config(str(self.kubeconfig))


def harness(*words: str) -> str:
    """Runs a verb of hack/localcluster; the last line of what it printed."""
    done = subprocess.run([sys.executable, HARNESS, *words], stdout=subprocess.PIPE, text=True, timeout=2400)
    assert done.returncode == 0, f"hack/localcluster {' '.join(words)} failed; its own words are above"
    return done.stdout.strip().rpartition("\n")[2]


@contextlib.contextmanager
def running(name: str, crds: Path = CRDS) -> Iterator[ControlPlane]:
    """A control plane of this name that serves and explains these CRDs; gone afterwards."""
    try:
        facts = json.loads(Path(harness("up", "--control-plane-only", "--name", name)).read_text())
        plane = ControlPlane(name, Path(facts["kubeconfig"]), Path(facts["bin"]), facts)
        plane.kubectl("apply", "--server-side", "-f", crds)
        plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", crds)
        # The manual is published a moment after the kind.
        deadline = time.monotonic() + 15
        while plane.run("explain", "ftj").returncode != 0 and time.monotonic() < deadline:
            time.sleep(0.1)
        yield plane
    finally:
        harness("down", "--name", name)
