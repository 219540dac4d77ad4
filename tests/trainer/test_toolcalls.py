"""Examples with tools: read and linked in `dataset`, rendered and encoded in `tokens`, asked and measured in `answers`."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from tests.trainer import families, masks, tiny

from finetune_api import job, reasons, run
from finetune_trainer.data import dataset, templates, tokens
from finetune_trainer.evaluation import answers, canary
from finetune_trainer.process import errors
from finetune_trainer.stages import evaluate, preflight, train

ASKED = {"role": "user", "content": "I want my money back for item 12."}
CALLED = {"role": "assistant", "content": None, "tool_calls": [tiny.call("refund", id="call_x", item=12)]}
RESULT = {"role": "tool", "tool_call_id": "call_x", "content": '{"done": true}'}
REPLY = {"role": "assistant", "content": "It is on its way."}


def row(*turns: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": list(turns), "tools": tiny.TOOLS} | fields


def read(value: Any) -> dataset.Example:
    return dataset.example(value, job.Format.CHAT, "x:1")


def changed(turn: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {key: value for key, value in (turn | fields).items() if value is not ...}


# --- Rows ---


def test_a_chat_with_calls_and_results_is_an_example() -> None:
    found = read(row(ASKED, CALLED, RESULT, REPLY))
    assert [turn.role for turn in found.messages] == ["user", "assistant", "tool", "assistant"]
    (call,) = found.messages[1].calls
    assert (call.name, json.loads(call.arguments), call.id) == ("refund", {"item": 12}, "call_x")
    assert found.messages[2].call == "call_x"
    assert read(row(ASKED, CALLED)).answer == '{"name": "refund", "arguments": {"item": 12}}'


@pytest.mark.parametrize("content", [None, "", ..., []])
def test_a_call_needs_no_content(content: Any) -> None:
    assert read(row(ASKED, changed(CALLED, content=content))).messages[-1].content == ""


def test_arguments_may_be_an_object_and_tools_may_be_text() -> None:
    opened = {"function": {"name": "refund", "arguments": {"item": 12}}, "id": "call_x"}
    same = read(
        {
            "messages": json.dumps([ASKED, {"role": "assistant", "tool_calls": [opened]}]),
            "tools": json.dumps(tiny.TOOLS),
        }
    )
    assert same == read(row(ASKED, CALLED))


def test_calls_and_results_without_ids_follow_one_another() -> None:
    two = [tiny.call("refund", item=1), tiny.call("thank")]
    results = [{"role": "tool", "content": "a", "name": "thank"}, {"role": "tool", "content": "b"}]
    found = read(row(ASKED, changed(CALLED, tool_calls=two), *results, REPLY))
    ids = [call.id for call in found.messages[1].calls]
    assert ids == ["call00000", "call00001"]
    assert [turn.call for turn in found.messages[2:4]] == [ids[1], ids[0]]


def test_tools_are_what_the_server_gives_to_the_template() -> None:
    """vLLM hands type and function on, of which name, description and parameters come first, null where absent."""
    found = read(row(ASKED, REPLY, tools=[{"function": {"strict": True, "name": "thank"}}]))
    assert found.tools is not None
    assert json.loads(found.tools) == [
        {"type": "function", "function": {"name": "thank", "description": None, "parameters": None, "strict": True}}
    ]
    assert list(json.loads(found.tools)[0]["function"]) == ["name", "description", "parameters", "strict"]
    assert read(row(ASKED, REPLY, tools=[])).tools is None


def called(**fields: Any) -> dict[str, Any]:
    return changed(CALLED, tool_calls=[CALLED["tool_calls"][0] | {"function": fields}])


@pytest.mark.parametrize(
    "value, words",
    [
        (row(ASKED, CALLED, tools=None), "messages[1] calls 'refund', but the row has no 'tools'"),
        (row(ASKED, called(name="gift")), "messages[1] calls 'gift', which is not one of the tools (refund, thank)"),
        (row(ASKED, called(name="refund", arguments='{"item": ')), "[0] calls 'refund' with arguments that are not JSON:"),
        (row(ASKED, called(name="refund", arguments='{"item": NaN}')), "arguments that are not JSON: NaN"),
        (row(ASKED, called(name="refund", arguments="[1]")), "arguments that are not a JSON object"),
        (row(ASKED, called(arguments="{}")), "messages[1].tool_calls[0] is not a call"),
        (row(ASKED, changed(CALLED, tool_calls={})  | {"tool_calls": "x"}), "must be a list of calls"),
        (row(ASKED, RESULT, REPLY), "turn 2 of the chat has the role tool, but there is no call before it"),
        (row(ASKED, REPLY, RESULT, REPLY), "turn 3 of the chat has the role tool, but there is no call before it"),
        (row(ASKED, CALLED, changed(RESULT, tool_call_id="y"), REPLY), "is a result with the tool_call_id 'y', which"),
        (row(ASKED, CALLED, changed(RESULT, tool_call_id=..., name="thank"), REPLY), "a result of 'thank', which matches no"),
        (row(ASKED, CALLED, RESULT, RESULT, REPLY), "messages[3] is a result with the tool_call_id 'call_x', which matches"),
        (
            row(ASKED, changed(CALLED, tool_calls=[tiny.call("thank", id="a"), tiny.call("thank", id="b")]),
                changed(RESULT, tool_call_id="b"), REPLY),
            "messages[3] comes before the result of 'thank'",
        ),
        (row(ASKED, changed(CALLED, tool_calls=CALLED["tool_calls"] * 2)), "two calls with the same id"),
        (row(changed(ASKED, tool_calls=CALLED["tool_calls"]), REPLY), "only the assistant may"),
        (row(ASKED, REPLY, tools=[{"title": "thank"}]), "tools[0] is not a function of OpenAI's API"),
        (row(ASKED, REPLY, tools=[tiny.tool("a"), tiny.tool("a")]), "2 functions of the name 'a'"),
        (row(ASKED, REPLY, tools="["), "'tools' is text that is not a JSON list"),
    ],
)  # fmt: skip
def test_inconsistent_tool_fields_are_a_finding(value: Any, words: str) -> None:
    with pytest.raises(dataset.Wrong) as caught:
        read(value)
    assert words in str(caught.value)
    assert caught.value.rule == dataset.TOOLS


@pytest.mark.parametrize(
    "turns, words",
    [
        ((ASKED, CALLED, ASKED, REPLY), "expected tool: a call is followed by its result"),
        ((ASKED, CALLED, RESULT, ASKED, REPLY), "expected tool or assistant: a call is followed by its result"),
        ((ASKED, CALLED, RESULT), "the last turn has the role tool"),
    ],
)
def test_results_stand_between_a_call_and_the_next_answer(turns: Any, words: str) -> None:
    with pytest.raises(dataset.Wrong) as caught:
        read(row(*turns))
    assert words in str(caught.value)
    assert caught.value.rule == dataset.ORDER


def test_pairs_with_tools_are_refused() -> None:
    for pair in (
        {"chosen": [ASKED, CALLED], "rejected": [ASKED, REPLY]},
        {"chosen": [ASKED, REPLY], "rejected": [ASKED, CALLED]},
    ):
        with pytest.raises(dataset.Wrong, match="tools are not supported in preference pairs"):
            dataset.example(pair, job.Format.PREFERENCE, "x:1")


def test_frozen_examples_with_tools_come_back_as_they_were(tmp_path: pathlib.Path) -> None:
    context = changed(CALLED, weight=0)
    originals = [
        read(row(ASKED, context, changed(RESULT, name="refund"), REPLY)),
        read(row(ASKED, REPLY)),
        read(row(ASKED, CALLED)),
    ]
    (tmp_path / "f").write_text("".join(one.line() for one in originals), encoding="utf-8")
    assert dataset.frozen(tmp_path / "f") == originals


def test_splits_frozen_before_there_were_tools_are_read(tmp_path: pathlib.Path) -> None:
    (tmp_path / "f").write_text(json.dumps({"source": "x:1", "messages": [ASKED, REPLY]}) + "\n")
    (found,) = dataset.frozen(tmp_path / "f")
    assert found == dataset.example({"messages": [ASKED, REPLY]}, job.Format.CHAT, "x:1")
    assert found.line() == json.dumps({"source": "x:1", "messages": [ASKED, REPLY]}) + "\n"


def test_the_key_of_a_prompt_sees_tools_and_calls_but_no_ids() -> None:
    plain = read(row(ASKED, REPLY, tools=None))
    assert plain.key() == dataset.digest([["user", ASKED["content"]]]), "as in splits of before"
    assert read(row(ASKED, REPLY)).key() not in (plain.key(), read(row(ASKED, REPLY, tools=tiny.TOOLS[:1])).key())
    one = read(row(ASKED, CALLED, RESULT, REPLY))
    renamed = changed(CALLED, tool_calls=[tiny.call("refund", id="other", item=12)])
    assert one.key() == read(row(ASKED, renamed, changed(RESULT, tool_call_id="other"), REPLY)).key()
    other = changed(CALLED, tool_calls=[tiny.call("refund", id="call_x", item=13)])
    assert one.key() != read(row(ASKED, other, RESULT, REPLY)).key()
    assert len(set(one.keys())) == 2


# --- Templates ---


def encoder(template: str) -> tokens.Encoder:
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = template
    return tokens.Encoder(tokenizer, frozenset({2}), 4096)


WANTED = {
    "tiny": '<tool_call>\n{"name": "refund", "arguments": {"item": 12}}\n</tool_call><|im_end|>',
    "Qwen 2.5": '<tool_call>\n{"name": "refund", "arguments": {"item": 12}}\n</tool_call><|im_end|>',
    "Llama 3.1": '{"name": "refund", "parameters": {"item": 12}}<|im_end|>',
    "Mistral": '[TOOL_CALLS] [{"name": "refund", "arguments": {"item": 12}, "id": "call00000"}]<|im_end|>',
}
DIALECTS = {"tiny": "hermes", "Qwen 2.5": "hermes", "Llama 3.1": "llama3_json", "Mistral": "mistral"}


@pytest.mark.parametrize("family", list(WANTED))
def test_the_calls_are_learned_from_where_the_server_lets_the_model_begin(family: str) -> None:
    made = encoder(families.TOOL_TEMPLATES[family])
    example = read(row(ASKED, CALLED, RESULT, REPLY))
    first, last = masks.learned(made, example)
    assert first.strip() == WANTED[family]
    assert last.strip() == "It is on its way.<|im_end|>"
    prompt, ids = made.prompt(example), made.encode(example).ids
    assert ids[: len(prompt)] == prompt
    assert "refund" in made.tokenizer.decode(made.prompt(read(row(ASKED, REPLY)))), "the tools are in the prompt"
    assert made.batch([example]) == [(made.encode(example),)]
    assert made.tool_support == templates.ToolSupport(None, DIALECTS[family])


def test_a_template_that_takes_one_call_at_a_time_says_so() -> None:
    two = changed(CALLED, tool_calls=[tiny.call("thank"), tiny.call("refund", item=1)])
    with pytest.raises(dataset.Wrong, match="only one call"):
        encoder(families.TOOL_TEMPLATES["Llama 3.1"]).encode(read(row(ASKED, two)))


def test_tools_before_the_last_question_make_earlier_answers_unlearnable() -> None:
    """Mistral's template moves the tools to the last turn of the user."""
    made = encoder(families.TOOL_TEMPLATES["Mistral"])
    chat = read(row(changed(ASKED, content="Hello!"), REPLY, ASKED, CALLED))
    with pytest.raises(dataset.Wrong, match="LastAssistant"):
        made.encode(chat)
    last = dataclasses.replace(made, loss_on=job.LossOn.LAST_ASSISTANT)
    assert [text.strip() for text in masks.learned(last, chat)] == [WANTED["Mistral"]]


