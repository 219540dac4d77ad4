"""Other models, at endpoints that a job names: what they are asked, how they are scored, and how they fail, over real HTTP."""

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.trainer import endpoints, tiny
from tests.trainer.endpoints import Model

from finetune_api import evaluation, job, reasons, results, run, status
from finetune_trainer.data import dataset, toolcalls
from finetune_trainer.evaluation import (
    answers,
    candidates,
    contenders,
    endpoint,
    evidence,
    gates,
    headline,
    metrics,
    power,
    prices,
    scoreboard,
)
from finetune_trainer.process import errors, secrets
from finetune_trainer.stages import baseline, evaluate, preflight, train

World = Callable[..., run.Run]
EXACT = job.Metric.EXACT_MATCH
BASE, FEW, TUNED, LARGE = job.Contender.BASE, job.Contender.FEW_SHOT, job.Contender.TUNED, job.Contender("large")
KEY = "candidate-canary-key-0815"


@pytest.fixture
def large() -> Iterator[tuple[Model, str]]:
    with endpoints.served() as made:
        yield made


def questions(model: Model) -> list[dict[str, Any]]:
    return [body for body in model.asked if body["messages"] != candidates.CHECK]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "PATIENCE", 1.0)


def named(url: str, **more: Any) -> dict[str, Any]:
    prices = {"pricePerMillionPromptTokens": 2.5, "pricePerMillionAnswerTokens": 10}
    return {"name": "large", "endpoint": url, "model": "wise-70b", **prices, **more}


def made(world: World, url: str, *, needed: bool = False, **more: Any) -> candidates.Candidate:
    gate = [{"metric": "ExactMatch", "over": "large"}] if needed else []
    spec = world(evaluation={"candidates": [named(url, **more)], "gates": gate})
    (one,) = candidates.of(spec, deciding=True)
    return one


def chat(question: str, answer: str, **more: Any) -> dataset.Example:
    turns = [("system", "short"), ("user", question), ("assistant", answer)]
    return dataset.Example(question, tuple(dataset.Message(*turn) for turn in turns), **more)


EXAMPLES = [chat("How are you?", "good"), chat("And now?", "bad"), dataset.Example("text", text="plain")]
SCRIPT = contenders.Script(job.Prompt(system="Be brief."), shots=(chat("Well?", "yes"),), inline=True)


def right_answers(spec: run.Run) -> dict[str, str]:
    rows = [
        json.loads(line)
        for line in pathlib.Path(spec.dataset.train[0].removeprefix("file://")).read_text().splitlines()
    ]
    return {row["messages"][-2]["content"]: row["messages"][-1]["content"] for row in rows}


def reported(spec: run.Run) -> results.Results:
    folder = pathlib.Path(spec.layout.evaluation("e1").removeprefix("file://"))
    return results.Results.model_validate_json((folder / "results.json").read_text())


# -- a contender by its name --


def test_a_candidates_name_is_a_contender_and_no_member_of_the_list() -> None:
    assert job.Contender("large") is LARGE
    assert LARGE.is_candidate
    assert not BASE.is_candidate
    assert LARGE not in list(job.Contender)
    value = status.MetricValue.model_validate_json('{"name": "ExactMatch", "contender": "large", "value": "1"}')
    assert value.contender is LARGE
    assert value.wire()["contender"] == "large"
    with pytest.raises(ValueError, match="Largest"):
        job.Contender("Largest")


def test_alternatives_are_ordered_from_cheap_to_costly_with_the_candidates_last() -> None:
    there = [TUNED, LARGE, FEW, BASE, job.Contender.SERVING]
    assert evaluation.alternatives(there) == [BASE, FEW, LARGE]
    assert evaluation.compared_with("BestBaseline", there) == [BASE, FEW]
    assert evaluation.compared_with("BestAlternative", there) == [BASE, FEW, LARGE]
    assert evaluation.compared_with("large", there) == [LARGE]


def share(hits: int) -> metrics.Columns:
    return {EXACT: evidence.mean([1.0] * hits + [0.0] * (100 - hits), share=True)}


