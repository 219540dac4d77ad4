"""Runs other programs for the development tools, silently when they succeed, with their output when they fail."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from toolbox import say

# Administrators' programs (iptables, runc) live here; a user's PATH on Debian lacks these folders.
_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def path() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *_SYSTEM_FOLDERS])


def find(program: str) -> str | None:
    return shutil.which(program, path=path())


def run(
    argv: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    stdin: str | bytes | None = None,
    timeout: float | None = None,
    check: bool = True,
) -> str:
    """Runs a program to its end and returns its stdout.

    Raises say.Problem with the command and the end of what it printed when it fails and `check` is true.
    """
    words = [str(word) for word in argv]
    given = stdin.encode() if isinstance(stdin, str) else stdin
    try:
        done = subprocess.run(
            words,
            env={**os.environ, "PATH": path(), **(environment or {})},
            cwd=folder,
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            timeout=timeout,
        )
    except FileNotFoundError as error:
        raise say.Problem(f"{words[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        if not check:
            return ""
        raise say.Problem(f"`{' '.join(words)}` did not end within {timeout} s") from error
    if check and done.returncode != 0:
        seen = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()[-20:]
        raise say.Problem("\n  ".join([f"`{' '.join(words)}` failed with exit code {done.returncode}:", *seen]))
    return done.stdout.decode(errors="replace")
