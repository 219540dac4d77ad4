"""A peer's own Python environment: made from its lock by uv, in $FINETUNE_CACHE/bench/; no part of the project's.

One environment for each content of a lock, made in one step, so that one that exists is complete.
"""

import hashlib
import pathlib
import shutil
import sys

from toolbox import cache, say, uv

REQUIREMENTS = pathlib.Path(__file__).parent / "requirements"


def lock(package: str) -> pathlib.Path:
    return REQUIREMENTS / f"{package}.txt"


def python(package: str) -> pathlib.Path:
    """The interpreter of the peer's environment, which is made when it is absent. Raises say.Problem."""
    mark = hashlib.sha256(lock(package).read_bytes() + sys.version.encode()).hexdigest()[:8]
    home = cache.folder("bench") / f"{package}-{mark}"
    interpreter = home / "bin" / "python"
    if not (home / ".ready").exists():
        shutil.rmtree(home, ignore_errors=True)
        with say.step(f"environment of {package}: installing its packages into {home}", "20 s; minutes the first time"):
            uv.run("venv", "--quiet", "--python", sys.executable, home)
            # Compiled, as the product's own packages are: the time to the first step is compared too.
            options = ("--quiet", "--compile-bytecode", "--require-hashes")
            uv.run("pip", "sync", *options, "--python", interpreter, lock(package))
        (home / ".ready").touch()
    return interpreter


def versions(package: str, names: tuple[str, ...]) -> dict[str, str]:
    """The locked versions of some packages."""
    found = dict(line.split(" ")[0].split("==") for line in lock(package).read_text().splitlines() if "==" in line)
    return {name: found[name] for name in names if name in found}
