"""training.teacher: rows without answers, and what a job with them may say. The whole course: tests/scenarios."""

import json
import pathlib
import types
from collections.abc import Callable
from typing import Any

import pytest
from tests.trainer import tiny

from finetune_api import course, job, run, status
from finetune_trainer.data import dataset, questions
from finetune_trainer.evaluation import contenders, teacher
from finetune_trainer.process import errors
from finetune_trainer.stages import evaluate, preflight

USER = {"role": "user", "content": "Is it broken?"}
ANSWER = {"role": "assistant", "content": "Yes."}


def read(row: dict[str, Any], kind: job.Format = job.Format.AUTO) -> list[tuple[str, str, bool]]:
    made = questions.example(row, kind, "f:1")
    assert made.answer is None
    return [(turn.role, turn.content, turn.learned) for turn in made.messages]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER]},
        {"messages": [USER, ANSWER]},
        {"conversations": [{"from": "human", "value": "Is it broken?"}]},
        {"prompt": "Is it broken?"},
        {"prompt": "Is it broken?", "completion": ""},
        {"instruction": "Is it broken?"},
    ],
)
def test_only_the_question_of_a_row_is_read(row: dict[str, Any]) -> None:
    *before, answer = read(row)
    assert [one[:2] for one in before] == [("user", "Is it broken?")]
    assert answer == ("assistant", "", True)


def test_earlier_answers_of_a_chat_are_context_alone() -> None:
    turns = read({"messages": [USER, ANSWER, USER]})
    assert [learned for *_, learned in turns] == [False, False, False, True]


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        ({"text": "Is it broken?"}, job.Format.AUTO, r"needs a question \(found: text\)"),
        ({"prompt": "Is it broken?"}, job.Format.CHAT, "needs a question"),
        ({"messages": [USER], "tools": tiny.TOOLS}, job.Format.AUTO, "this row has 'tools'; remove them"),
        ({"messages": [ANSWER]}, job.Format.AUTO, "there is no turn of the user"),
        ({"messages": []}, job.Format.AUTO, "there is no turn of the user"),
        ("text", job.Format.AUTO, "needs a question"),
    ],
)
def test_rows_that_ask_nothing_are_refused(row: Any, kind: job.Format, message: str) -> None:
    with pytest.raises(dataset.Wrong, match=message):
        questions.example(row, kind, "f:1")


def test_with_a_teacher_there_is_a_baseline_stage_even_without_advice() -> None:
    ignoring, rules = job.Intent(advice=job.Advice.IGNORE), job.Evaluation()
    assert course.has_baseline(ignoring, rules, job.Training(teacher=job.Teacher.PROMPT))
    assert not course.has_baseline(ignoring, rules, job.Training())


def test_the_tuned_model_is_compared_with_the_base_alone() -> None:
    chat = dataset.example({"messages": [USER, ANSWER]}, job.Format.CHAT, "f:1")
    script = contenders.Script(job.Prompt(system="Be brief."), shots=(chat,))
    assert job.Contender.PROMPT in contenders.taking_part(job.Evaluation(), script, [chat])
    taught = contenders.Script(job.Prompt(system="Be brief."), shots=(chat,), taught=True)
    assert contenders.taking_part(job.Evaluation(), taught, [chat]) == [job.Contender.BASE]


def test_rows_without_answers_need_a_teacher(world: Callable[..., run.Run]) -> None:
    asked = [{"messages": row["messages"][:-1]} for row in tiny.examples(60)]
    with pytest.raises(errors.Failure, match="an example ends with the assistant's answer"):
        preflight.preflight(world(asked))
    intent = {"prompt": {"system": "You sort mail."}}
    spec = world(asked, intent=intent, training={"maxSteps": 2, "teacher": "Prompt"})
    assert spec.without_judgement().intent.prompt.system == "You sort mail.", "training finds the teacher's split by it"
    found = preflight.preflight(spec)
    assert found.preflight is not None
    assert found.preflight.examples + (found.preflight.test_examples or 0) > 50
    assert any("those of the rows are not used" in one for one in found.preflight.advice)
    assert not [one for one in found.preflight.findings if "same answer" in one]


def test_a_row_says_the_same_with_and_without_its_answer() -> None:
    [row] = tiny.examples(1)
    without = {"messages": row["messages"][:-1]}
    lines = {questions.example(one, job.Format.AUTO, "f:1").line() for one in (row, without)}
    assert len(lines) == 1
    assert json.loads(lines.pop())["messages"][-1]["content"] == ""


STOP, LIMIT = 0, 4


def runner(given: list[list[int]]) -> Any:
    """A base model that gives these ids, one for each letter, with a prompt that it must have been asked with."""

    def greedy(which: job.Contender, prompts: list[str], ending: Any, done: Any) -> list[list[int]]:
        assert which is job.Contender.PROMPT
        assert prompts == ["system Be brief. user Is it broken?"] * len(given)
        return given

    tokenizer = types.SimpleNamespace(decode=lambda ids, **_: "".join(chr(id) for id in ids if id != STOP))
    encoder = types.SimpleNamespace(
        tokenizer=tokenizer,
        stops=frozenset({STOP}),
        prompt=lambda one: " ".join(f"{turn.role} {turn.content}" for turn in one.prompt),
    )
    script = contenders.Script(job.Prompt(system="Be brief."), taught=True)
    engine = types.SimpleNamespace(greedy=greedy)
    return types.SimpleNamespace(encoder=encoder, script=script, engine=engine, ending=lambda which: None)


def test_answers_that_were_cut_or_are_empty_are_left_out_and_the_prompt_is_not_learned() -> None:
    whole, cut, empty = [*map(ord, "Yes."), STOP], [*map(ord, "Yes,")], [ord(" "), STOP]
    questions_ = [questions.example({"messages": [USER]}, job.Format.CHAT, f"f:{line}") for line in range(4)]
    found = teacher.answer(runner([whole, cut, empty, []]), questions_)
    assert [(one.source, one.answer) for one in found] == [("f:0", "Yes.")]
    assert [turn.role for turn in found[0].messages] == ["user", "assistant"], "the student is asked without the prompt"


@pytest.mark.parametrize(("taught", "answered", "ends"), [(5, 10, False), (4, 10, True), (0, 0, True)])
def test_a_teacher_that_seldom_ends_its_answers_ends_the_job(
    world: Callable[..., run.Run], tmp_path: pathlib.Path, taught: int, answered: int, ends: bool
) -> None:
    line = questions.example({"messages": [USER]}, job.Format.CHAT, "f:1").line()
    spec = world(evaluation={"generation": {"maxNewTokens": LIMIT}})
    (tmp_path / "train.jsonl").write_text(line * taught)
    if not ends:
        return teacher.check(spec, tmp_path, answered, taught)
    with pytest.raises(errors.Failure, match=f"{answered - taught} of {answered} answers .* longer than 4 tokens"):
        teacher.check(spec, tmp_path, answered, taught)
    return None


def test_the_evaluation_says_whose_answers_were_expected_and_what_is_saved(world: Callable[..., run.Run]) -> None:
    found = status.Evaluation(passed=True, examples=30, tokens_saved_per_request=412)
    taught = world(intent={"prompt": {"system": "Sort."}}, training={"teacher": "Prompt"})
    message = evaluate.outcome_of(taught, found).message
    assert message.endswith("the base model with intent.prompt.system; 412 prompt tokens saved a request")
    assert "saved" not in evaluate.outcome_of(world(), found).message
