"""The operator as the working tree has it, or as it was at a revision of git: code, chart, CRDs, and what its pods say.

A revision is checked out into a temporary worktree. Its code runs in the Python environment of the working tree.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from tests.bench.operator import stages

from toolbox import cache, say, shell

PLAYED = "import json; from tests.bench.operator import stages; print(json.dumps(stages.configuration()))"
"""Run with the code of a revision: what its own benchmark tells KWOK."""


@dataclasses.dataclass(frozen=True)
class Code:
    """`root`: the repository's folder. `played`: what KWOK is told of the pods of this code's stages."""

    root: pathlib.Path
    played: list[dict[str, Any]]

    @property
    def chart(self) -> pathlib.Path:
        return self.root / "charts" / "finetune-operator"

    @property
    def crds(self) -> pathlib.Path:
        return self.root / "crds"

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that is to run this code, whatever is installed."""
        return {"PYTHONPATH": str(self.root / "operator")}


def working_tree() -> Code:
    return Code(cache.REPOSITORY, stages.configuration())


@contextlib.contextmanager
def at(name: str) -> Iterator[Code]:
    """The code of a revision, as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="bench-operator-") as folder:
        root = pathlib.Path(folder, "tree")
        shell.run(["git", "worktree", "add", "--detach", root, name], folder=cache.REPOSITORY)
        try:
            paths = os.pathsep.join(str(root / part) for part in ("operator", "hack", "tests", "."))
            played = shell.run([sys.executable, "-c", PLAYED], folder=root, environment={"PYTHONPATH": paths})
            yield Code(root, json.loads(played))
        finally:
            shell.run(["git", "worktree", "remove", "--force", root], folder=cache.REPOSITORY)


def commit(name: str) -> str:
    """The short name of a revision's commit, with its date."""
    words = ["git", "show", "--no-patch", "--format=%h of %cs", f"{name}^{{commit}}"]
    found = shell.run(words, folder=cache.REPOSITORY, check=False).strip()
    if not found:
        raise say.Problem(f"{name} is no revision of this repository: give --before a commit or a tag that is there")
    return found


def last_release() -> str | None:
    """The newest tag before the present commit."""
    words = ["git", "describe", "--tags", "--abbrev=0", "HEAD"]
    return shell.run(words, folder=cache.REPOSITORY, check=False).strip() or None
