"""Training killed or stopped at random moments: whenever that is, the loss curve is the one of a run left alone."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from tests.trainer import processes, tiny

from finetune_api import exits, run
from finetune_trainer.stages import preflight, train
from finetune_trainer.store import folders

pytestmark = pytest.mark.slow

World = Callable[..., run.Run]

ROUNDS, TOGETHER = 8, 2
"""How often: once in each part of a run's time. At other moments in each run: KILLS_SEED=N tries those of a failure again."""
KILL, STOP = signal.SIGKILL, signal.SIGTERM
STEPS = 40
TRAINING = {"maxSteps": STEPS, "checkpoints": {"everyMinutes": 0.01}, "earlyStopping": {"patience": 100}}


def dice() -> random.Random:
    seed = int(os.environ.get("KILLS_SEED") or random.SystemRandom().randrange(10**6))
    print(f"KILLS_SEED={seed}")
    return random.Random(seed)


def weights(spec: run.Run) -> str:
    return folders.sha256(pathlib.Path(spec.layout.adapter.removeprefix("file://")) / "adapter_model.safetensors")


def fresh(spec: run.Run, revision: str) -> run.Run:
    """The same run as a revision of its own, with its frozen split."""
    other = spec.model_copy(update={"revision": revision})
    preflight.preflight(other)
    return other


def reference(world: World, base: pathlib.Path, folder: pathlib.Path, count: int) -> tuple[run.Run, float]:
    """A run left alone, and the seconds of one: the first also loads what later ones find loaded."""
    first = world(tiny.examples(60), training=TRAINING)
    for revision in ("first", "alone"):
        spec = fresh(first, revision)
        begun = time.monotonic()
        if count == 1:
            assert processes.ended(processes.start(spec, folder)) == exits.Exit.DONE
        else:
            assert [processes.ended(process) for process in processes.together(spec, folder, count)] == [0] * count
    return spec, time.monotonic() - begun


def test_a_run_killed_or_stopped_at_any_moment_has_the_loss_curve_of_an_uninterrupted_run(
    world: World, base: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    alone, seconds = reference(world, base, tmp_path, 1)
    rng = dice()
    first, resumed = rng.randrange(2), 0
    for number in range(ROUNDS):
        spec = fresh(alone, f"round{number}")
        how = KILL if number % 2 == first else STOP
        process = processes.start(spec, tmp_path)
        process.join((number + rng.random()) / ROUNDS * seconds)
        if process.is_alive() and process.pid is not None:
            (process.kill if how == KILL else process.terminate)()
        code = processes.ended(process)
        assert code in (exits.Exit.DONE, exits.Exit.STOPPED, -KILL, -STOP), code
        if code != exits.Exit.DONE:
            resumed += 1
            assert processes.ended(processes.start(spec, tmp_path)) == exits.Exit.DONE
        assert processes.losses(spec) == processes.losses(alone), f"round {number}, {how.name}"
        assert weights(spec) == weights(alone)
    assert resumed > ROUNDS // 4, "many rounds are cut short"


def test_one_of_two_processes_is_killed_at_any_moment(world: World, base: pathlib.Path, tmp_path: pathlib.Path) -> None:
    alone, seconds = reference(world, base, tmp_path, 2)
    rng = dice()
    first = rng.randrange(2)
    for number in range(TOGETHER):
        spec = fresh(alone, f"round{number}")
        both = processes.together(spec, tmp_path, 2)
        time.sleep((0.3 + 0.7 * (number + rng.random()) / TOGETHER) * seconds)
        victim = rng.choice(both)
        if victim.is_alive():
            (victim.kill if number % 2 == first else victim.terminate)()
        codes = [processes.ended(process) for process in both]
        assert set(codes) <= {exits.Exit.DONE, exits.Exit.STOPPED, -KILL, -STOP}, codes
        if codes != [exits.Exit.DONE] * 2:
            assert [processes.ended(process) for process in processes.together(spec, tmp_path, 2)] == [0, 0]
        assert processes.losses(spec) == processes.losses(alone), f"round {number}"
        assert weights(spec) == weights(alone)


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_have_the_loss_curve_of_one(world: World, tmp_path: pathlib.Path, count: int) -> None:
    """The same effective batch, in float32: sums in another order, nothing else."""
    training = {**TRAINING, "precision": "Float32", "maxSteps": 20}
    one = fresh(world(tiny.examples(60), training=training), "one")
    assert train.train(one, 1, 1.0).training is not None
    several = fresh(one, "several")
    assert [processes.ended(process) for process in processes.together(several, tmp_path, count)] == [0] * count
    assert processes.losses(several) == pytest.approx(processes.losses(one), rel=2e-3)


def test_torchrun_may_start_the_processes(world: World, tmp_path: pathlib.Path) -> None:
    training = {**TRAINING, "precision": "Float32", "maxSteps": 12}
    ours = fresh(world(tiny.examples(60), training=training), "ours")
    assert [processes.ended(process) for process in processes.together(ours, tmp_path, 2)] == [0, 0]
    theirs = fresh(ours, "theirs")
    run_file = tmp_path / "theirs.json"
    run_file.write_text(theirs.model_dump_json(by_alias=True, exclude_none=True))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"FINETUNE_WORK": str(tmp_path / "torchrun"), "FINETUNE_METRICS_PORT": "0"}
    command = [*torchrun, "-m", "--", "finetune_trainer", "train", "--run", str(run_file)]
    assert subprocess.run(command, env=environment, timeout=300).returncode == 0
    assert processes.losses(theirs) == processes.losses(ours)
