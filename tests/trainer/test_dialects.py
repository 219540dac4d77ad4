import json

import pytest

from finetune_trainer.data import dialects, toolcalls

WEATHER = '{"name": "weather", "arguments": {"city": "Zürich", "days": 2}}'


def call_list(reply: toolcalls.Reply) -> list[tuple[str, dict[str, object]]]:
    return [(call.name, json.loads(call.arguments)) for call in reply.calls]


ONE = [("weather", {"city": "Zürich", "days": 2})]
TWO = [*ONE, ("time", {})]


@pytest.mark.parametrize(
    "text, content, calls",
    [
        (f"<tool_call>\n{WEATHER}\n</tool_call>", "", ONE),
        (f"Let me see.\n<tool_call>{WEATHER}</tool_call>", "Let me see.", ONE),
        (f'<tool_call>{WEATHER}</tool_call>\n<tool_call>{{"name": "time", "arguments": {{}}}}</tool_call>', "", TWO),
        (f"<tool_call>\n{WEATHER}", "", ONE),
        (f"<tool_call>\n{WEATHER}\n</tool_", "", None),
        ("<tool_call>\n{'name': 'weather'}\n</tool_call>", "", None),
        ('<tool_call>{"name": "weather", "arguments": "{}"}</tool_call>', "", None),
        ('<tool_call>{"name": "weather"}</tool_call>', "", None),
        ('<tool_call>{"name": "weather", "arguments": {"days": NaN}}</tool_call>', "", None),
        (f"<tool_call>{WEATHER} and more</tool_call>", "", None),
        ("It is late.", "It is late.", []),
        (WEATHER, WEATHER, []),
    ],
)
def test_hermes_writes_objects_between_tags(text: str, content: str, calls: list[object] | None) -> None:
    reply = dialects.hermes(text)
    assert reply.content == content
    assert reply.broken == (calls is None)
    if calls is not None:
        assert call_list(reply) == calls


def test_a_tag_within_an_argument_is_part_of_it() -> None:
    text = '{"name": "say", "arguments": {"text": "write </tool_call> or <tool_call>, [TOOL_CALLS]"}}'
    for reply in (dialects.hermes(f"<tool_call>{text}</tool_call>"), dialects.mistral(f"[TOOL_CALLS] [{text}]")):
        assert call_list(reply) == [("say", {"text": "write </tool_call> or <tool_call>, [TOOL_CALLS]"})]
        assert not reply.broken


@pytest.mark.parametrize(
    "text, content, calls",
    [
        (f'[TOOL_CALLS] [{WEATHER[:-1]}, "id": "abcdefghi"}}]', "", ONE),
        (f'[TOOL_CALLS][{WEATHER}, {{"name": "time", "arguments": {{}}}}]', "", TWO),
        ('[TOOL_CALLS]weather{"city": "Zürich", "days": 2}', "", ONE),
        ('[TOOL_CALLS]weather[ARGS]{"city": "Zürich", "days": 2}[TOOL_CALLS]time[ARGS]{}', "", TWO),
        ('Wait. [TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{"city": "Zürich", "days": 2}', "Wait.", ONE),
        (f"[TOOL_CALLS] [{WEATHER}", "", None),
        ("[TOOL_CALLS] []", "", None),
        ("[TOOL_CALLS] nothing", "", None),
        ("It is late.", "It is late.", []),
    ],
)
def test_mistral_writes_a_list_or_names_after_its_token(text: str, content: str, calls: list[object] | None) -> None:
    reply = dialects.mistral(text)
    assert reply.content == content
    assert reply.broken == (calls is None)
    if calls is not None:
        assert call_list(reply) == calls


LLAMA = WEATHER.replace("arguments", "parameters")