def test_short_ids_stay_as_they_are() -> None:
    made = encoder(families.TOOL_TEMPLATES["Mistral"])
    call = tiny.call("refund", id="abcDEF123", item=12)
    found = masks.learned(
        made, read(row(ASKED, changed(CALLED, tool_calls=[call]), changed(RESULT, tool_call_id="abcDEF123"), REPLY))
    )
    assert '"id": "abcDEF123"' in found[0]


@pytest.mark.parametrize(
    "template, what",
    [
        (tiny.CHAT_TEMPLATE, "tools"),
        ("{{ tools | tojson }}" + tiny.CHAT_TEMPLATE, "tool calls"),
        (
            tiny.TOOL_TEMPLATE.replace(
                "{{ message['content'] }}", "{{ message['content'] if message['role'] != 'tool' }}"
            ),
            "tool results",
        ),
    ],
)
def test_a_template_that_leaves_tools_out_is_refused_and_says_what_to_do(template: str, what: str) -> None:
    made = encoder(template)
    with pytest.raises(dataset.Wrong, match=f"does not render {what}; choose a base model"):
        made.encode(read(row(ASKED, CALLED)))
    assert made.encode(read(row(ASKED, REPLY, tools=None))).trainable


def test_a_base_model_without_a_template_has_no_tools() -> None:
    with pytest.raises(dataset.Wrong, match="no chat template"):
        encoder("").encode(read(row(ASKED, REPLY)))


