"""Structured: answers that are held to a JSON schema, whose prompt they get, and when valid JSON alone is no reason to train."""

import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.trainer import tiny

from finetune_api import job, reasons, results, run
from finetune_trainer import report
from finetune_trainer.data import dataset, values
from finetune_trainer.engine import grammar, model
from finetune_trainer.evaluation import (
    answers,
    contenders,
    divergence,
    doubt,
    engines,
    evidence,
    in_process,
    selection,
    structured,
)
from finetune_trainer.stages import baseline, evaluate, preflight, train

World = Callable[..., run.Run]
BASE, FEW, MANY = job.Contender.BASE, job.Contender.FEW_SHOT, job.Contender.MANY_SHOT
STRUCTURED, TUNED = job.Contender.STRUCTURED, job.Contender.TUNED
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "intent": {"enum": ["refund", "praise"]},
        "items": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 99}, "maxItems": 2},
        "note": {"type": "string", "maxLength": 3},
    },
    "required": ["intent", "items", "note"],
    "additionalProperties": False,
}


@pytest.fixture
def runner(base: pathlib.Path, world: World) -> answers.ModelRunner:
    spec = world(training={"precision": "Float32"}, evaluation={"outputSchema": SCHEMA})
    plain = model.load(base, job.Precision.FLOAT32, torch.device("cpu"))
    encoder = answers.tokens.load(base, spec.training)
    ours = in_process.InProcess(plain, model.head(plain), torch.device("cpu"), spec, encoder.tokenizer)
    return answers.ModelRunner(ours, encoder, contenders.Script(job.Prompt()), spec.evaluation)


def rows(count: int) -> list[dataset.Example]:
    return [dataset.from_record({"source": str(n), **row}) for n, row in enumerate(tiny.examples(count))]


def test_every_answer_of_a_random_model_conforms_to_the_schema(runner: answers.ModelRunner) -> None:
    """Greedy and sampled; without the schema none does."""
    fits, decode = values.fits(SCHEMA), runner.encoder.tokenizer.decode
    prompts = [runner.encoder.prompt(one) for one in rows(6)]
    ending = runner.ending(STRUCTURED)
    found = runner.engine.greedy(BASE, prompts, ending)
    rules = job.Consistency(samples=4, temperature=1.5)
    drawn = [ids for several in runner.engine.sample(BASE, prompts, ending, rules, 1) for ids in several]
    for ids in [*found, *drawn]:
        assert ids[-1] in runner.encoder.stops
        assert fits(values.parsed(decode(ids, skip_special_tokens=True)))
    assert len({tuple(ids) for ids in drawn}) > 12, "the schema leaves the model a choice"
    free = runner.engine.greedy(BASE, prompts, runner.ending(BASE))
    for ids in free:
        with pytest.raises(ValueError):
            values.parsed(decode(ids, skip_special_tokens=True))


