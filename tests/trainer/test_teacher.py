"""training.teacher: rows without answers, and what a job with them may say. The whole course: tests/scenarios."""

import json
import pathlib
import types
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tests.support import ports
from tests.trainer import endpoints, tiny

from finetune_api import course, job, reasons, run, status
from finetune_trainer.data import dataset, questions, tokens
from finetune_trainer.evaluation import candidates, contenders, endpoint, teacher
from finetune_trainer.process import errors, machine
from finetune_trainer.stages import baseline, evaluate, preflight
from finetune_trainer.store import folders, storage

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
    assert course.has_baseline(ignoring, rules, job.Training(teacher="Prompt"))
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
    found = teacher.with_answers(questions_, teacher.prompted(runner([whole, cut, empty, []]))(questions_))
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


def candidate_of(url: str) -> dict[str, Any]:
    return {
        "candidates": [{"name": "large", "endpoint": url, "model": "wise-70b"}],
        "generation": {"maxNewTokens": LIMIT},
    }


def test_a_candidate_answers_with_the_prompt_and_what_it_refuses_or_does_not_end_is_left_out(
    world: Callable[..., run.Run],
) -> None:
    answers = {"0": {"content": "<think>hm</think>Yes."}, "1": {"content": "Yes,", "ended": "length"}}
    with endpoints.served() as (model, url):
        model.answers = lambda question: answers.get(question, {"content": "four"})
        model.refuses = lambda body: (400, "no") if body["messages"][-1]["content"] == "2" else None
        spec = world(
            intent={"prompt": {"system": "Be brief."}}, training={"teacher": "large"}, evaluation=candidate_of(url)
        )
        assert spec.contending == [], "it would equal its own answers"
        asked = spec.teaching
        assert asked is not None
        rows = [{"messages": [{"role": "user", "content": str(line)}]} for line in range(3)]
        examples = [questions.example(row, job.Format.CHAT, f"f:{line}") for line, row in enumerate(rows)]
        found = teacher.with_answers(examples, teacher.candidate(spec, asked)(examples))
    assert [(one.source, one.answer) for one in found] == [("f:0", "Yes.")]
    assert [turn.role for turn in found[0].messages] == ["user", "assistant"]
    about_the_rows = [body for body in model.asked if body["messages"] != candidates.CHECK]
    assert {len(body["messages"]) for body in about_the_rows} == {2}
    assert all(body["messages"][0] == {"role": "system", "content": "Be brief."} for body in about_the_rows)
    assert model.asked[-1]["max_tokens"] == LIMIT


