"""A job of the same name and spec, made again: what an earlier one left in storage counts as long as the data are the same."""

import pathlib
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
    "evaluation": {"gates": [{"metric": "ExactMatch", "minimum": 0.9, "confidence": 0.5}], "maximumExamples": 4},
}


@pytest.fixture
def first(world: World) -> run.Run:
    return world(tiny.examples(60), **CHANGES).model_copy(update={"uid": "first"})


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


def test_with_the_same_data_nothing_is_done_again(first: run.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ran(first)
    assert set(before) == {"data", "baseline", "adapter", "evaluation"}

    def refused(*_: Any) -> outcome.Outcome:
        raise AssertionError("trained again")

    monkeypatch.setattr(train, "run_process", refused)
    for uid in ("second", None):
        assert ran(again(first, uid)) == before


def test_with_other_data_everything_is(first: run.Run) -> None:
    before, second = ran(first), again(first, "second")
    grown(first)
    after = ran(second)
    assert all(after[name] != before[name] for name in before), (before, after)
    assert ran(second) == after, "the second job's data are frozen"
    assert ran(first) == after, "whoever comes later is a new job to the second's data"


def test_a_job_keeps_the_data_that_it_began_with(first: run.Run) -> None:
    """Its preflight runs again after an edit of the intent, or when it was judged and its pod lost."""
    before = ran(first)
    grown(first)
    assert ran(first) == before


def test_without_a_cluster_the_current_data_count(first: run.Run) -> None:
    local = again(first, None)
    before = ran(local)
    grown(first)
    assert ran(local)["adapter"] != before["adapter"]


def test_data_that_are_gone_are_missed(first: run.Run) -> None:
    ran(first)
    pathlib.Path(first.dataset.train[0].removeprefix("file://")).unlink()
    with pytest.raises(errors.Failure, match=r"train\.jsonl"):
        preflight.preflight(again(first, "second"))


def test_a_stopped_training_resumes_in_the_recreated_job(first: run.Run, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_file_that_is_written_again_with_the_same_rows_is_the_same(first: run.Run) -> None:
    local = again(first, None)
    before = ran(local)
    path = pathlib.Path(first.dataset.train[0].removeprefix("file://"))
    text = path.read_text()
    path.unlink()
    path.write_text(text)
    assert ran(local) == before
