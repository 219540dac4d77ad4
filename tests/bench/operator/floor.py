"""The floor: what it costs to make the same objects. A bare client writes for each job what the operator wrote for one.

The operator runs first, for one job, through a proxy that keeps its writes until the job has begun; it then ends, and the bare
client takes its place, as the same user.
"""

import asyncio
import contextlib
import pathlib
import sys
from collections.abc import Iterator

from tests.bench.operator import bare, drive, ours, place, recording

from support import installed

RECORDED = "f-00000"
QUIET = 3.0
"""Seconds without a write after which the operator has said all of a job that has begun."""


async def record(driver: drive.Drive, operator: ours.Operator, folder: pathlib.Path) -> list[recording.Write]:
    """Lets the operator begin one job; what it wrote."""
    recorder, through = recording.Recorder(operator.kubeconfig), folder / "recorded.kubeconfig"
    async with recorder.open(through):
        replica = await asyncio.to_thread(operator.start, through)
        await asyncio.to_thread(operator.leading, replica)
        uid = (await driver.create(ours.manifest(RECORDED, serves=False)))["metadata"]["uid"]
        begun = await driver.until("jobs have begun, to be recorded", lambda: len(driver.ledger.begun), 1, 60)
        assert begun, "the operator did not begin the job whose writes the floor repeats"
        await asyncio.sleep(QUIET)
        found = recording.templates(recorder.writes, RECORDED, uid)
        await asyncio.to_thread(replica.end)
    assert any("/jobs" in one.path for one in found), found
    return found


@contextlib.contextmanager
def client(operator: ours.Operator, writes: list[recording.Write], folder: pathlib.Path) -> Iterator[int]:
    """The bare client's pid."""
    file = folder / "writes.json"
    recording.write(writes, file)
    argv: list[str | pathlib.Path] = [sys.executable, pathlib.Path(bare.__file__), file]
    with place.running(argv, folder / "floor.log", KUBECONFIG=str(operator.kubeconfig)) as child:

        def watching() -> bool:
            text = (folder / "floor.log").read_text()
            assert child.poll() is None, text[-2000:]
            return "watching" in text

        installed.eventually(watching, 60)
        yield child.pid
        assert child.poll() is None, (folder / "floor.log").read_text()[-2000:]