@pytest.mark.parametrize(
    "text, content, calls",
    [
        (LLAMA, "", ONE),
        (f"<|python_tag|>{LLAMA}", "", ONE),
        (WEATHER, "", ONE),
        (f'{LLAMA}; {{"name": "time", "parameters": {{}}}}', "", TWO),
        (f"{LLAMA} and more", "", None),
        (LLAMA[:-3], "", None),
        ("<|python_tag|>print(1)", "", None),
        ('{"name": "Bob", "age": 3}', '{"name": "Bob", "age": 3}', []),
        ("It is late.", "It is late.", []),
    ],
)
def test_llama_writes_nothing_but_the_object(text: str, content: str, calls: list[object] | None) -> None:
    reply = dialects.llama3_json(text)
    assert reply.content == content
    assert reply.broken == (calls is None)
    if calls is not None:
        assert call_list(reply) == calls


def test_a_dialect_is_known_by_reading_it_back() -> None:
    call = toolcalls.Call("weather", '{"city": "Zürich", "days": 2}')
    assert dialects.of(f"<tool_call>\n{WEATHER}\n</tool_call>", call) == "hermes"
    assert dialects.of(f"[TOOL_CALLS] [{WEATHER}]", call) == "mistral"
    assert dialects.of(LLAMA, call) == "llama3_json"
    assert dialects.of("[weather(city='Zürich', days=2)]", call) is None


TOOLS = toolcalls.tools(
    [
        {"type": "function", "function": {"name": "weather", "parameters": {"required": ["city"]}}},
        {"type": "function", "function": {"name": "time"}},
    ]
)


@pytest.mark.parametrize(
    "made, expected, match, valid",
    [
        (["weather", "time"], ["time", "weather"], True, True),
        (["weather"], ["weather", "time"], False, True),
        (["weather", "weather"], ["weather"], False, True),
        ([], ["weather"], False, False),
        ([], [], True, None),
        (["time"], [], False, None),
        (["nobody"], ["weather"], False, False),
    ],
)
def test_calls_match_in_any_order_and_each_as_often_as_expected(
    made: list[str], expected: list[str], match: bool, valid: bool | None
) -> None:
    def calls(names: list[str]) -> tuple[toolcalls.Call, ...]:
        return tuple(toolcalls.Call(name, '{"city": 1}') for name in names)

    assert TOOLS is not None
    found = toolcalls.score(toolcalls.Reply("", calls(made)), calls(expected), TOOLS)
    assert (found.match, found.valid) == (match, valid)


@pytest.mark.parametrize(
    "one, other, same",
    [
        ('{"a": 1, "b": [2]}', '{"b": [2.0], "a": 1}', True),
        ('{"a": true}', '{"a": 1}', False),
        ('{"a": "1"}', '{"a": 1}', False),
        ('{"a": [1, 2]}', '{"a": [2, 1]}', False),
        ('{"a": null}', "{}", False),
    ],
)
def test_arguments_are_equal_as_json_is(one: str, other: str, same: bool) -> None:
    assert (toolcalls.Call("x", one).key == toolcalls.Call("x", other).key) is same


def test_a_broken_reply_is_neither_a_match_nor_valid() -> None:
    assert TOOLS is not None
    call = toolcalls.Call("time", "{}")
    assert toolcalls.score(toolcalls.Reply("", (call,), broken=True), [call], TOOLS) == toolcalls.CallScore(
        False, False
    )
    bad = toolcalls.Call("weather", "{}")
    assert toolcalls.score(toolcalls.Reply("", (bad,)), [bad], TOOLS) == toolcalls.CallScore(True, False)


def test_endless_nesting_is_no_call() -> None:
    deep = '{"a": ' * 3000 + "1" + "}" * 3000
    for nested in (deep, '{"a": ' * 700 + "1" + "}" * 700):
        text = f'{{"name": "weather", "arguments": {nested}}}'
        for reader, written in ((dialects.hermes, f"<tool_call>{text}</tool_call>"), (dialects.llama3_json, text)):
            reply = reader(written)
            assert reply.broken or reply.calls[0].key
    with pytest.raises(toolcalls.Unusable, match="nested too deeply"):
        toolcalls.calls([{"function": {"name": "x", "arguments": deep}}], "tool_calls")