def test_the_best_alternative_may_be_a_candidate_and_the_best_baseline_never_is() -> None:
    values = {TUNED: share(90), BASE: share(10), FEW: share(40), LARGE: share(88)}
    found = headline.decide([], values, {})
    assert (found.baseline, found.alternative) == (FEW, LARGE)
    best, alternative, by_name = gates.check(
        [job.Gate(metric=EXACT, over=over) for over in ("BestBaseline", "BestAlternative", LARGE)], values
    )
    assert best.passed
    assert not alternative.passed
    assert "large 0.8800" in alternative.observed
    assert alternative.requirement == "ExactMatch better than the best alternative"
    assert not by_name.passed
    rouge = {job.Metric.ROUGE_L: evidence.mean([0.1 * (n % 7) for n in range(100)])}
    gate = job.Gate(metric=job.Metric.ROUGE_L, over="BestAlternative")
    assert [one.relative for one in power.after(gate, {TUNED: rouge, LARGE: rouge})] == [True], (
        "its power is known, too"
    )


def test_a_candidate_gets_the_prompt_that_did_best_with_the_base_model() -> None:
    values = {BASE: share(10), FEW: share(60), job.Contender.RETRIEVED: share(60), job.Contender.MANY_SHOT: share(99)}
    assert candidates.best_prompt([], values) is FEW, "the cheapest of equals, and never thousands of tokens"
    assert candidates.best_prompt([], {}) is job.Contender.PROMPT


# -- what it is asked, and how its answers are scored --


def test_a_candidate_is_sent_the_prompt_as_chat_messages(large: tuple[Model, str], world: World) -> None:
    model, url = large
    one = made(world, url)
    one.prompt = FEW
    found = one.ask(SCRIPT, EXAMPLES, 30)
    first = next(body for body in questions(model) if body["messages"][-1]["content"] == "How are you?")
    assert first["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Well?"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "How are you?"},
    ], "with a system turn, whatever the base model's template has"
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("wise-70b", 0, 256)
    assert len(questions(model)) == 2, "plain text has no answer"
    assert metrics.measure(found.answers, job.Evaluation())[EXACT].value == 0.5
    assert (found.prompt_tokens, found.answer_tokens) == (400, 20)
    assert job.Metric.LOSS not in metrics.measure(found.answers, job.Evaluation())


def test_reasoning_before_the_answer_does_not_count(large: tuple[Model, str], world: World) -> None:
    model, url = large
    model.answers = lambda question: {"content": "<think>good or bad?</think>\n\nbad"}
    assert [one.text for one in made(world, url).ask(SCRIPT, EXAMPLES, 30).answers] == ["bad", "bad", None]


TOOLS = '[{"type": "function", "function": {"name": "refund", "parameters": {"type": "object"}}}]'


@pytest.mark.parametrize(
    "calls, match",
    [
        ([{"id": "a", "type": "function", "function": {"name": "refund", "arguments": '{"item": 12}'}}], 1.0),
        ([{"id": "a", "type": "function", "function": {"name": "refund", "arguments": "{"}}], 0.0),
        (None, 0.0),
    ],
)
def test_a_candidate_calls_tools_as_the_api_has_it(
    large: tuple[Model, str], world: World, calls: Any, match: float
) -> None:
    model, url = large
    model.answers = lambda question: {"content": None, "tool_calls": calls} if question != "Well?" else {"content": ""}
    call = toolcalls.Call("refund", '{"item": 12}', "call00000")
    turns = (dataset.Message("user", "Refund 12"), dataset.Message("assistant", "", calls=(call,)))
    found = made(world, url).ask(contenders.Script(job.Prompt()), [dataset.Example("f:1", turns, tools=TOOLS)], 30)
    assert questions(model)[0]["tools"] == json.loads(TOOLS)
    assert metrics.measure(found.answers, job.Evaluation())[job.Metric.TOOL_CALL_MATCH].value == match


