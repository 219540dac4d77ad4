"""Packages that a process does without though they are installed: libraries import them at their start, in case they are needed.

Importing torch takes seconds of a core, and bitsandbytes imports torch's compiler. Only in a process that runs one stage:
libraries remember for good that a package is not there.
"""

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import cast

_ABSENT = cast(ModuleType, None)
"""What Python takes for a package that cannot be imported."""
_one_stage = False


def one_stage() -> None:
    """Says that this process runs one stage, and nothing before or after it."""
    global _one_stage
    _one_stage = True


def leave_out(name: str, importer: str) -> bool:
    """Whether this package cannot be imported from now on. False, and nothing is changed, where its importer was imported
    before, or in a process of several stages."""
    if not _one_stage or {name, importer} & set(sys.modules):
        return False
    sys.modules[name] = _ABSENT
    return True


@contextlib.contextmanager
def without(name: str, importer: str) -> Iterator[bool]:
    """As `leave_out`, for as long as the importer is loaded: it remembers, and others may ask for the package afterwards."""
    absent = leave_out(name, importer)
    try:
        yield absent
    finally:
        if absent:
            del sys.modules[name]