def test_a_candidate_that_does_not_answer_ends_the_stage(
    world: Callable[..., run.Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "PATIENCE", 0.1)
    spec = world(training={"teacher": "large"}, evaluation=candidate_of(f"http://127.0.0.1:{ports.free()}"))
    assert spec.teaching is not None
    with pytest.raises(errors.Failure, match=r"evaluation\.candidates: large") as caught:
        teacher.candidate(spec, spec.teaching)
    assert caught.value.reason is reasons.Reason.CANDIDATE_FAILED


def test_a_question_that_an_outage_leaves_without_an_answer_is_requested_again(
    world: Callable[..., run.Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is no question that the teacher refused."""
    monkeypatch.setattr(endpoint, "PATIENCE", 1.0)
    with endpoints.served() as (model, url):
        spec = world(training={"teacher": "large"}, evaluation=candidate_of(url))
        assert spec.teaching is not None
        answers = teacher.candidate(spec, spec.teaching)
        model.refuses = lambda body: (503, "busy") if body["messages"][-1]["content"] == "1" else None
        examples = [questions.example({"prompt": str(line)}, job.Format.AUTO, f"f:{line}") for line in range(2)]
        with pytest.raises(errors.Failure, match="busy"):
            answers(examples)


def test_what_another_model_answered_is_there_for_later_revisions_and_the_evaluations_schema_does_not_shape_it(
    world: Callable[..., run.Run],
) -> None:
    examples = [questions.example({"prompt": str(line)}, job.Format.AUTO, f"f:{line}") for line in range(3)]
    with endpoints.served() as (model, url):
        spec = world(
            training={"teacher": "large"}, evaluation={**candidate_of(url), "outputSchema": {"type": "object"}}
        )
        assert spec.teaching is not None
        store, asking = storage.of(spec.storage), teacher.candidate(spec, spec.teaching)
        parts = teacher.Parts(spec, store, asking)
        assert parts.answers(examples) == ["good"] * 3
        parts.discard()
        asked = len(model.asked)
        later = spec.model_copy(update={"revision": "later"})
        assert teacher.Parts(later, store, asking).answers(examples) == ["good"] * 3
        assert len(model.asked) == asked
        assert not [body for body in model.asked if "response_format" in body]
        prompted = later.model_copy(update={"intent": job.Intent(prompt=job.Prompt(system="Be brief."))})
        teacher.Parts(prompted, store, asking).answers(examples)
        assert len(model.asked) == asked + 3, "another prompt, other answers"


def test_answers_are_stored_as_they_come_and_are_not_requested_again(
    world: Callable[..., run.Run], base: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [{"messages": row["messages"][:-1]} for row in tiny.examples(60)]
    spec = world(asked, intent={"prompt": {"system": "You sort mail."}}, training={"teacher": "Prompt"})
    preflight.preflight(spec)
    monkeypatch.setattr(teacher, "TOGETHER", 16)
    store, encoder = storage.of(spec.storage), tokens.load(base, spec.training)
    calls: list[int] = []

    def dying(examples: Sequence[dataset.Example]) -> list[str]:
        calls.append(len(examples))
        if len(calls) == 3:
            raise RuntimeError("the pod ends")
        return ["good"] * len(examples)

    with pytest.raises(RuntimeError):
        teacher.write(spec, store, dying, encoder, lambda answered, total: None)
    teacher.write(spec, store, dying, encoder, lambda answered, total: None)
    assert sum(calls) - 16 == 60, "only the batch that was under way is requested twice"
    assert teacher.written(spec, store)
    assert not list(store.entries(f"{spec.layout.taught}-parts/"))


def test_a_job_that_a_candidate_teaches_asks_it_before_training_and_no_more(world: Callable[..., run.Run]) -> None:
    rows = [{"prompt": row["messages"][-2]["content"]} for row in tiny.examples(60)]
    with endpoints.served() as (model, url):
        rules = candidate_of(url)
        training = {"maxSteps": 2, "teacher": "large"}
        checked = preflight.preflight(world(rows, training=training, evaluation=rules)).preflight
        assert checked is not None
        assert any(f"sent to {url}, where the model wise-70b writes the answers" in one for one in checked.advice)
        spec = world(rows, intent={"advice": "Ignore"}, training=training, evaluation=rules)
        found = baseline.baseline(spec, 1)
        asked = len(model.asked)
        assert baseline.baseline(spec, 2).message == found.message
        assert len(model.asked) == asked, "answered once"
    assert found.message.startswith(
        "the answers to learn are those of the candidate large (wise-70b); without training:"
    )
    store, into = storage.of(spec.storage), machine.work() / "seen"
    folders.load(store, spec.examples, into)
    answered = [one.answer for name in dataset.SPLITS for one in dataset.stream(into / f"{name}.jsonl")]
    assert set(answered) == {"good"}
    assert len(answered) > 50
    reached = status.Evaluation(passed=True, examples=30)
    assert evaluate.outcome_of(spec, reached).message.endswith("the answers of the candidate large (wise-70b)")


def test_the_evaluation_says_whose_answers_were_expected_and_what_is_saved(world: Callable[..., run.Run]) -> None:
    found = status.Evaluation(passed=True, examples=30, tokens_saved_per_request=412)
    taught = world(intent={"prompt": {"system": "Sort."}}, training={"teacher": "Prompt"})
    message = evaluate.outcome_of(taught, found).message
    assert message.endswith("the base model with intent.prompt.system; 412 prompt tokens saved a request")
    assert "saved" not in evaluate.outcome_of(world(), found).message
