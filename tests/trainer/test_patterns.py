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
    if keyword == "unevaluatedProperties in a part":
        part = {"patternProperties": {SLOW: {"type": "string"}}}
        return {"$defs": {"part": part}, "allOf": [{"$ref": "#/$defs/part"}], "unevaluatedProperties": False}, {TEXT: 5}
    rest = {} if keyword == "patternProperties" else {keyword: False}
    return {"patternProperties": {SLOW: {"type": "string"}}} | rest, {TEXT: "x"}


@pytest.mark.parametrize(
    "keyword",
    [
        "pattern",
        "patternProperties",
        "additionalProperties",
        "unevaluatedProperties",
        "unevaluatedProperties in a part",
    ],
)
def test_a_pattern_that_explodes_is_given_up_and_named(keyword: str) -> None:
    schema, value = nested(keyword)
    fits, begun = values.fits(schema), time.monotonic()
    for _ in range(50):
        with pytest.raises(patterns.TooSlow, match="repetition"):
            fits(value)
    assert time.monotonic() - begun < 10
    assert SLOW in repr(values.misfit(schema, value)) or "repetition" in values.misfit(schema, value)


@pytest.mark.parametrize("part", [{"$ref": "#/$defs/part"}, {"patternProperties": {r"^(a+)+$": {}}}])
def test_keys_that_only_the_library_would_search_for_ages_are_searched_by_ours(part: dict[str, Any]) -> None:
    schema = {
        "$defs": {"part": {"patternProperties": {r"^(a+)+$": {}}}},
        "allOf": [part],
        "unevaluatedProperties": False,
    }
    fits, begun = values.fits(schema), time.monotonic()
    assert fits({"aaa": 1})
    assert not fits({TEXT: 1})
    assert time.monotonic() - begun < 5


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
    ({"patternProperties": {"^x": {}}, "unevaluatedProperties": False}, {"x": 1, "xy": 2}),
    ({"patternProperties": {"^x": {}}, "unevaluatedProperties": False}, {"x": 1, "y": 2}),
    ({"patternProperties": {"^x": {}, "y$": {"type": "string"}}, "unevaluatedProperties": False}, {"xy": 1}),
    ({"patternProperties": {"^x": {}, "y$": {"type": "string"}}, "unevaluatedProperties": False}, {"xy": "s", "\n": 1}),
    ({"allOf": [{"patternProperties": {"^x": {}}}], "unevaluatedProperties": {"type": "null"}}, {"x": 1, "y": None}),
    ({"allOf": [{"patternProperties": {"^x": {}}}], "unevaluatedProperties": {"type": "null"}}, {"x": 1, "y": 2}),
    (
        {
            "properties": {"patternProperties": {"enum": [{"patternProperties": {"(": 1}}]}},
            "unevaluatedProperties": False,
        },
        {"patternProperties": {"patternProperties": {"(": 1}}},
    ),
    (
        {"properties": {"a": {"patternProperties": {"^x": {}}, "unevaluatedProperties": False}}},
        {"a": {"x": 1, "(.*|": 2}},
    ),
]


@pytest.mark.parametrize("schema, value", CASES)
def test_the_keywords_decide_as_the_library_does(schema: dict[str, Any], value: Any) -> None:
    assert values.fits(schema)(value) is jsonschema.Draft202012Validator(schema).is_valid(value)


@pytest.mark.parametrize(
    "pattern", ["((a{1000}){1000}){1000}", "a{4294967294}", "(?:(?:[a)]{900}){900}){9}", r"(\({1000}){1000}"]
)
def test_a_pattern_that_takes_gigabytes_to_compile_is_not_compiled(pattern: str) -> None:
    fits, begun = values.fits({"pattern": pattern}), time.monotonic()
    with pytest.raises(patterns.TooSlow, match="parts, at most 100,000"):
        fits("aaa")
    assert time.monotonic() - begun < 1


@pytest.mark.parametrize(
    "pattern, parts",
    [
        ("a{1,9999}", 1),
        (r"^\d{4}-\d{2}$", 9),
        ("(?:ab){100}", 400),
        ("[)({9}]{7}", 7),
        ("(a{10}){10}b", 101),
        (")(", 1),
    ],
)
def test_the_size_of_a_pattern_is_that_of_its_least_match(pattern: str, parts: int) -> None:
    assert patterns._size(pattern) == parts
