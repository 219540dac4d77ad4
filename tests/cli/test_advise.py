"""`finetune advise` and `finetune estimate`: what preflight says of a job, with nothing kept."""

import pathlib

import pytest
from tests.trainer import tiny

from finetune_cli import answer


def files(folder: pathlib.Path) -> set[pathlib.Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_too_few_examples_are_advised_against_and_nothing_is_stored(job, finetune, tmp_path: pathlib.Path) -> None:
    file = job(dataset={"minimumExamples": 200})
    before = files(tmp_path)
    code, found = finetune("advise", file)
    assert (code, found["verdict"], found.get("reason")) == (0, "NotRecommended", None)
    assert "minimumExamples" in found["advice"][0]
    assert found["counts"]["examples"] == 51
    assert files(tmp_path) == before


def test_enforce_ends_the_job(job, finetune) -> None:
    code, found = finetune("advise", job(dataset={"minimumExamples": 200}, intent={"advice": "Enforce"}))
    assert (code, found["reason"]) == (answer.Exit.INVALID, "TooFewExamples")
    assert found["verdict"] == "NotRecommended"


def test_good_data_are_recommended(job, finetune) -> None:
    code, found = finetune("advise", job())
    assert (code, found["verdict"], found["findings"]) == (0, "Recommended", [])
    assert found["job"]["name"] == "tiny"
    assert found["job"]["output"].endswith(f"/my jobs/out/ml/tiny/{found['job']['revision']}")


def test_what_a_check_found_is_named_with_all_places(job, finetune) -> None:
    rows = [*tiny.examples(30), {"messages": "?"}, {"messages": "?"}]
    code, found = finetune("advise", job(rows))
    assert (code, found["reason"]) == (answer.Exit.INVALID, "DatasetInvalid")
    [finding] = found["findings"]
    assert [place.partition(": ")[0].rpartition("/")[2] for place in finding["places"]] == [
        "train.jsonl:31",
        "train.jsonl:32",
    ]


@pytest.mark.slow
def test_a_model_of_the_hub_fails_clearly_without_a_network(job, finetune) -> None:
    code, found = finetune("advise", job(baseModel={"name": None, "source": "hf://org/model"}))
    assert (code, found["reason"]) == (answer.Exit.STORAGE, "StorageUnavailable")
    assert "hub" in found["problems"][0]["message"]


def test_memory_is_estimated_from_the_lengths_of_the_examples(job, finetune) -> None:
    code, found = finetune("estimate", job())
    assert code == 0
    assert found["estimate"]["memory"]["examples"]["measured"] is True
    assert found["counts"]["examples"] == 51
    code, found = finetune("estimate", job(), "--assume-longest")
    assert found["estimate"]["memory"]["examples"]["measured"] is False


def test_memory_that_does_not_suffice_is_the_exit_code(job, finetune) -> None:
    code, found = finetune("estimate", job(), "--memory", "100Mi")
    assert code == answer.Exit.INVALID
    assert found["message"], "it says what to change"


@pytest.mark.parametrize("memory", ["much", "22GB"])
def test_a_size_of_memory_is_a_quantity(job, finetune, memory: str) -> None:
    code, found = finetune("estimate", job(), "--memory", memory)
    assert code == answer.Exit.INVALID
    assert "write 22Gi" in found["problems"][0]["message"]


def test_duration_and_price_are_printed_where_preflight_knows_them(job, capsys: pytest.CaptureFixture[str]) -> None:
    from finetune_cli import __main__

    assert __main__.main(["estimate", str(job())]) == 0
    printed = capsys.readouterr().out
    assert "duration: " in printed
    assert "cost: " in printed


def test_a_finding_is_one_line_and_its_advice_is_given_once(job, capsys: pytest.CaptureFixture[str]) -> None:
    from finetune_cli import __main__

    rows = tiny.examples(60)
    rows += [rows[n] for n in range(20)]
    sorry = {"role": "assistant", "content": "I am sorry, as an AI I cannot help."}
    rows += [{"messages": [{"role": "user", "content": f"Number {n}?"}, sorry]} for n in range(20)]
    assert __main__.main(["advise", str(job(rows, dataset={"minimumExamples": 500}))]) == 0
    lines = capsys.readouterr().out.splitlines()
    findings = [line for line in lines if line.startswith(("warning ", "error ", "note "))]
    assert {line.split()[1] for line in findings} >= {"duplicates", "refusals"}
    assert all(".jsonl:" in line for line in findings)
    to_do = [line for line in lines if line.startswith("- ") and "?" not in line]
    assert 1 <= len(to_do) <= 3
    assert len(set(lines)) == len(lines)
    assert len(lines) <= 1 + 1 + 1 + len(findings) + len(to_do) + 3 + 2


def test_questions_about_people_are_knowledge_although_names_and_towns_come_back(job, finetune) -> None:
    from tests.scenarios import data

    code, found = finetune("advise", job(data.people(240)))
    assert (code, found["verdict"]) == (0, "Caution")
    assert "knowledge" in found["advice"][0]
    assert "train.jsonl:" in found["advice"][0]
    assert "file://" not in found["advice"][0]
    assert any(text.startswith("Can retrieval (RAG) solve it? Probably") for text in found["advice"])
