"""Processes that outlive the command which starts them: started, recorded, recognised and ended.

A process is known by its pid together with its start time and the boot it belongs to, so that a pid which the kernel
gave to another program in the meantime is never signalled.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from toolbox import say, shell


@dataclass(frozen=True)
class Record:
    name: str
    pid: int
    started: int  # clock ticks since boot, field 22 of /proc/PID/stat
    boot: str
    argv: tuple[str, ...]
    log: str


def start(
    name: str, argv: Sequence[str | Path], *, records: Path, log: Path, environment: Mapping[str, str] | None = None
) -> Record:
    """Starts a process in a session of its own, its output appended to `log`, and records it in the folder `records`.

    The environment travels in the argument list (`env KEY=VALUE program`): a recorded process can be started again.
    """
    words = tuple(str(word) for word in argv)
    if environment:
        words = ("env", *(f"{key}={value}" for key, value in environment.items()), *words)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
            env={**os.environ, "PATH": shell.path()},
        )
    # The command exits long before the process: nobody is meant to wait for it.
    child.returncode = 0
    record = Record(name, child.pid, start_time(child.pid) or 0, boot_id(), words, str(log))
    records.mkdir(parents=True, exist_ok=True)
    path = records / f"{name}.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps(asdict(record)))
    return record


def load(records: Path) -> dict[str, Record]:
    """The recorded processes by name, dead ones included; an incomplete record of a killed run does not count."""
    found: dict[str, Record] = {}
    for path in sorted(records.glob("*.json")):
        try:
            fields = json.loads(path.read_text())
            found[path.stem] = Record(**{**fields, "argv": tuple(fields["argv"])})
        except (ValueError, TypeError, KeyError, OSError):
            continue
    return found


def start_time(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None when there is none, or only its unreaped remains. While other threads
    of a killed one are still ending, it holds its ports and files."""
    try:
        # The program's name, in parentheses, may itself hold blanks and parentheses: count from the last one.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        threads = len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return None
    return None if fields[0] in "ZX" and threads <= 1 else int(fields[19])


def boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def alive(record: Record) -> bool:
    """Whether this very process runs, not merely one with its pid."""
    return record.boot == boot_id() and record.started > 0 and start_time(record.pid) == record.started


def end(records: Sequence[Record], *, grace: float) -> None:
    """Asks the processes to end, all at once, and kills after `grace` seconds those that did not; 0 kills at once."""
    if grace > 0:
        send(records, signal.SIGTERM)
        wait_gone(records, grace)
    send(records, signal.SIGKILL)
    if stuck := wait_gone(records, 10):
        names = ", ".join(f"{record.name} (pid {record.pid})" for record in stuck)
        raise say.Problem(f"the kernel cannot end {names}: it waits in a system call; a reboot helps")


def wait_gone(records: Sequence[Record], seconds: float) -> list[Record]:
    """Waits until none of the processes is left; returns those that still are."""
    deadline = time.monotonic() + seconds
    while (left := [record for record in records if alive(record)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def send(records: Sequence[Record], number: signal.Signals) -> None:
    """A signal to each of these very processes that lives."""
    for record in records:
        if alive(record):
            try:
                os.kill(record.pid, number)
            except ProcessLookupError:
                continue


def tail(record: Record, lines: int = 20) -> str:
    """The last lines of a process's log, for a message about its death."""
    try:
        with open(record.log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16384))
            seen = file.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        seen = []
    return "\n".join(f"    {text[:400]}" for text in seen) or "    (its log is empty)"


def check(records: Sequence[Record]) -> None:
    """Raises say.Problem with the end of the log of the first process that died."""
    for record in records:
        if not alive(record):
            raise say.Problem(f"{record.name} ended. The last lines of {record.log}:\n{tail(record)}")
