"""Several processes that train one adapter: the devices of their collectives, what their errors mean, and their siblings."""

import datetime
import os
import pathlib
import sys
import threading
import time
from typing import Any

import pytest
import torch
from tests.trainer import fake_gpu
from tests.trainer import processes as started_processes

from finetune_api import exits, outcome, reasons, run
from finetune_trainer.process import errors, machine
from finetune_trainer.training import processes, rendezvous
from support import ports

ALONE = processes.SiblingProcesses([])

SIBLING = """
import os, pathlib, sys
from finetune_api import outcome, reasons
from finetune_trainer.training import processes
processes.start_siblings(2, [])
pathlib.Path(os.environ["FINETUNE_WORK"]).mkdir(parents=True, exist_ok=True)
import torch
group = processes.join(torch.device("cpu"), processes.SiblingProcesses([]))
if "FAILS":
    group.wait()
    reported = outcome.Outcome(stage="train", reason="TrainerOutOfMemory", message="out of memory on GPU 1")
    pathlib.Path(os.environ["FINETUNE_TERMINATION_PATH"]).write_text(reported.termination_message())
    os._exit(3)
assert group.add([], [group.rank, 1.0]) == [1.0, 2.0]
assert not group.every(True) and group.every(True)
assert group.local == 1 and os.environ["FINETUNE_METRICS_PORT"] == "0"
group.wait()
processes.leave()
"""

WAITS = """
import datetime
from finetune_trainer.training import processes, rendezvous
rendezvous.SILENCE = 4.0
processes.start_siblings(2, [])
import torch
group = processes.join(torch.device("cpu"), processes.SiblingProcesses([]))
patience = datetime.timedelta(seconds=3)  # from now on: a busy machine may take longer to join
torch.distributed.distributed_c10d._set_pg_timeout(patience)
group.store.set_timeout(patience)
group.wait()
assert group.every(True)
processes.leave()
"""


def come(rank: int, stores: list[Any]) -> None:
    """Another of two processes of a node, as far as the rendezvous; the store of the first is there as long as the list."""
    at = os.environ[run.RENDEZVOUS]
    stores.append(rendezvous.meet(at, rank, 2, 2, lambda: None, datetime.timedelta(seconds=30)))


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of the first process of a node; what the code sets in it is undone."""
    for name in (run.NODES, run.NODE, "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "FINETUNE_SHARED"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv(run.RENDEZVOUS, f"127.0.0.1:{ports.free()}")
    monkeypatch.setenv("TORCH_NCCL_BLOCKING_WAIT", "1")


def test_collectives_of_gpu_processes_take_tensors_on_the_gpu_alone() -> None:
    """NCCL has no backend for CPU tensors; the fake process group refuses them with the same words."""
    group = processes.ProcessGroup(0, 2, 0, fake_gpu.CUDA)
    with fake_gpu.processes():
        with pytest.raises(RuntimeError, match="No backend type associated with device type cpu"):
            torch.distributed.all_reduce(torch.zeros(1))
        with fake_gpu.tensors():
            gradients = [torch.zeros(2, 3, device=fake_gpu.CUDA), torch.zeros(4, device=fake_gpu.CUDA)]
            assert len(group.add(gradients, [2.0, 3.0])) == 2
            assert len(group.add([], [2.0, 3.0])) == 2
            assert group.maximum(3) == 1, "the fake's answer to every question"


def test_a_process_joins_with_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch, node: None) -> None:
    """Otherwise the first collective of every process of a node takes memory on GPU 0."""
    seen: dict[str, Any] = {}
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "set_device", lambda where: seen.update(current=where))
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda backend, **given: seen.update(given, backend=backend)
    )
    where = torch.device("cuda", 1)
    stores: list[Any] = []
    first = threading.Thread(target=come, args=(0, stores))
    first.start()
    group = processes.join(where, ALONE)
    first.join()
    assert (group.rank, group.size, group.local, group.device) == (1, 2, 1, where)
    assert seen["backend"] == "nccl"
    assert seen["device_id"] == seen["current"] == where


@pytest.mark.parametrize(
    "error",
    [
        torch.distributed.DistBackendError("ncclRemoteError: A call failed possibly due to a network error"),
        torch.distributed.DistBackendError("[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)"),
        torch.distributed.DistNetworkError("The client socket has timed out"),
        torch.distributed.DistStoreError("Timed out after 3 seconds waiting for clients. 1/2 clients joined."),
        RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:1: Connection reset by peer"),
    ],
)
def test_a_peer_that_is_gone_ends_a_process_as_sigterm_does(error: RuntimeError) -> None:
    with pytest.raises(errors.Stopped, match="another training process"), processes.collectives(ALONE):
        raise error


def test_an_error_of_nccl_itself_has_a_reason_of_its_own() -> None:
    with pytest.raises(errors.Failure) as reported, processes.collectives(ALONE):
        raise torch.distributed.DistBackendError("NCCL error: ncclInvalidUsage. Duplicate GPU detected")
    assert reported.value.reason is reasons.Reason.COLLECTIVE_FAILED
    assert reported.value.exit == 1
    assert "Duplicate GPU detected" in reported.value.message
    assert "/dev/shm" in reported.value.message


@pytest.mark.parametrize(
    "error",
    [RuntimeError("No backend type associated with device type cpu"), torch.OutOfMemoryError("CUDA out of memory")],
)
def test_a_defect_between_processes_stays_what_it_is(error: RuntimeError) -> None:
    with pytest.raises(type(error), match=str(error)), processes.collectives(ALONE):
        raise error


def test_one_process_runs_on_each_gpu_of_a_node(node: None) -> None:
    siblings = processes.start_siblings(2, [sys.executable, "-c", SIBLING.replace("FAILS", "")])
    group = processes.join(torch.device("cpu"), siblings)
    try:
        assert (group.rank, group.size, group.local) == (0, 2, 0)
        assert group.add([], [group.rank, 1.0]) == [1.0, 2.0]
        assert not group.every(False), "one of both"
        assert group.every(True), "both"
        group.wait()
    finally:
        processes.leave()
    assert siblings.started[0].wait(60) == exits.Exit.DONE
    assert siblings.failure() is None


def test_what_one_process_does_alone_may_take_longer_than_a_collective(
    node: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a download that the others wait for."""
    monkeypatch.setattr(rendezvous, "BEAT", 0.5)
    siblings = processes.start_siblings(2, [sys.executable, "-c", WAITS])
    group = processes.join(torch.device("cpu"), siblings)
    try:
        time.sleep(8)
        group.wait()
        assert group.every(True)
    finally:
        processes.leave()
    assert siblings.started[0].wait(60) == exits.Exit.DONE


