"""What GitOps tools make of an object: cli-utils' own kstatus, and Argo CD's health by the script that we ship.

Both are computed by hack/tools/gitops, a small Go program on cli-utils and on gopher-lua, Argo CD's interpreter.
"""

import dataclasses
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolbox import gotool

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "gitops"
SAME = {"Current": {"Healthy"}, "Failed": {"Degraded"}, "InProgress": {"Progressing", "Suspended"}}
"""kstatus -> what Argo CD may say of the same object."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    kstatus: str
    argo: str
    message: str


def judge(objects: Sequence[dict[str, Any]]) -> list[Verdict]:
    """A verdict for each object, in their order."""
    program = gotool.build("gitops", "30 s")
    lines = "".join(json.dumps(one) + "\n" for one in objects)
    done = subprocess.run([program, EXAMPLES / "health.lua"], input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [Verdict(one["kstatus"]["status"], one["argo"]["status"], one["argo"]["message"]) for one in found]
