"""Go programs that are no part of the cluster, each pinned by a module of its own below hack/tools: built once for its contents.

A module of its own, so that its versions do not move those of the cluster's programs, which all come from one module.
"""

import hashlib
import os
import re
from pathlib import Path

from toolbox import cache, golang, say, shell

_ENVIRONMENT = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -trimpath -buildvcs=false"}


def build(name: str, usually: str, package: str = ".") -> Path:
    """The program of the module hack/tools/NAME: our own, or somebody's `package` that its go.mod names as a tool.
    `usually`: how long a cold build takes."""
    folder = golang.MODULE / name
    contents = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        contents.update(file.name.encode() + b"\0" + file.read_bytes())
    called = name if package == "." else package.rpartition("/")[2]
    program = cache.folder("bin", f"{name}-{contents.hexdigest()[:8]}") / called
    if program.exists():
        return program
    part = program.with_name(f".{called}.{os.getpid()}")
    with say.step(f"{name}: building {called} from Go modules, once", usually):
        shell.run(
            [golang.find(), "build", "-ldflags", "-s -w", "-o", part, package], folder=folder, environment=_ENVIRONMENT
        )
    part.replace(program)
    return program


def version(name: str, module: str) -> str:
    """Of a module that hack/tools/NAME requires, the locked one, for example v0.8.2."""
    text = (golang.MODULE / name / "go.mod").read_text()
    if found := re.search(rf"^\s*{re.escape(module)} (v\S+)", text, re.MULTILINE):
        return found[1]
    raise say.Problem(f"hack/tools/{name}/go.mod requires no {module}")


def source(name: str, module: str) -> Path:
    """The folder with the source of a module that hack/tools/NAME requires, in its locked version."""
    go, folder = golang.find(), golang.MODULE / name
    shell.run([go, "mod", "download", module], folder=folder, environment=_ENVIRONMENT)
    return Path(
        shell.run([go, "list", "-m", "-f", "{{.Dir}}", module], folder=folder, environment=_ENVIRONMENT).strip()
    )