@pytest.mark.parametrize(
    ("baselines", "refuses", "sent"),
    [(["Structured"], False, True), (["Structured"], True, False), (["Base"], False, False)],
)
def test_a_candidate_is_held_to_the_schema_as_the_base_model_is(
    large: tuple[Model, str], world: World, baselines: list[str], refuses: bool, sent: bool
) -> None:
    model, url = large
    if refuses:
        model.refuses = lambda body: (400, "response_format is not supported") if "response_format" in body else None
    schema = {"type": "object", "required": ["total"]}
    rules = {"candidates": [named(url)], "outputSchema": schema, "baselines": baselines}
    (one,) = candidates.of(world(evaluation=rules), deciding=True)
    found = one.ask(SCRIPT, EXAMPLES, 30)
    formats = [body.get("response_format") for body in questions(model)]
    assert formats == (
        [{"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}] * 2 if sent else [None] * 2
    )
    assert one.described(found).structured is sent


def test_parameters_that_an_endpoint_does_not_know_are_left_out(large: tuple[Model, str], world: World) -> None:
    model, url = large
    unknown = {
        "max_tokens": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
        "temperature": "Unsupported value: 'temperature' must be 1 with this model.",
        "seed": "Unknown parameter: 'seed'.",
    }
    model.refuses = lambda body: next(((400, text) for name, text in unknown.items() if name in body), None)
    one = made(world, url)
    assert one.problem is None
    one.ask(SCRIPT, EXAMPLES[:1], 30)
    assert set(model.asked[-1]) == {"model", "messages", "max_completion_tokens"}


# -- failures --


def test_the_key_is_sent_to_its_endpoint_alone_and_never_quoted(
    large: tuple[Model, str], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, url = large
    model.key = KEY
    monkeypatch.setenv("CANDIDATE_API_KEY_LARGE", f"{KEY}\n")
    one = made(world, url, apiKeySecret="s")
    assert one.problem is None
    assert KEY not in secrets.redact(f"it says {KEY}")
    model.key = "another"
    problem = made(world, url, apiKeySecret="s").problem
    assert problem is not None
    assert "HTTP 401" in problem
    assert KEY not in problem


def test_a_candidate_that_does_not_answer_is_named_and_no_more_is_asked(large: tuple[Model, str], world: World) -> None:
    model, url = large
    model.refuses = lambda body: (404, "no such model")
    one = made(world, url)
    found = one.ask(SCRIPT, EXAMPLES, 30)
    assert len(model.asked) == 1
    assert metrics.measure(found.answers, job.Evaluation()) == {}
    described = one.described(None)
    assert described.answered == 0
    assert described.problem is not None
    assert "HTTP 404: no such model. Check endpoint, model and apiKeySecret" in described.problem


def test_a_candidate_that_a_gate_needs_fails_the_stage_by_its_reason(large: tuple[Model, str], world: World) -> None:
    _, url = large
    with pytest.raises(errors.Failure, match=r"large .* HTTP 404") as caught:
        made(world, f"{url}/elsewhere", needed=True)
    assert caught.value.reason is reasons.Reason.CANDIDATE_FAILED


def test_a_slow_candidate_is_scored_on_what_it_answered_in_time(large: tuple[Model, str], world: World) -> None:
    model, url = large
    one = made(world, url)
    model.slow = 0.3
    examples = [chat(f"How are you, {n}?", "good") for n in range(100)]
    found = one.ask(SCRIPT, examples, 1.0)
    column = metrics.measure(found.answers, job.Evaluation())[EXACT]
    assert 0 < column.examples < 100
    assert column.value == 1.0, "what it did not answer is not wrong"
    assert one.problem is not None
    assert f"{100 - column.examples} of 100 answers did not come within" in one.problem


def test_refused_questions_are_left_out_and_counted(large: tuple[Model, str], world: World) -> None:
    model, url = large
    model.refuses = lambda body: (400, "content policy") if "now" in body["messages"][-1]["content"] else None
    one = made(world, url)
    found = one.ask(SCRIPT, EXAMPLES, 30)
    assert [answer.text for answer in found.answers] == ["good", None, None]
    assert one.problem == "1 of 2 questions were refused"


# -- what it costs --


def asked(seconds: float) -> answers.Answers:
    return answers.Answers([], [[1, 2]], [[1, 2, 3]] * 10, seconds=2 * seconds, answering=seconds)


@pytest.mark.parametrize(
    "own, cost",
    [
        (None, 0.5),
        ({"gpus": 1, "gpuType": "l4"}, 0.5),
        ({"gpus": 2, "gpuType": "l4"}, 1.0),
        ({"gpus": 1, "gpuType": "t4"}, None),
        ({"gpus": 0}, None),
    ],
    ids=["the training's one", "one of the same type", "two of them", "another type", "none"],
)
def test_requests_cost_what_the_gpus_cost_that_answered_them(world: World, own: Any, cost: float | None) -> None:
    rules = {"gates": [], **({"resources": own} if own else {})}
    spec = world(gpus=1, gpuType="l4", pricePerGpuHour=1.8, evaluation=rules)
    found = prices.price(spec, TUNED, asked(10.0))
    assert found == (None if cost is None else pytest.approx(cost))


def test_how_many_of_the_trainings_gpus_answered_is_not_guessed(world: World) -> None:
    spec = world(gpus=4, gpuType="l4", pricePerGpuHour=1.8)
    assert prices.price(spec, TUNED, asked(10.0)) is None


def test_a_training_is_paid_back_by_what_each_request_saves() -> None:
    assert prices.paid_back(3.0, 0.5, 2.0) == 2000
    assert prices.paid_back(3.0, 2.0, 2.0) is None
    assert prices.paid_back(None, 0.5, 2.0) is None
    assert prices.paid_back(3.0, 0.5, None) is None


# -- the stages --


def test_values_of_candidates_leave_the_status_room_for_those_of_the_gates(world: World) -> None:
    spec = world(evaluation={"gates": [{"metric": "RougeL", "minimum": 0.5}]})
    measured = [
        results.Value(metric=metric, contender=who, value=0.5, low=0.4, high=0.6, examples=9)
        for metric in (EXACT, job.Metric.ROUGE_L)
        for who in (BASE, LARGE, TUNED)
    ]
    found = scoreboard.summary(spec, measured, [], 9, None, scoreboard.Findings(values={TUNED: {}}))
    assert [(one.name, one.contender) for one in found.metrics] == [
        *((job.Metric.ROUGE_L, who) for who in (BASE, TUNED, LARGE)),
        *((EXACT, who) for who in (BASE, TUNED, LARGE)),
    ]


def test_another_model_that_passes_the_bounds_is_found_before_training(large: tuple[Model, str], world: World) -> None:
    model, url = large
    spec = world(
        tiny.examples(120),
        intent={"advice": "Enforce"},
        dataset={"validation": {"fraction": 0.3}, "test": {"fraction": 0.2}},
        evaluation={
            "baselines": ["Base"],
            "candidates": [named(url)],
            "gates": [{"metric": "ExactMatch", "minimum": 0.8}],
            "generation": {"maxNewTokens": 24},
        },
    )
    known = right_answers(spec)
    model.answers = lambda question: {"content": known.get(question, "")}
    preflight.preflight(spec)
    found = baseline.baseline(spec, 1)
    assert found.baseline is not None
    assert found.baseline.sufficient is LARGE
    assert found.reason is reasons.Reason.PROMPT_ALREADY_SUFFICIENT
    assert "the candidate large meets the gates' bounds" in found.baseline.message


@pytest.mark.slow
def test_a_whole_evaluation_with_a_large_model_and_one_that_is_not_there(
    large: tuple[Model, str], world: World
) -> None:
    model, url = large
    spec = world(
        tiny.examples(120),
        dataset={"test": {"fraction": 0.2}},
        training={"maxSteps": 60},
        evaluation={
            "generation": {"maxNewTokens": 24},
            "baselines": ["Base", "FewShot"],
            "candidates": [named(url), {"name": "gone", "endpoint": "http://127.0.0.1:9/v1", "model": "m"}],
            "gates": [{"metric": "ExactMatch", "over": "Base"}],
        },
    )
    known = right_answers(spec)
    model.answers = lambda question: {"content": known.get(question, "")}
    preflight.preflight(spec)
    train.train(spec, 1, 1.0)
    outcome = evaluate.evaluate(spec, None, None, 1)
    assert outcome.evaluation is not None
    assert outcome.evaluation.passed
    assert any("gone" in text and "no answer" in text for text in outcome.evaluation.unanswered)
    assert "gone" in outcome.message
    found = reported(spec)
    assert found.best_alternative is LARGE
    assert found.best_baseline in (BASE, FEW)
    first, second = found.candidates
    assert (first.name, first.answered, first.problem) == ("large", found.evaluation.examples, None)
    assert (second.name, second.answered, second.prompt) == ("gone", 0, None)
    value = next(one for one in found.values if one.metric is EXACT and one.contender is LARGE)
    assert (value.value, value.examples) == (1.0, found.evaluation.examples)
    spent = next(one for one in found.tokens if one.contender is LARGE)
    assert (spent.prompt, spent.answer, spent.cost) == (400, 20, pytest.approx(1.2))
    assert any(one.over is LARGE and one.metric is EXACT for one in found.comparisons)
    page = pathlib.Path(spec.layout.report.removeprefix("file://")).read_text()
    assert "wise-70b at 127.0.0.1" in page
    assert "1.20 USD" in page
