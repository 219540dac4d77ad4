"""Stages as real processes of the trainer, in the place of a kubelet: run file, progress and answers are the job's own.

A control plane has no node. So a pod's command is run on this machine, with the run file of its annotation, and what it answered
is written into the pod's status as a kubelet would.
"""

import dataclasses
import os
import subprocess
from pathlib import Path
from typing import Any

from finetune_api import run
from finetune_operator.observe import label
from support import installed, warm

Raw = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Machine:
    """Runs the pods of one namespace, one at a time. `port`: where they answer."""

    scene: installed.Stage
    folder: Path
    port: int
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    def start(self, pod: Raw) -> "Process":
        """The pod's container, as a process."""
        name, spec = pod["metadata"]["name"], pod["spec"]
        home = self.folder / name
        home.mkdir()
        (home / "run.json").write_text(pod["metadata"]["annotations"][label.RUN_FILE])
        words = [str(home / "run.json") if word == run.PATH else word for word in spec["containers"][0]["args"]]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "OMP_NUM_THREADS": "1",
            "FINETUNE_WORK": str(home / "work"),
            "FINETUNE_METRICS_PORT": str(self.port),
            "FINETUNE_TERMINATION_PATH": str(home / "termination"),
            **self.environment,
        }
        process = warm.start("finetune_trainer", words, environment, home / "log")
        self.scene.run(pod)
        return Process(self.scene, pod, process, home)


@dataclasses.dataclass(frozen=True)
class Process:
    """A pod's container that runs."""

    scene: installed.Stage
    pod: Raw
    process: warm.Forked
    home: Path

    def end(self, seconds: float = 240) -> int:
        """Waits for its end and tells the API server, as a kubelet does; the exit code."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end: {self.log[-2000:]}") from None
        self.scene.end(self.pod, code, self.termination_message)
        return code

    @property
    def log(self) -> str:
        return (self.home / "log").read_text()

    @property
    def termination_message(self) -> str:
        """Its termination message."""
        path = self.home / "termination"
        return path.read_text() if path.exists() else ""