# --- Answers ---


@pytest.mark.parametrize("family", list(WANTED))
def test_an_answer_is_read_in_the_dialect_of_the_model(family: str) -> None:
    made = encoder(families.TOOL_TEMPLATES[family])
    example = read(row(ASKED, CALLED))
    ids = made.tokenizer(WANTED[family])["input_ids"]
    text, judged = answers.decode_answer(made, example, ids)
    assert text == example.answer
    assert judged is not None
    assert judged.match
    assert judged.valid
    other = read(row(ASKED, changed(CALLED, tool_calls=[tiny.call("refund", item=13)])))
    _, judged = answers.decode_answer(made, other, ids)
    assert judged is not None
    assert not judged.match
    assert judged.valid


def test_a_special_token_that_marks_calls_is_not_lost() -> None:
    made = encoder(families.TOOL_TEMPLATES["Mistral"])
    made.tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]"]})
    ids = made.tokenizer(WANTED["Mistral"])["input_ids"]
    assert "[TOOL_CALLS]" not in made.tokenizer.decode(ids, skip_special_tokens=True)
    _, judged = answers.decode_answer(made, read(row(ASKED, CALLED)), ids)
    assert judged is not None
    assert judged.match


def test_words_are_no_call_and_cut_calls_are_broken() -> None:
    made = encoder(tiny.TOOL_TEMPLATE)
    text, judged = answers.decode_answer(
        made, read(row(ASKED, REPLY)), made.tokenizer("It is on its way.<|im_end|>")["input_ids"]
    )
    assert text == "It is on its way."
    assert judged is not None
    assert judged.match
    assert judged.valid is None
    ids = made.tokenizer('<tool_call>{"name": "ref')["input_ids"]
    text, judged = answers.decode_answer(made, read(row(ASKED, CALLED)), ids)
    assert text == '<tool_call>{"name": "ref'
    assert judged is not None
    assert not judged.match
    assert judged.valid is False
    assert answers.decode_answer(made, read(row(ASKED, REPLY, tools=None)), ids)[1] is None


