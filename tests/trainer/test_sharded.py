"""A base model that one device does not hold: sharded over processes by FSDP2, with the losses of a process that holds it whole.

Real processes of the training stage over gloo, whose memory is limited so that the plan shards.
"""

import bisect
import dataclasses
import json
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.trainer import processes, tiny

from finetune_api import exits, outcome, run
from finetune_trainer.data import corpus
from finetune_trainer.planning import forecast, parallelism, workload
from finetune_trainer.stages import preflight, train
from finetune_trainer.store import storage
from finetune_trainer.training import checkpoint

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
"""Of a loss in float32, relative: the sums of two processes in another order, and passes through autograd instead of our own."""

STEPS = 8

TRAINING: dict[str, Any] = {
    "precision": "Float32",
    "maxSteps": STEPS,
    "batchSize": 8,
    "learningRate": 0.001,
    "checkpoints": {"everyMinutes": 0.01},
    "earlyStopping": {"patience": 100},
}


@pytest.fixture(scope="module")
def layered(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A base model whose layers are most of it."""
    folder = tmp_path_factory.mktemp("layered") / "base"
    tiny.make_tiny_model(folder, hidden=256, layers=8)
    return folder


def made(folder: pathlib.Path, base: pathlib.Path, revision: str, **training: Any) -> run.Run:
    (folder / "train.jsonl").write_text(tiny.jsonl(tiny.examples(60)))
    document = tiny.run_document(
        f"file://{base}", [f"file://{folder}/train.jsonl"], f"file://{folder}/out", training={**TRAINING, **training}
    )
    spec = run.Run.model_validate_json(json.dumps({**document, "revision": revision}))
    preflight.preflight(spec)
    return spec


def limit(spec: run.Run, base: pathlib.Path, folder: pathlib.Path, chosen: bool | None = None) -> dict[str, str]:
    """The environment of processes whose memory holds the model only when two share it; chosen: as of a workload."""
    data = corpus.load(storage.of(spec.storage), spec.layout.data, base, spec.training)
    examples = forecast.examples(data.train, spec.training.batch_size)
    case = forecast.of_folder(base, spec.training, examples, workload.Device("cpu", 4, 2))
    assert case is not None
    case = dataclasses.replace(case, chosen=chosen)
    # the largest memory that holds only a part
    kib = bisect.bisect_left(
        range(2 << 20), True, 1 << 19, key=lambda size: not parallelism.choose(case, size << 10).sharded
    )
    kib -= 1
    assert parallelism.choose(case, kib << 10).fits
    (folder / "cgroup").mkdir(exist_ok=True)
    (folder / "cgroup" / "memory.max").write_text(str(kib << 10))
    return {processes.CGROUP: str(folder / "cgroup")}


def end(started: list[Any]) -> list[int]:
    return [processes.ended(process) for process in started]


def note(spec: run.Run) -> str:
    """What the status says of the passes."""
    found = train.train(spec, 1, 1.0).training  # it was trained before: the stored outcome
    assert found is not None
    return found.passes or ""


def again(spec: run.Run, revision: str) -> run.Run:
    other = spec.model_copy(update={"revision": revision})
    preflight.preflight(other)
    return other


@dataclasses.dataclass(frozen=True)
class Trained:
    """The same training by one process that holds the base, and by two that share it."""

    folder: pathlib.Path
    whole: run.Run
    shared: run.Run
    limited: dict[str, str]
    seconds: float
    """What the two took."""


@pytest.fixture(scope="module", params=["LoRA", "QLoRA"])
def trained(
    request: pytest.FixtureRequest, layered: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_WORK", str(folder / "work"))
        patch.setenv("FINETUNE_METRICS_PORT", "0")
        whole = made(folder, layered, "whole", method=request.param)
        assert end([processes.start(whole, folder)]) == [exits.Exit.DONE]
        shared, limited = again(whole, "shared"), limit(whole, layered, folder)
        begun = time.monotonic()
        assert end(processes.together(shared, folder, 2, **limited)) == [0, 0]
        yield Trained(folder, whole, shared, limited, time.monotonic() - begun)


def test_two_processes_that_share_the_base_learn_what_one_learns_that_holds_it(trained: Trained) -> None:
    assert "sharded over the processes" in note(trained.shared)
    assert "padded" not in note(trained.shared)
    assert note(trained.whole) == ""
    assert processes.losses(trained.shared) == pytest.approx(processes.losses(trained.whole), rel=TOLERANCE)


def test_a_sharded_run_that_is_killed_resumes_with_two_processes_or_with_one(trained: Trained) -> None:
    """Both resume from what the same kill left."""
    killed, folder = again(trained.whole, "killed"), trained.folder
    both = processes.together(killed, folder, 2, **trained.limited)
    limit = time.monotonic() + 300
    while not checkpoint.complete(storage.of(killed.storage), killed.layout):
        assert time.monotonic() < limit, "there is no checkpoint"
        time.sleep(0.02)
    both[1].kill()
    assert end(both)[0] == exits.Exit.STOPPED
    assert checkpoint.complete(storage.of(killed.storage), killed.layout)[-1] < TRAINING["maxSteps"]
    shutil.copytree(folder / "out", folder / "left")
    for count in (2, 1):
        shutil.rmtree(folder / "out")
        shutil.copytree(folder / "left", folder / "out")
        second = processes.together(killed, folder, count, **(trained.limited if count > 1 else {}))
        assert end(second) == [0] * count
        done = outcome.Outcome.model_validate_json((folder / "node0" / "termination").read_text()).training
        assert done is not None
        assert done.resumed_from is not None
        exact = {"rel": 0.0, "abs": 0.0} if count == 2 else {"rel": TOLERANCE}
        assert processes.losses(killed) == pytest.approx(processes.losses(trained.shared), **exact)


def test_a_base_that_was_planned_whole_is_sharded_when_the_trainers_own_passes_do_not_prove_themselves(
    layered: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    spec = made(tmp_path, layered, "planned", maxSteps=2)
    limited = limit(spec, layered, tmp_path, chosen=False)
    assert end(processes.together(spec, tmp_path, 2, **limited, **{processes.DIFFERS: "yes"})) == [0, 0]
    assert "sharded over the processes" in note(spec)
    assert "states differ by 1" in note(spec)
