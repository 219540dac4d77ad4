"""A job of the same name and spec, made again: what an earlier one left in storage counts as long as the data are the same."""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from tests.trainer import tiny

from finetune_api import outcome, run
from finetune_trainer.process import errors, signals
from finetune_trainer.stages import baseline, evaluate, preflight, train
from finetune_trainer.store import folders, storage

pytestmark = pytest.mark.slow

World = Callable[..., run.Run]

CHANGES: dict[str, Any] = {
    "training": {"maxSteps": 4},
    "evaluation": {
        "gates": [{"metric": "ExactMatch", "minimum": 0.9, "confidence": 0.5}],
        "maximumExamples": 4,
        "generation": {"maxNewTokens": 24},
    },
}


@dataclasses.dataclass(frozen=True)
class Left:
    """What a job left in storage after all of its stages: `before` has the SHA-256 of each."""

    place: pathlib.Path
    saved: pathlib.Path
    spec: run.Run
    before: dict[str, str]

    def restore(self) -> None:
        shutil.rmtree(self.place)
        shutil.copytree(self.saved, self.place)


@pytest.fixture(scope="module")
def left(base: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Left:
    folder = tmp_path_factory.mktemp("again")
    place = folder / "place"
    place.mkdir()
    (place / "train.jsonl").write_text(tiny.jsonl(tiny.examples(60)))
    document = tiny.run_document(f"file://{base}", [f"file://{place}/train.jsonl"], f"file://{place}/out", **CHANGES)
    spec = again(run.Run.model_validate(document), "first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_WORK", str(folder / "work"))
        patch.setenv("FINETUNE_METRICS_PORT", "0")
        before = ran(spec)
    shutil.copytree(place, folder / "saved")
    return Left(place, folder / "saved", spec, before)


@pytest.fixture
def before(left: Left) -> dict[str, str]:
    """What the job `first` left is in storage again, and nothing else."""
    left.restore()
    return left.before


@pytest.fixture
def first(left: Left, before: dict[str, str]) -> run.Run:
    return left.spec


def ran(spec: run.Run) -> dict[str, str]:
    """All stages; the SHA-256 of what each left."""
    preflight.preflight(spec)
    baseline.baseline(spec, 1)
    train.train(spec, 1, 1.0)
    evaluate.evaluate(spec, None, None, 1)
    store, where = storage.of(spec.storage), spec.layout
    places = {
        "data": where.data,
        "baseline": where.baseline(spec.evaluation_hash),
        "adapter": where.adapter,
        "evaluation": where.evaluation(spec.evaluation_hash),
    }
    made = {name: folders.manifest(store, uri) for name, uri in places.items()}
    return {name: found.sha256 for name, found in made.items() if found is not None}


def again(spec: run.Run, uid: str | None) -> run.Run:
    return spec.model_copy(update={"uid": uid})


def grown(spec: run.Run) -> None:
    """The file of the training data has other examples than before."""
    pathlib.Path(spec.dataset.train[0].removeprefix("file://")).write_text(tiny.jsonl(tiny.examples(70, start=100)))


def test_with_the_same_data_nothing_is_done_again(
    first: run.Run, before: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(before) == {"data", "baseline", "adapter", "evaluation"}

    def refused(*_: Any) -> outcome.Outcome:
        raise AssertionError("trained again")

    monkeypatch.setattr(train, "run_process", refused)
    for uid in ("second", None):
        assert ran(again(first, uid)) == before


def test_with_other_data_everything_is(first: run.Run, before: dict[str, str]) -> None:
    second = again(first, "second")
    grown(first)
    after = ran(second)
    assert all(after[name] != before[name] for name in before), (before, after)
    assert ran(second) == after, "the second job's data are frozen"
    assert ran(first) == after, "whoever comes later is a new job to the second's data"


def test_a_job_keeps_the_data_that_it_began_with(first: run.Run, before: dict[str, str]) -> None:
    """Its preflight runs again after an edit of the intent, or when it was judged and its pod lost."""
    grown(first)
    assert ran(first) == before


def test_without_a_cluster_the_current_data_count(first: run.Run, before: dict[str, str]) -> None:
    local = again(first, None)
    grown(first)
    assert ran(local)["adapter"] != before["adapter"]


def test_data_that_are_gone_are_missed(first: run.Run) -> None:
    pathlib.Path(first.dataset.train[0].removeprefix("file://")).unlink()
    with pytest.raises(errors.Failure, match=r"train\.jsonl"):
        preflight.preflight(again(first, "second"))


def test_a_stopped_training_resumes_in_the_recreated_job(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first = again(world(**CHANGES), "first")
    preflight.preflight(first)
    stopping = train.deliver

    def stopped(*_: Any) -> outcome.Outcome:
        raise errors.Stopped

    monkeypatch.setattr(train, "deliver", stopped)
    with pytest.raises(errors.Stopped):
        train.train(first, 1, 1.0)
    signals._stop.asked = False
    monkeypatch.setattr(train, "deliver", stopping)
    second = again(first, "second")
    preflight.preflight(second)
    found = train.train(second, 1, 1.0).training
    assert found is not None
    assert found.resumed_from


def test_a_file_that_is_written_again_with_the_same_rows_is_the_same(first: run.Run, before: dict[str, str]) -> None:
    local = again(first, None)
    path = pathlib.Path(first.dataset.train[0].removeprefix("file://"))
    text = path.read_text()
    path.unlink()
    path.write_text(text)
    assert ran(local) == before
