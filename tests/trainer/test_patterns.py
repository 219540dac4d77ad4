"""A schema's regular expressions are searched in bounded time, and mean what JSON Schema says."""

import json
import time
from typing import Any

import jsonschema
import pytest

from finetune_api import job
from finetune_trainer.checks import calls
from finetune_trainer.data import dataset, patterns, values
from finetune_trainer.evaluation import metrics

SLOW = r"^(a|aa)+$"
TEXT = "a" * 60 + "!"


@pytest.fixture(autouse=True)
def forgotten() -> None:
    patterns._slow.clear()


def nested(keyword: str) -> tuple[dict[str, Any], Any]:
    """A schema with the slow pattern at a keyword, and a value that makes it slow."""
    if keyword == "pattern":
        return {"properties": {"code": {"pattern": SLOW}}}, {"code": TEXT}
    rest = {"additionalProperties": False} if keyword == "additionalProperties" else {}
    return {"patternProperties": {SLOW: {"type": "string"}}} | rest, {TEXT: "x"}


@pytest.mark.parametrize("keyword", ["pattern", "patternProperties", "additionalProperties"])
def test_a_pattern_that_explodes_is_given_up_and_named(keyword: str) -> None:
    schema, value = nested(keyword)
    fits, begun = values.fits(schema), time.monotonic()
    for _ in range(50):
        with pytest.raises(patterns.TooSlow, match="repetition"):
            fits(value)
    assert time.monotonic() - begun < 10
    assert SLOW in repr(values.misfit(schema, value)) or "repetition" in values.misfit(schema, value)


def test_answers_on_which_a_pattern_explodes_do_not_fit_and_hold_nothing_up() -> None:
    score = metrics.validator(nested("pattern")[0])
    begun = time.monotonic()
    assert [score(json.dumps({"code": TEXT})) for _ in range(50)] == [0.0] * 50
    assert score('{"other": 1}') == 1.0
    assert time.monotonic() - begun < 10


def test_calls_on_which_a_tools_pattern_explodes_are_a_finding() -> None:
    schema, value = nested("pattern")
    tools = [{"type": "function", "function": {"name": "find", "parameters": schema}}]
    call = {"type": "function", "function": {"name": "find", "arguments": value}}
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert "repetition" in calls.Arguments().words(example({"messages": turns, "tools": tools}))


def test_a_tool_whose_schema_cannot_be_used_is_a_finding_where_it_is_called() -> None:
    tools = [{"type": "function", "function": {"name": "find", "parameters": {"$ref": "#"}}}]
    call = {"type": "function", "function": {"name": "find", "arguments": {}}}
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert "refers to itself" in calls.Arguments().words(example({"messages": turns, "tools": tools}))


def example(row: dict[str, Any]) -> dataset.Example:
    return dataset.example(row, job.Format.CHAT, "a.jsonl:1")


@pytest.mark.parametrize(
    "schema",
    [
        {"pattern": "(a"},
        {"patternProperties": {"[": {}}},
        {"properties": {"x": {"items": {"pattern": "*"}}}},
        {"anyOf": [{"pattern": "a{2,1}"}]},
    ],
)
def test_a_pattern_that_is_no_regular_expression_is_named(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="regex"):
        values.fits(schema)


def test_a_pattern_among_data_is_not_a_pattern() -> None:
    values.fits(
        {"enum": [{"pattern": "("}], "properties": {"pattern": {"type": "string"}}, "default": {"pattern": "("}}
    )


CASES: list[tuple[dict[str, Any], Any]] = [
    ({"pattern": "^a+$"}, "aaa"),
    ({"pattern": "^a+$"}, "aab"),
    ({"pattern": "b"}, "abc"),
    ({"pattern": "b"}, 5),
    ({"patternProperties": {"^x": {"type": "integer"}}}, {"x1": 1, "y": "z"}),
    ({"patternProperties": {"^x": {"type": "integer"}}}, {"x1": "1"}),
    ({"properties": {"a": {}}, "patternProperties": {"^x": {}}, "additionalProperties": False}, {"a": 1, "x": 2}),
    ({"properties": {"a": {}}, "patternProperties": {"^x": {}}, "additionalProperties": False}, {"b": 1}),
    ({"patternProperties": {"^x": {}}, "additionalProperties": {"type": "integer"}}, {"x": "s", "b": 1}),
    ({"patternProperties": {"^x": {}}, "additionalProperties": {"type": "integer"}}, {"x": "s", "b": "s"}),
    ({"additionalProperties": False}, {}),
    ({"additionalProperties": False}, {"a": 1}),
    ({"additionalProperties": False}, [1]),
    ({"patternProperties": {"^x": {}}}, [1]),
]


@pytest.mark.parametrize("schema, value", CASES)
def test_the_keywords_decide_as_the_library_does(schema: dict[str, Any], value: Any) -> None:
    assert values.fits(schema)(value) is jsonschema.Draft202012Validator(schema).is_valid(value)
