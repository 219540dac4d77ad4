"""Processes of the local cluster: only the very process that was recorded is ever ended."""

import dataclasses
import os
import sys
import time
from pathlib import Path

import pytest

from localcluster import process
from toolbox import say

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
DEAF = [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); "
        "time.sleep(60)"]  # fmt: skip


def start(folder: Path, argv: list[str], name: str = "sleeper") -> process.Record:
    return process.start(name, argv, records=folder / "processes", log=folder / f"{name}.log")


def wait_for(log: Path, text: str) -> None:
    deadline = time.monotonic() + 10
    while log.read_text() != text:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)


def test_a_started_process_is_recorded_and_ends_on_request(tmp_path: Path) -> None:
    record = start(tmp_path, SLEEP)
    assert process.load(tmp_path / "processes") == {"sleeper": record}
    assert process.alive(record)
    process.end([record], grace=5)
    assert not process.alive(record)


def test_a_process_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    record = start(tmp_path, DEAF)
    wait_for(Path(record.log), "deaf\n")
    process.end([record], grace=0.2)
    assert not process.alive(record)


def test_a_pid_that_the_kernel_gave_to_another_program_is_left_alone(tmp_path: Path) -> None:
    record = start(tmp_path, SLEEP)
    recycled = dataclasses.replace(record, started=record.started - 1)
    of_an_earlier_boot = dataclasses.replace(record, boot="another")
    process.end([recycled, of_an_earlier_boot], grace=0)
    assert process.alive(record)
    process.end([record], grace=0)


def test_a_process_that_died_but_was_not_reaped_counts_as_dead(tmp_path: Path) -> None:
    record = start(tmp_path, SLEEP)
    os.kill(record.pid, 9)
    assert process.wait_gone([record], 5) == []
    assert Path(f"/proc/{record.pid}").exists(), "its parent, this test, has not waited for it"


def test_a_process_counts_as_alive_until_its_last_thread_has_ended(tmp_path: Path) -> None:
    """So it is for a moment after a SIGKILL on a busy machine: its ports are still taken."""
    code = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "print('two', flush=True)\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    record = start(tmp_path, [sys.executable, "-c", code])
    wait_for(Path(record.log), "two\n")
    deadline = time.monotonic() + 10
    while ") Z " not in Path(f"/proc/{record.pid}/stat").read_text():
        assert time.monotonic() < deadline, "the first thread did not end"
        time.sleep(0.01)
    assert process.alive(record)
    process.end([record], grace=0)
    assert not process.alive(record)


def test_a_record_that_was_cut_off_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "etcd.json").write_text('{"name": "etcd", "pid": 1')
    (tmp_path / "kubelet.json").write_text("{}")
    assert process.load(tmp_path) == {}


def test_a_process_that_dies_at_start_is_reported_with_its_log_and_the_path_of_it(tmp_path: Path) -> None:
    record = start(tmp_path, [sys.executable, "-c", "print('line'); raise SystemExit('no such flag: --bogus')"])
    process.wait_gone([record], 10)
    with pytest.raises(say.Problem, match="no such flag: --bogus") as caught:
        process.check([record])
    assert record.log in str(caught.value)


def test_only_the_last_twenty_lines_of_a_log_are_shown(tmp_path: Path) -> None:
    log = tmp_path / "long.log"
    log.write_text("\n".join(f"line {number}" for number in range(5000)))
    record = process.Record("etcd", 1, 1, "", (), str(log))
    shown = process.tail(record).splitlines()
    assert len(shown) == 20
    assert shown[-1].strip() == "line 4999"


def test_the_environment_is_part_of_what_can_be_started_again(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "import os; print(os.environ['KEY'], flush=True); import time; time.sleep(60)"]
    log = tmp_path / "s3.log"
    record = process.start("s3", argv, records=tmp_path, log=log, environment={"KEY": "value"})
    wait_for(log, "value\n")
    process.end([record], grace=0)
    again = process.start("s3", record.argv, records=tmp_path, log=log)
    wait_for(log, "value\nvalue\n")
    process.end([again], grace=0)
