"""Every scenario of the table through the whole of preflight, on a tiny model."""

import json
import pathlib
from typing import Any

import pytest
from tests.scenarios import data, scenarios
from tests.trainer import tiny

from finetune_api import job, run
from finetune_trainer.checks import novelty, sample, variety
from finetune_trainer.data import dataset
from finetune_trainer.process import errors
from finetune_trainer.stages import preflight


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("model") / "base"
    tiny.make_tiny_model(folder)
    return folder


@pytest.fixture(autouse=True)
def alone(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_WORK", str(tmp_path / "work"))


def job_of(one: scenarios.Scenario, base: pathlib.Path, folder: pathlib.Path) -> run.Run:
    (folder / "train.jsonl").write_text(tiny.jsonl(one.rows()))
    settings: dict[str, Any] = {"minimumExamples": scenarios.MINIMUM}
    if one.test is not None:
        (folder / "test.jsonl").write_text(tiny.jsonl(one.test()))
        settings["test"] = {"uris": [f"file://{folder}/test.jsonl"]}
    document = tiny.run_document(
        f"file://{base}",
        [f"file://{folder}/train.jsonl"],
        f"file://{folder}/out",
        **{key: value for key, value in one.job.items() if key != "baseModel"},
        dataset=settings,
        training={"maxSequenceLength": 1024},
    )
    document["baseModel"] |= one.job.get("baseModel", {})
    return run.Run.model_validate_json(json.dumps(document))


@pytest.mark.parametrize("one", scenarios.SCENARIOS, ids=str)
def test_preflight_judges(one: scenarios.Scenario, base: pathlib.Path, tmp_path: pathlib.Path) -> None:
    spec = job_of(one, base, tmp_path)
    try:
        answer = preflight.preflight(spec)
        found, reason = answer.preflight, answer.reason
    except errors.Failure as failure:
        found, reason = failure.preflight, failure.reason
    assert found is not None
    stored = json.loads(pathlib.Path(spec.layout.preflight.removeprefix("file://")).read_text())
    spoke = [advice["rule"] for advice in stored.get("advice", []) if advice["weight"] != "Note"]
    assert (found.verdict, sorted(spoke), reason) == (one.verdict, sorted(one.rules), one.reason), found.advice
    seen = {line.split(":")[0] for line in found.findings}
    assert seen >= set(one.findings)
    if spec.intent.advice is job.Advice.IGNORE:
        assert found.advice == []
    elif reason is None:
        questions = ("Tried a prompt?", "Can retrieval (RAG) solve it?", "Enough data?")
        assert all(any(text.startswith(question) for text in found.advice) for question in questions)


# -- the measures alone, with other sizes and seeds than those that their thresholds were chosen with --

CARRY = (data.company, data.prices, data.medicine, data.firmen, data.people)
CARRY_NONE = (
    data.extraction,
    data.classification,
    data.style,
    data.translation,
    data.summaries,
    data.code,
    data.stil,
    data.letters,
)


def drawn(rows: list[data.Row]) -> list[sample.Traits]:
    return [
        sample.traits(number, dataset.example(row, job.Format.CHAT, f"x:{number}")) for number, row in enumerate(rows)
    ]


@pytest.mark.parametrize("seed, count", [(7, 120), (8, 700)])
def test_knowledge_is_distinguished_from_other_data_in_every_domain(seed: int, count: int) -> None:
    for maker in CARRY:
        found = novelty.measure(drawn(maker(count, seed)))
        assert found is not None
        assert found.share >= 0.7, maker.__name__
    for maker in CARRY_NONE:
        found = novelty.measure(drawn(maker(count, seed)))
        assert found is not None
        assert found.share <= 0.2, maker.__name__


def test_a_few_dozen_answers_do_not_tell() -> None:
    assert novelty.measure(drawn(data.company(60))) is None


@pytest.mark.parametrize("maker", [*CARRY, *CARRY_NONE], ids=lambda maker: maker.__name__)
def test_different_examples_are_not_taken_for_copies(maker: Any) -> None:
    found = variety.distinct(drawn(maker(250, 9)), 250)
    assert found is not None
    assert found > 150


def test_copies_count_once_also_when_only_a_sample_is_seen() -> None:
    traits = drawn(scenarios.copies())
    assert variety.distinct(traits, 400) == pytest.approx(4, rel=0.3)
    assert variety.distinct(traits, 40_000) == pytest.approx(4, rel=0.5)


def test_examples_that_differ_in_their_own_number_alone_are_different() -> None:
    rows = [data.chat(f"What is {n} times {n + 7}?", str(n * (n + 7))) for n in range(200)]
    found = variety.distinct(drawn(rows), 200)
    assert found is not None
    assert found > 150


def test_the_sample_is_as_large_as_it_may_be_and_the_same_again() -> None:
    rows = [dataset.example(row, job.Format.CHAT, "x:1") for row in data.classification(sample.SIZE + 500)]
    takes = []
    for _ in range(2):
        sampler = sample.Sampler(3)
        for number, one in enumerate(rows):
            sampler.take(number, one)
        takes.append([one.row for one in sampler.of_rows(_all(len(rows)))])
    assert takes[0] == takes[1]
    assert len(takes[0]) == sample.SIZE
    assert takes[0][-1] > sample.SIZE


def _all(count: int) -> Any:
    import numpy as np

    return np.ones(count, dtype=bool)
