"""uv, which installs the project's Python packages: the machine's, or one of its own in the cache."""

import os
import sys
from pathlib import Path

from toolbox import cache, debian, say, shell

FOLDER = "uv"
"""Below the cache. The Makefile puts its bin/ at the end of PATH, so that everything started by make finds it too."""

_REQUIREMENTS = cache.REPOSITORY / "requirements" / "uv.txt"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def find() -> str:
    """Path of a uv that answers; installs one into the cache where the machine has none."""
    own = cache.root() / FOLDER / "bin" / "uv"
    for candidate in (shell.find("uv"), str(own)):
        if candidate and Path(candidate).exists() and shell.run([candidate, "--version"], check=False):
            return candidate
    with say.step("uv: installing it into the cache, since this machine has none", "5 s"):
        _install(own.parents[1])
    return str(own)


def run(*words: str | Path, folder: Path | None = None) -> str:
    """Runs uv to its end and returns its stdout; it trusts the certificates that the machine trusts."""
    trust = {"UV_SYSTEM_CERTS": "true"} if _CERTIFICATES.exists() else {}
    return shell.run([find(), *words], environment={**trust, **os.environ}, folder=folder)


def _install(folder: Path) -> None:
    made = folder.with_name(f"{folder.name}.{os.getpid()}")
    if not _has_ensurepip():
        _install_ensurepip()
    shell.run([sys.executable, "-m", "venv", "--clear", made])
    shell.run([made / "bin" / "python", "-m", "pip", "install", "--quiet", "--require-hashes", "-r", _REQUIREMENTS])
    # The program alone: an environment that was moved would not find its Python again.
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    (made / "bin" / "uv").rename(folder / "bin" / "uv")
    shell.run(["rm", "-rf", made])


def _has_ensurepip() -> bool:
    """Whether `python -m venv` will bring pip; Debian keeps that part in a package of its own."""
    return bool(shell.run([sys.executable, "-c", "import ensurepip; print(ensurepip.version())"], check=False))


def _install_ensurepip() -> None:
    wanted = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    if os.geteuid() == 0 and shell.find("apt-get"):
        with say.step(f"Debian packages: installing {wanted}", "10 s"):
            debian.install([wanted])
        return
    raise say.Problem(
        "uv is not installed, and this Python cannot make an environment to install it into."
        f" Install either: `sudo apt-get install {wanted}`, or uv itself (https://docs.astral.sh/uv/)."
    )
