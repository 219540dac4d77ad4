"""Memory that is short for a micro-batch, in one of several processes: all take a smaller one and continue."""

import pathlib
from collections.abc import Callable

import pytest
from tests.trainer import processes, tiny

from finetune_api import exits, job, run
from finetune_trainer.planning import memory
from finetune_trainer.stages import preflight, train
from finetune_trainer.training import shortage

World = Callable[..., run.Run]

AUTO, DISABLED = job.GradientCheckpointing.AUTO, job.GradientCheckpointing.DISABLED


@pytest.mark.parametrize(
    ("before", "wanted", "after"),
    [
        ((640, False), AUTO, (320, True)),
        ((640, False), DISABLED, (320, False)),
        ((150, False), AUTO, (100, True)),
        ((100, False), AUTO, (100, True)),
        ((80, False), AUTO, (80, True)),
        ((100, True), AUTO, None),
        ((100, False), DISABLED, None),
    ],
)
def test_what_follows_when_memory_is_short(
    before: tuple[int, bool], wanted: job.GradientCheckpointing, after: tuple[int, bool] | None
) -> None:
    """The longest example has 100 tokens."""
    found = shortage.halved(memory.Setup(*before, memory.Memory()), wanted, 100)
    assert (found and (found.tokens, found.checkpointing)) == after


@pytest.mark.slow
def test_two_processes_of_which_one_runs_out_of_memory_train_with_smaller_micro_batches(
    world: World, tmp_path: pathlib.Path
) -> None:
    """It does in the comparison of the passes, then with each micro-batch but the smallest."""
    training = {"maxSteps": 3, "batchSize": 16, "precision": "Float32"}
    alone = world(tiny.examples(60), training=training)
    preflight.preflight(alone)
    assert processes.ended(processes.start(alone, tmp_path)) == exits.Exit.DONE
    both = alone.model_copy(update={"revision": "both"})
    preflight.preflight(both)
    started = processes.together(both, tmp_path, 2, **{processes.SHORT: "150"})
    assert [processes.ended(process) for process in started] == [0, 0]
    assert processes.losses(both) == pytest.approx(processes.losses(alone), rel=1e-4)
    done = train.train(both, 1, 1.0).training  # it was trained before: the stored outcome
    assert done is not None
    assert done.passes is not None
    assert "they did not prove themselves in another process" in done.passes
    assert "since memory was short for larger ones" in done.passes