def test_transformers_answers_are_held_to_the_schema_too(
    runner: answers.ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [runner.encoder.prompt(one) for one in rows(3)]
    ours = runner.engine.greedy(BASE, prompts, runner.ending(STRUCTURED))
    monkeypatch.setattr(in_process.decoding, "of", lambda *_: None)
    assert runner.engine.greedy(BASE, prompts, runner.ending(STRUCTURED)) == ours


def test_an_answer_that_is_cut_is_the_beginning_of_one_that_conforms(runner: answers.ModelRunner) -> None:
    prompts = [runner.encoder.prompt(one) for one in rows(2)]
    whole = runner.engine.greedy(BASE, prompts, runner.ending(STRUCTURED))
    ending = engines.Ending(runner.encoder.stops, 5, schema=json.dumps(SCHEMA))
    assert runner.engine.greedy(BASE, prompts, ending) == [ids[:5] for ids in whole]
    runner.rules = runner.rules.model_copy(update={"generation": job.Generation(max_new_tokens=5)})
    measured = answers.metrics.measure(answers.ask(runner, STRUCTURED, rows(2)).answers, runner.rules)
    assert measured[job.Metric.JSON_VALID].value == measured[job.Metric.STOPPED].value == 0.0


def allowed(runner: answers.ModelRunner, text: str, schema: dict[str, Any]) -> bool:
    """Whether an answer may be this text, token by token, and then stop."""
    rules = grammar.Grammar(json.dumps(schema), runner.encoder.tokenizer, runner.encoder.stops, 384)
    matcher = rules.matcher()
    for token in [*runner.encoder.tokenizer.encode(text, add_special_tokens=False), min(runner.encoder.stops)]:
        if rules.masked(torch.zeros(1, 384), [matcher])[0, token] < 0:
            return False
        matcher.consume_token(token)
    return True


def test_json_may_be_written_on_one_line_or_on_several_but_not_with_white_space_without_end(
    runner: answers.ModelRunner,
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}}, "required": ["a"]}
    value = {"a": 12, "b": True}
    assert allowed(runner, json.dumps(value), schema)
    assert allowed(runner, json.dumps(value, separators=(",", ":")), schema)
    assert allowed(runner, json.dumps(value, indent=4), schema)
    assert not allowed(runner, '{\n\n\n"a":12}', schema)
    assert not allowed(runner, '{"b":true}', schema), "a required field is missing"
    assert not allowed(runner, '{"a":12', schema), "it may not stop yet"


@pytest.mark.parametrize(
    "schema, reason",
    [
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    ],
)
def test_a_schema_that_no_answer_can_be_held_to_is_named(
    runner: answers.ModelRunner, schema: dict[str, Any], reason: str
) -> None:
    runner.rules = runner.rules.model_copy(update={"output_schema": schema})
    left_out: list[str] = []
    assert not answers.can_answer(runner, STRUCTURED, rows(2), left_out)
    assert answers.can_answer(runner, BASE, rows(2), left_out)
    assert len(left_out) == 1
    assert left_out[0].startswith("Structured: answers cannot be held to evaluation.outputSchema: ")
    assert reason in left_out[0]


def test_examples_with_tools_are_not_held_to_the_schema(runner: answers.ModelRunner) -> None:
    calling = [dataset.example(row, job.Format.CHAT, str(n)) for n, row in enumerate(tiny.calling(2))]
    left_out: list[str] = []
    assert not answers.can_answer(runner, STRUCTURED, [*rows(2), *calling], left_out)
    assert "calls no tools" in left_out[0]


def share(hits: int) -> evidence.Column:
    return evidence.mean([1.0] * hits + [0.0] * (100 - hits), share=True)


def test_the_prompt_is_the_best_by_another_metric_than_those_of_the_form() -> None:
    json_valid, exact = job.Metric.JSON_VALID, job.Metric.EXACT_MATCH
    measured = {BASE: {json_valid: share(99), exact: share(11)}, FEW: {json_valid: share(1), exact: share(40)}}
    form = [job.Gate(metric=json_valid, minimum=0.9)]
    assert structured.best_prompt(form, measured) is FEW
    losses = {BASE: {job.Metric.LOSS: evidence.mean([3.0, 3.1])}, FEW: {job.Metric.LOSS: evidence.mean([1.0, 1.1])}}
    assert structured.best_prompt(form, losses) is FEW, (
        "no answer is right: the likelihood of the expected ones decides"
    )
    assert structured.best_prompt([], {BASE: {exact: share(50)}, FEW: {exact: share(50)}}) is BASE, "the cheapest"


def test_each_prompt_that_may_be_structured_decodings_gets_its_share_of_the_doubt() -> None:
    retrieved, large, optimized = job.Contender.RETRIEVED, job.Contender("large"), job.Contender.OPTIMIZED
    assert doubt.among([BASE, FEW]).ways == {BASE: 1, FEW: 1}
    assert doubt.among([BASE, retrieved]).ways == {BASE: 1, retrieved: 3}, "three numbers of retrieved examples"
    found = doubt.among([BASE, retrieved, optimized, MANY, STRUCTURED, large], 9).ways
    assert (found[STRUCTURED], found[large]) == (1 + 3 + 9 + 1, 1 + 3 + 9), "no candidate gets the prompt of ManyShot"
    assert doubt.among([STRUCTURED]).ways == {STRUCTURED: 1}


