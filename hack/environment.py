"""`python3 hack/environment.py [uv]`: makes .venv, the project's Python environment, from requirements/dev.txt.

It needs nothing but Python 3.11. With `uv` it only prints the path of uv, installed into the cache where there is none.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - said before an import fails without words
    sys.exit(
        "Python 3.11 or newer is needed, this is {}.{}: install one and name it, for example"
        " `make PYTHON=python3.12 test`".format(*sys.version_info)
    )

from toolbox import cache, say, shell, uv

ENVIRONMENT = cache.REPOSITORY / ".venv"
_LOCK = cache.REPOSITORY / "requirements" / "dev.txt"


def make() -> None:
    """Brings .venv to the state of the lock; only the links are made again when it is up to date."""
    python = ENVIRONMENT / "bin" / "python"
    if not (python.exists() and shell.run([python, "--version"], check=False)):
        uv.run("venv", "--quiet", "--clear", "--python", sys.executable, ENVIRONMENT)
    with say.step(
        f"Python environment: installing the packages of {_LOCK.name} into .venv", "30 s; minutes the first time"
    ):
        uv.run("pip", "sync", "--quiet", "--python", python, "--require-hashes", _LOCK)
        editable = ("--no-deps", "--no-build-isolation", "--editable", cache.REPOSITORY)
        uv.run("pip", "install", "--quiet", "--python", python, *editable)


def main() -> int:
    if sys.argv[1:] == ["uv"]:
        say.result(uv.find())
    else:
        make()
        (ENVIRONMENT / ".ready").touch()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except say.Problem as problem:
        say.line(f"environment: {problem}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
