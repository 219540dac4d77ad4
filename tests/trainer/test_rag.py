"""RAG: documents in passages, those most similar to the question before it, and what it does to a job."""

import pathlib
from collections.abc import Callable

import pytest
from tests.trainer import tiny

from finetune_api import job, results, run
from finetune_trainer.data import dataset
from finetune_trainer.evaluation import contenders, documents, retrieval
from finetune_trainer.process import errors
from finetune_trainer.stages import evaluate, preflight, train
from finetune_trainer.store import storage

World = Callable[..., run.Run]
RAG = job.Contender.RAG
HANDBOOK = "Parcels are sent on Mondays.\n\nRefunds take ten days.\n\n" + "filler " * 250


def test_a_passage_keeps_paragraphs_together_and_cuts_long_ones() -> None:
    found = list(documents.cut(HANDBOOK))
    assert found[0] == "Parcels are sent on Mondays.\nRefunds take ten days."
    assert [len(one.split()) for one in found[1:]] == [200, 50]
    assert list(documents.cut("\n\n \n")) == []


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    made = tmp_path / "handbook"
    made.mkdir()
    (made / "a.md").write_text(HANDBOOK)
    (made / "b.jsonl").write_text(tiny.jsonl([{"text": "Repairs are free."}, {"other": 1}]))
    return made


def store_of(spec: run.Run) -> storage.Storage:
    return storage.of_data(spec)


def test_text_and_rows_are_read_in_order(folder: pathlib.Path, world: World) -> None:
    uris = [f"file://{folder}/*.md", f"file://{folder}/b.jsonl"]
    found = list(documents.passages(store_of(world()), uris))
    assert len(found) == 4
    assert found[-1] == "Repairs are free."


def test_documents_that_are_not_there_end_a_job_before_training(folder: pathlib.Path, world: World) -> None:
    spec = world(intent={"retrieval": {"uris": [f"file://{folder}/none.txt"]}})
    with pytest.raises(errors.Failure, match=r"none\.txt matches no file"):
        preflight.preflight(spec)


def test_a_document_that_is_too_large_says_what_to_do(
    folder: pathlib.Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "BYTES", 100)
    with pytest.raises(errors.Failure, match="split it into several files"):
        documents.find(store_of(world()), [f"file://{folder}/a.md"])


@pytest.mark.parametrize(
    "name, content, words",
    [
        (
            "scan.pdf",
            "%PDF",
            r"^intent\.retrieval: .*scan\.pdf is no document that can be read: .*\.txt or \.md.*convert it",
        ),
        ("nothing.md", "", r"^intent\.retrieval: the documents \(.*nothing\.md\) are empty; name files with text"),
    ],
)
def test_documents_without_text_to_read_are_refused(
    folder: pathlib.Path, world: World, name: str, content: str, words: str
) -> None:
    (folder / name).write_text(content)
    with pytest.raises(errors.Failure, match=words):
        documents.find(store_of(world()), [f"file://{folder}/{name}"])


def test_a_pattern_may_match_documents_of_every_kind(folder: pathlib.Path, world: World) -> None:
    for name in ("_SUCCESS", ".hidden", "nothing.md"):
        (folder / name).touch()
    found = documents.find(store_of(world()), [f"file://{folder}/*"])
    assert [entry.uri.rsplit("/", 1)[-1] for entry in found] == ["a.md", "b.jsonl", "nothing.md"]


def test_passages_come_before_the_last_question_under_the_prompt_of_today() -> None:
    index = retrieval.Index(["Refunds take ten days.", "Parcels are sent on Mondays."], str, len)
    script = contenders.Script(job.Prompt(system="Be short."), passages=index, looked_up=1, room=100)
    example = dataset.Example(
        "f:1",
        (
            dataset.Message("user", "Hello"),
            dataset.Message("assistant", "Hi"),
            dataset.Message("user", "When are parcels sent?"),
            dataset.Message("assistant", "On Mondays"),
        ),
    )
    asked = script.ask(example, RAG)
    assert [turn.role for turn in asked.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert asked.messages[1].content == "Hello", "earlier turns stay"
    question = asked.messages[3].content
    assert question.endswith("When are parcels sent?")
    assert "Parcels are sent on Mondays." in question
    assert "Refunds" not in question
    assert asked.answer == "On Mondays"


def test_rag_takes_part_only_where_the_job_names_documents(folder: pathlib.Path, world: World) -> None:
    rules = {"generation": {"maxNewTokens": 8}, "gates": []}
    spec = world(
        training={"maxSteps": 2},
        evaluation=rules,
        intent={"retrieval": {"uris": [f"file://{folder}/*.md"], "passages": 1}},
    )
    assert f"file://{folder}/*.md" in spec.data, "its claims are mounted like those of other data"
    preflight.preflight(spec)
    train.train(spec, 1, 1.0)
    evaluate.evaluate(spec, None, None, 1)
    place = pathlib.Path(spec.layout.evaluation("e1").removeprefix("file://")) / "results.json"
    found = results.Results.model_validate_json(place.read_text())
    assert RAG in {one.contender for one in found.values}
    tokens = {one.contender: one.prompt for one in found.tokens}
    assert tokens[RAG] > tokens[job.Contender.BASE]