def test_a_short_prompt_takes_the_place_of_one_that_there_is_no_time_for(runner: answers.ModelRunner) -> None:
    exact = job.Metric.EXACT_MATCH
    measured = {which: {exact: share(hits)} for which, hits in ((BASE, 20), (FEW, 40), (MANY, 60))}
    slow, limits = selection.Pace(answer=10.0, rate=100.0), selection.Budget(30.0)
    assert structured.choose(runner, [], measured, rows(9), limits, slow) is FEW
    assert runner.script.structured is FEW
    assert limits.left_out[0].startswith("Structured with the prompt of ManyShot: it would take about")
    assert structured.choose(runner, [], measured, rows(9), selection.Budget(3000.0), slow) is MANY
    assert structured.is_limited(runner, STRUCTURED)


def test_valid_json_alone_is_no_reason_to_train(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the baseline before training to the results: the same job would have trained without Structured."""
    for kind in divergence.PROMPTS:
        monkeypatch.setitem(divergence.PROMPTS, kind, 2)
    gates = [
        {"metric": "JsonValid", "minimum": 0.9, "confidence": 0.5},
        {"metric": "JsonValid", "over": "BestBaseline", "confidence": 0.5},
    ]
    flag = {"type": "object", "properties": {"reply": {"type": "boolean"}}, "required": ["reply"]}
    shown = {"baselines": ["Base", "FewShot", "Structured"], "outputSchema": flag | {"additionalProperties": False}}
    spec = world(
        tiny.examples(120),
        dataset={"validation": {"fraction": 0.3}, "test": {"fraction": 0.1}},
        training={"maxSteps": 2},
        intent={"advice": "Enforce"},
        evaluation={"generation": {"maxNewTokens": 16}, "gates": gates, "forgetting": {"maximumQuestions": 8}} | shown,
    )
    preflight.preflight(spec)
    without = spec.model_copy(
        update={"evaluation_hash": "e2", "evaluation": spec.evaluation.model_copy(update={"baselines": [BASE, FEW]})}
    )
    found = baseline.baseline(without, 1)
    assert (found.reason, found.baseline and found.baseline.sufficient) == (None, None)
    found = baseline.baseline(spec, 1)
    assert found.baseline is not None
    assert found.baseline.sufficient is STRUCTURED
    assert found.reason is reasons.Reason.PROMPT_ALREADY_SUFFICIENT
    assert found.message.startswith("structured decoding is enough")
    assert "asked like FewShot, on 32 validation examples" in found.message
    train.train(spec, 1, 1.0)
    evaluate.evaluate(spec, None, None, 1)
    path = pathlib.Path(spec.layout.evaluation("e1").removeprefix("file://")) / "results.json"
    scores = results.Results.model_validate_json(path.read_text())
    valid = {one.contender: one.value for one in scores.values if one.metric is job.Metric.JSON_VALID}
    assert valid[STRUCTURED] == 1.0
    assert scores.structured in (BASE, FEW)
    assert scores.best_baseline is STRUCTURED
    assert not scores.evaluation.passed
    assert "Structured 1.0000" in scores.evaluation.gates[1].observed
    page = report.page(scores)
    assert "structured decoding passes the gates without any training" in page
    assert "the JSON schema in each request; the prompt of" in page


def test_what_requests_take_is_the_time_of_the_answers_without_that_of_the_losses(
    runner: answers.ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses_of, delay = answers.losses_of, 0.5

    def slow(*asked: Any) -> Any:
        time.sleep(delay)
        return losses_of(*asked)

    monkeypatch.setattr(answers, "losses_of", slow)
    found = answers.ask(runner, BASE, rows(2))
    assert 0 < found.answering <= found.seconds - delay
    twice = found.and_then(found)
    assert twice.answering == 2 * found.answering
