"""Memory that is short for a micro-batch, in one of several processes: all take a smaller one and continue."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.trainer import loops, processes, tiny

from finetune_api import exits, job, outcome, run
from finetune_trainer.engine import decoding, model, passes
from finetune_trainer.planning import memory
from finetune_trainer.stages import preflight, train
from finetune_trainer.training import checkpoint, shortage
from finetune_trainer.training import processes as training_processes

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


def same(one: checkpoint.Snapshot, other: checkpoint.Snapshot) -> None:
    """Both trainings went the same way, bit for bit: losses, steps of the optimizer and its sums of gradients, generators."""
    assert dataclasses.replace(one.state, seconds=0.0) == dataclasses.replace(other.state, seconds=0.0)
    for found, expected in ((one.adapter, other.adapter), (one.optimizer, other.optimizer), (one.random, other.random)):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("own", "error"), [(True, loops.SHORT), (False, loops.SHORT), (True, loops.CPU_SHORT)], ids=["own", "plain", "CPU"]
)
def test_a_step_in_which_memory_runs_out_is_repeated_with_half_the_micro_batch(
    own: bool, error: Exception, base: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As if it had begun with that: nothing is left of the gradients, losses, random numbers and memory of the first try."""
    alone = training_processes.ProcessGroup()
    undisturbed = loops.made(tmp_path, base, alone, own)
    loops.train(undisturbed, None, halved=True)
    training = loops.made(tmp_path, base, alone, own)
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="finetune"):
        interruption = loops.train(training, error, halved=False)
    assert interruption is not None
    assert interruption.left is False, "memory of the first try is in use in the second"
    assert (training.setup.tokens, training.setup.checkpointing) == (loops.HALF, True)
    assert loops.computes_again(training.engine)
    same(training.snapshot(), undisturbed.snapshot())
    logged = [vars(record)["fields"] for record in caplog.records if record.message == "step"]
    losses = [round(point["loss"], 4) for point in undisturbed.state.history]
    assert [fields["loss"] for fields in logged] == losses


@pytest.mark.slow
def test_a_step_in_which_one_of_two_processes_runs_out_of_memory_is_repeated_by_both(
    base: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    loops.together(tmp_path, base)
    for rank in range(2):
        same(loops.of(tmp_path, rank, disturbed=True), loops.of(tmp_path, rank, disturbed=False))
    one, other = (loops.of(tmp_path, rank, disturbed=True) for rank in range(2))
    assert one.state.history == other.state.history
    assert all(torch.equal(one.adapter[name], other.adapter[name]) for name in one.adapter)


def test_passes_that_fail_with_the_largest_micro_batch_are_replaced(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a kernel may that cannot be compiled for shapes of that size: the job trains, more slowly, and says so."""
    spec = world(tiny.examples(60), training={"maxSteps": 2, "precision": "Float32"})
    preflight.preflight(spec)
    train.train(spec, 1, 1.0)
    other = spec.model_copy(update={"revision": "other"})
    preflight.preflight(other)

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("Triton Error [CUDA]: out of resource: shared memory")

    monkeypatch.setattr(passes.Fast, "forward", fails)
    decoders: list[object] = []
    deliver = train.deliver

    def noting(*given: Any) -> outcome.Outcome:
        decoders.append(decoding.of(model.decoder(given[4]), torch.device("cpu")))
        return deliver(*given)

    monkeypatch.setattr(train, "deliver", noting)
    done = train.train(other, 1, 1.0).training
    assert done is not None
    assert done.passes is not None
    assert "since the trainer's own failed with the largest micro-batch" in done.passes
    assert decoders == [None], "answers are not written by passes that failed either"
    assert processes.losses(other) == pytest.approx(processes.losses(spec), rel=1e-4)
    monkeypatch.setattr(passes.Plain, "forward", fails)
    third = spec.model_copy(update={"revision": "third"})
    preflight.preflight(third)
    with pytest.raises(RuntimeError, match="Triton Error"):
        train.train(third, 1, 1.0)


@dataclasses.dataclass(frozen=True)
class Voting(training_processes.ProcessGroup):
    """Among others, the worst of which answer this."""

    others: list[int] = dataclasses.field(default_factory=list)

    def maximum(self, number: int) -> int:
        return max(number, self.others.pop() if self.others else 0)


def test_passes_that_fail_in_one_process_are_replaced_in_all(base: pathlib.Path, tmp_path: pathlib.Path) -> None:
    training = loops.made(tmp_path, base, Voting(others=[shortage.FAILED]), own=True)
    plain = loops.made(tmp_path, base, training_processes.ProcessGroup(), own=False)
    training.standard = lambda: (plain.engine, plain.setup)
    shortage.settle(training)
    assert training.engine is plain.engine


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