def test_a_request_is_asked_with_its_tools() -> None:
    asked = canary.document([], read(row(ASKED, CALLED, RESULT, REPLY)), "tuned", "base", 9)["request"]
    assert [turn["role"] for turn in asked["messages"]] == ["user", "assistant", "tool"]
    assert asked["messages"][1]["tool_calls"] == [CALLED["tool_calls"][0]]
    assert asked["messages"][2] == RESULT
    assert asked["tools"] == tiny.TOOLS


# --- The whole way ---

World = Callable[..., run.Run]


@pytest.fixture
def calling_base(tmp_path: pathlib.Path) -> str:
    tiny.make_tiny_model(tmp_path / "calling", template=tiny.TOOL_TEMPLATE)
    return f"file://{tmp_path}/calling"


@pytest.mark.slow
def test_a_model_that_learned_its_calls_makes_them(world: World, calling_base: str, tmp_path: pathlib.Path) -> None:
    spec = world(
        tiny.calling(60),
        baseModel={"name": "tiny-base", "source": calling_base},
        training={"maxSteps": 60},
        evaluation={
            "generation": {"maxNewTokens": 96},
            "gates": [{"metric": "ToolCallMatch", "minimum": 0.9, "confidence": 0.5}],
        },
    )
    result = preflight.preflight(spec)
    assert result.preflight is not None
    assert [line for line in result.preflight.findings if "tool" in line] == []
    train.train(spec, 1, 1.0)
    found = evaluate.evaluate(spec, None, None, 1).evaluation
    assert found is not None
    assert found.passed, found.gates
    folder = pathlib.Path(spec.layout.evaluation("e1").removeprefix("file://"))
    values = {
        (one["metric"], one["contender"]): one for one in json.loads((folder / "results.json").read_text())["values"]
    }
    assert values["ToolCallMatch", "Tuned"]["value"] == values["ToolCallValid", "Tuned"]["value"] == 1.0
    assert values["ToolCallMatch", "Base"]["value"] == 0.0
    assert all(contender != "FewShot" for _, contender in values), "it would call without a result"
    sample = json.loads((folder / "samples.jsonl").read_text().splitlines()[0])
    assert sample["answers"]["Tuned"] == sample["expected"]
    assert sample["right"] == {"Base": False, "Tuned": True}
    assert sample["expected"].startswith('{"name": ')
    request = json.loads((folder / "canary.json").read_text())["request"]
    assert request["tools"] == tiny.TOOLS


