"""A wall clock that a test moves while a program runs, by Debian's libfaketime.

Only the wall clock: monotonic clocks, by which programs sleep, are not affected, as when an administrator sets the time. (With
0.9.10 Python's `time.sleep` then fails; asyncio, locks and events are right.)
"""

from pathlib import Path

from toolbox import debian, say

LIBRARY = "libfaketimeMT.so.1"


def library() -> Path:
    """The library on this machine; the package is installed where it is missing."""
    debian.ensure(("faketime",), "moving a program's clock")
    found = sorted(Path("/usr/lib").glob(f"*/faketime/{LIBRARY}"))
    if not found:
        raise say.Problem(f"{LIBRARY} is not below /usr/lib/*/faketime although faketime is installed")
    return found[0]


def environment(library: str, file: str) -> dict[str, str]:
    """For the program. `file` need not exist yet; what `set_clock` wrote into it holds within a second."""
    return {
        "LD_PRELOAD": library,
        "FAKETIME_TIMESTAMP_FILE": file,
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def set_clock(file: Path, seconds: int) -> None:
    """From now on the program reads the clock as so much later; 0: as it is."""
    file.write_text(f"{seconds:+d}\n")