def test_a_process_that_shows_no_sign_of_life_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "SILENCE", 1.0)
    store = torch.distributed.HashStore()
    with pytest.raises(errors.Stopped, match="training process 1 is gone"):
        rendezvous.gather(store, "here", 0, 2)
    store.set("here/1", "")
    rendezvous.gather(store, "here", 0, 2)


def test_the_failure_of_a_sibling_is_the_outcome_of_the_pod(node: None) -> None:
    """Nobody reads a further process's outcome: out of memory on GPU 1 is out of memory of the pod, tried with half the batch."""
    siblings = processes.start_siblings(2, [sys.executable, "-c", SIBLING.replace("FAILS", "yes")])
    group = processes.join(torch.device("cpu"), siblings)
    try:
        group.wait()
        with pytest.raises(errors.Failure) as reported, processes.collectives(siblings):
            group.add([], [1.0])
    finally:
        processes.leave()
    assert reported.value.reason is reasons.Reason.TRAINER_OUT_OF_MEMORY
    assert reported.value.exit == exits.Exit.OUT_OF_MEMORY
    assert "training process 1" in reported.value.message
    assert "GPU 1" in reported.value.message


def test_a_sibling_killed_without_an_outcome_is_reported_with_its_exit_code(node: None) -> None:
    siblings = processes.start_siblings(2, [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    failure = siblings.failure()
    assert failure is not None
    assert failure.reason is reasons.Reason.TRAINER_ERROR
    assert "-9" in failure.message


def test_a_sibling_that_dies_before_it_joins_is_noticed_at_once(node: None) -> None:
    siblings = processes.start_siblings(2, [sys.executable, "-c", "raise SystemExit(3)"])
    begun = time.monotonic()
    with pytest.raises(errors.Failure, match="training process 1 of this node failed: it ended with exit code 3"):
        processes.join(torch.device("cpu"), siblings)
    assert time.monotonic() - begun < 60


def test_a_sibling_that_lives_and_does_not_come_is_not_waited_for_longer_than_minutes(
    node: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rendezvous.NODE == 300
    monkeypatch.setattr(rendezvous, "NODE", 1.0)
    siblings = processes.start_siblings(2, [sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        with pytest.raises(errors.Failure, match=r"processes \[1\] of this node did not come"):
            processes.join(torch.device("cpu"), siblings)
    finally:
        siblings.stop()


@pytest.mark.parametrize("late", [0, 1])
def test_a_node_that_still_pulls_its_image_is_waited_for(
    late: int, node: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than for processes of this node; whichever comes last."""
    monkeypatch.setattr(rendezvous, "NODE", 0.1)
    at = f"127.0.0.1:{ports.free()}"
    met: dict[int, Any] = {}

    def come_later(rank: int) -> None:
        time.sleep(2.0 if rank == late else 0.0)
        met[rank] = rendezvous.meet(at, rank, 2, 1, lambda: None, datetime.timedelta(seconds=30))

    threads = [threading.Thread(target=come_later, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(met) == [0, 1]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_node_that_never_comes_ends_the_attempt_as_sigterm_does(
    rank: int, node: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "OTHERS", 1.0)
    monkeypatch.setattr(rendezvous, "ROUND", 0.5)
    with pytest.raises(errors.Stopped, match=rf"nodes \[{1 - rank}\] did not come"):
        rendezvous.meet(f"127.0.0.1:{ports.free()}", rank, 2, 1, lambda: None, datetime.timedelta(seconds=30))


def wait_for_a_process_that_never_comes(folder: str) -> None:
    """The first of three processes of a node, one of which is killed while this one waits within torch's own code."""
    os.environ |= {"FINETUNE_WORK": folder, "FINETUNE_TERMINATION_PATH": f"{folder}/termination"}
    body = "import os, time; time.sleep(600) if os.environ['LOCAL_RANK'] == '2' else os.kill(os.getpid(), 9)"
    siblings = processes.start_siblings(3, [sys.executable, "-c", body])
    pathlib.Path(folder, "other").write_text(str(siblings.started[1].pid))
    siblings.watch()
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=3, timeout=processes.PATIENCE)


def test_a_process_that_is_killed_ends_those_of_its_node_that_wait_for_it_in_silence(
    node: None, tmp_path: pathlib.Path
) -> None:
    """As NCCL does; gloo raises when its peer ends."""
    process = started_processes.context.Process(target=wait_for_a_process_that_never_comes, args=(str(tmp_path),))
    process.start()
    assert started_processes.ended(process, 120) == 1
    reported = outcome.Outcome.model_validate_json((tmp_path / "termination").read_bytes())
    assert reported.reason is reasons.Reason.TRAINER_ERROR
    assert "training process 1 of this node failed: it ended with exit code -9 (SIGKILL)" in reported.message
    other = pathlib.Path("/proc", (tmp_path / "other").read_text(), "stat")
    assert not other.exists() or other.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("limit, ended", [(60.0, 0), (0.0, 1)])
def test_a_process_that_saves_a_checkpoint_is_not_ended_before_its_time(
    limit: float, ended: int, node: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(processes, "WAITING", 0.0)
    monkeypatch.setattr(processes, "SAVING", limit)
    monkeypatch.setattr(processes, "_end", lambda *given: seen.append(given))
    siblings = processes.start_siblings(2, [sys.executable, "-c", "raise SystemExit(3)"])
    siblings.started[0].wait(60)
    siblings.watch()
    time.sleep(2)
    siblings.stop()
    assert len(seen) == ended


def test_an_outcome_of_an_earlier_attempt_is_not_reported_again(node: None) -> None:
    old = processes.outcome_of(machine.work(), 1)
    old.parent.mkdir(parents=True)
    old.write_text(outcome.Outcome(stage=reasons.Stage.TRAIN, message="long ago").termination_message())
    siblings = processes.start_siblings(2, [sys.executable, "-c", "raise SystemExit(1)"])
    failure = siblings.failure()
    assert failure is not None
    assert "long ago" not in failure.message


def test_siblings_are_stopped_with_the_first_process(node: None, tmp_path: pathlib.Path) -> None:
    sleeps = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"
    siblings = processes.start_siblings(2, [sys.executable, "-c", sleeps, str(tmp_path / "up")])
    siblings.stop()
    assert siblings.started[0].poll() is not None