def test_findings_name_the_line_and_drop_leaves_it_out(world: World, calling_base: str) -> None:
    rows = tiny.calling(40)
    rows[6]["messages"][1]["tool_calls"] = [tiny.call("gift")]
    rows[8]["messages"][1]["tool_calls"] = [tiny.call("refund", item="twelve")]
    base = {"name": "tiny-base", "source": calling_base}
    with pytest.raises(errors.Failure) as caught:
        preflight.preflight(world(rows, baseModel=base))
    assert caught.value.reason is reasons.Reason.DATASET_INVALID
    assert "toolCalls: 1 row is not an example: train.jsonl:7: messages[1] calls 'gift', which is not one of" in str(
        caught.value
    )
    result = preflight.preflight(world(rows, baseModel=base, dataset={"checks": {"toolCalls": "Drop"}}))
    assert result.preflight is not None
    (finding,) = (line for line in result.preflight.findings if line.startswith("toolArguments"))
    assert "1 of 39 examples call a tool with arguments that do not fit its parameters" in finding
    assert "train.jsonl:9 (calls 'refund' with arguments that do not fit its parameters)" in finding
    assert "twelve" not in finding


def test_examples_with_tools_are_counted_in_all_splits(world: World, calling_base: str) -> None:
    spec = world([*tiny.calling(40), *tiny.examples(20)], baseModel={"name": "tiny-base", "source": calling_base})
    for _ in ("measured", "read again"):
        found = preflight.preflight(spec).preflight
        assert found is not None
        assert found.examples_with_tools == 40


def test_a_model_without_tools_is_refused_before_training(world: World) -> None:
    with pytest.raises(errors.Failure, match=r"train\.jsonl:1: the model's chat template does not render tools"):
        preflight.preflight(world(tiny.calling(30)))
