"""Starts a program, waits for its end, and writes what it took: `python launcher.py RESULT PROGRAM ARGUMENT...`.

A process's peak begins with the size of the one that started it (the kernel keeps the maximum across execve), so the one that
measures must be small: nothing but the standard library here.
"""

import json
import os
import pathlib
import subprocess
import sys
import time


def main(result: str, *words: str) -> int:
    started = time.time()
    child = subprocess.Popen(words)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = code = os.waitstatus_to_exitcode(status)
    found = {"started": started, "seconds": time.time() - started, "peak": usage.ru_maxrss * 1024, "code": code}
    pathlib.Path(result).write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
