"""Rows as people write them: each field is understood, harmless, named by a finding, or refused."""

import json
import pathlib
from typing import Any

import pytest
from tests.trainer import tiny
from tests.trainer.checks import judged

from finetune_api import job
from finetune_trainer.data import dataset, rows, shapes
from finetune_trainer.store import storage

CASES = pathlib.Path(__file__).parent / "cases"
ASK, SAY = {"role": "user", "content": "Is it late?"}, {"role": "assistant", "content": "Yes."}
CHAT = [("user", "Is it late?"), ("assistant", "Yes.")]


def read(row: dict[str, Any]) -> dataset.Example:
    return dataset.example(row, dataset.detect(row), "x.jsonl:1")


def turns(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in read(row).messages]


def case(name: str) -> list[dataset.Example | rows.Bad]:
    return list(dataset.parse(rows.read(storage.Storage(), f"file://{CASES / name}"), job.Format.AUTO))


def examples(name: str) -> list[dataset.Example]:
    found = case(name)
    assert not [one for one in found if isinstance(one, rows.Bad)], found
    return [one for one in found if isinstance(one, dataset.Example)]


def refusal(row: dict[str, Any]) -> shapes.Wrong:
    with pytest.raises(dataset.Wrong) as caught:
        read(row)
    return caught.value


# --- Understood ---


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"system": "Be brief.", "messages": [ASK, SAY]}, [("system", "Be brief."), *CHAT]),
        ({"system_prompt": "Be brief.", "prompt": "Is it late?", "completion": "Yes."}, [("system", "Be brief."), *CHAT]),
        ({"system": "", "messages": [ASK, SAY]}, CHAT),
        ({"system": "S", "messages": [{"role": "system", "content": "S"}, ASK, SAY]}, [("system", "S"), *CHAT]),
        ({"messages": [{"role": "developer", "content": "S"}, ASK, SAY]}, [("system", "S"), *CHAT]),
        ({"system": "S", "instruction": "Is it late?", "output": "Yes."}, [("system", "S"), *CHAT]),
        ({"instruction": "Double.", "input": 4, "output": "8"}, [("user", "Double.\n\n4"), ("assistant", "8")]),
        ({"instruction": "Double.", "input": 0, "output": "0"}, [("user", "Double.\n\n0"), ("assistant", "0")]),
        ({"instruction": "Sum.", "input": [1, 2], "output": "3"}, [("user", "Sum.\n\n[1, 2]"), ("assistant", "3")]),
        (
            {"history": [["Hi", "Hello"], ["And?", "So."]], "instruction": "Is it late?", "input": None, "output": "Yes."},
            [("user", "Hi"), ("assistant", "Hello"), ("user", "And?"), ("assistant", "So."), *CHAT],
        ),
        ({"history": '[["Hi", "Hello"]]', "instruction": "a", "output": "b"},
         [("user", "Hi"), ("assistant", "Hello"), ("user", "a"), ("assistant", "b")]),
        ({"conversations": [{"from": "human", "value": "Is it late?"}, {"from": "gpt", "value": "Yes."}]}, CHAT),
        ({"conversation": [{"role": "user", "value": "Is it late?"}, {"from": "model", "content": "Yes."}]}, CHAT),
        ({"conversations": json.dumps([{"from": "human", "value": "Is it late?"}, {"from": "gpt", "value": "Yes."}])}, CHAT),
        ({"messages": {"role": ["user", "assistant"], "content": ["Is it late?", "Yes."]}}, CHAT),
        ({"prompt": {"role": ["user"], "content": ["Is it late?"]}, "completion": [SAY]}, CHAT),
        ({"messages": [{**ASK, "name": None, "tool_calls": None, "weight": None}, {**SAY, "refusal": None}, None],
          "tools": None, "prompt": None, "completion": None, "text": None}, CHAT),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Is it "}, {"type": "text", "text": None},
                                                    {"type": "text", "text": "late?", "image_url": None}, None]}, SAY]}, CHAT),
        ({"messages": [ASK, {"role": "assistant", "content": None, "refusal": "No."}]}, [CHAT[0], ("assistant", "No.")]),
        ({"messages": [ASK, {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}]},
         [CHAT[0], ("assistant", "No.")]),
    ],
)  # fmt: skip
def test_a_chat_is_read_in_the_dialects_that_people_write(row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert turns(row) == expected
    assert read(row).unused == frozenset()


@pytest.mark.parametrize("changes", [{"weight": 0}, {"train": False}, {"loss": 0}, {"weight": 0.0}])
def test_a_turn_that_is_not_to_be_learned_is_context(changes: dict[str, Any]) -> None:
    found = read({"messages": [ASK, SAY | changes, ASK, SAY | {"weight": 1}]})
    assert [turn.learned for turn in found.messages if turn.role == "assistant"] == [False, True]


def test_calls_in_older_dialects_are_calls() -> None:
    function = tiny.TOOLS[0]["function"]
    expected = read(
        {
            "tools": [tiny.TOOLS[0]],
            "messages": [
                ASK,
                {"role": "assistant", "tool_calls": [tiny.call("refund", item=1)]},
                {"role": "tool", "name": "refund", "content": '{"done": true, "note": null}'},
                SAY,
            ],
        }
    )
    older = {
        "functions": [function],
        "messages": [
            ASK,
            {"role": "assistant", "content": None, "function_call": {"name": "refund", "arguments": '{"item": 1}'}},
            {"role": "function", "name": "refund", "content": {"done": True, "note": None}},
            SAY,
        ],
    }
    sharegpt = {
        "tools": json.dumps([function]),
        "conversations": [
            {"from": "human", "value": "Is it late?"},
            {"from": "function_call", "value": '{"name": "refund", "arguments": {"item": 1}}'},
            {"from": "observation", "value": '{"done": true, "note": null}'},
            {"from": "gpt", "value": "Yes."},
        ],
    }
    assert [turn.key for turn in read(older).messages] == [turn.key for turn in expected.messages]
    assert [turn.key for turn in read(sharegpt).messages] == [turn.key for turn in expected.messages]
    assert read(older).tools == read(sharegpt).tools == expected.tools


def test_a_null_of_a_unified_schema_is_no_argument_no_property_and_no_field() -> None:
    parameters = {
        "type": "object",
        "properties": {"item": {"type": "integer", "enum": None}, "city": None},
        "required": None,
    }
    tool = {"type": "function", "function": {"name": "refund", "description": None, "parameters": parameters}}
    call = {"id": None, "type": "function", "function": {"name": "refund", "arguments": {"item": 1, "city": None}}}
    found = read({"tools": [tool], "messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [call]}]})
    assert json.loads(found.messages[-1].calls[0].arguments) == {"item": 1}
    assert json.loads(found.tools or "")[0]["function"]["parameters"] == {
        "type": "object",
        "properties": {"item": {"type": "integer"}},
    }


def test_reasoning_stands_beside_the_answer_and_comes_back_from_the_frozen_split() -> None:
    found = read({"messages": [ASK, SAY | {"reasoning_content": "It is ten."}]})
    assert (found.messages[-1].reasoning, found.answer) == ("It is ten.", "Yes.")
    assert dataset.from_record(json.loads(found.line())) == found


def test_reasoning_is_learned_where_the_template_renders_it_and_refused_elsewhere() -> None:
    found = read({"messages": [ASK, SAY | {"reasoning_content": "It is ten."}]})
    with pytest.raises(dataset.Wrong, match="does not render the reasoning_content of turn 2"):
        judged.encoder().encode(found)
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    encoder = judged.encoder(template)
    encoded = encoder.encode(found)
    learned = [id for id, target in zip(encoded.ids, encoded.learned, strict=True) if target]
    assert encoder.tokenizer.decode(learned).startswith("<think>\nIt is ten.\n</think>\n\nYes.<|im_end|>")


def test_pairs_are_read_in_the_dialects_that_people_write() -> None:
    for row in (
        {"prompt": "Is it late?", "chosen": "Yes.", "rejected": "Hm."},
        {"instruction": "Is it late?", "input": "", "chosen": "Yes.", "rejected": "Hm."},
        {"question": "Is it late?", "chosen": "Yes.", "rejected": "Hm."},
        {
            "conversations": [{"from": "human", "value": "Is it late?"}],
            "chosen": {"from": "gpt", "value": "Yes."},
            "rejected": {"from": "gpt", "value": "Hm."},
        },
    ):
        found = read({"system": "S", **row})
        assert [turn.content for turn in found.messages] == ["S", "Is it late?", "Yes."]
        assert found.rejected == "Hm."


# --- Named ---


@pytest.mark.parametrize(
    "row, unused",
    [
        ({"messages": [ASK, SAY], "id": 7, "source": "a", "score": 0.5, "metadata": {"x": 1}, "Unnamed: 0": 3}, set()),
        ({"messages": [ASK, SAY], "persona": "pirate", "label": 3}, {"persona", "label"}),
        ({"messages": [ASK | {"mood": "bad", "id": 3}, SAY]}, {"messages[].mood"}),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "x": 1}]}, {"messages[].x"}),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "bold": True}]}, SAY]},
         {"messages[].content[].bold"}),
        ({"prompt": "a", "completion": "b", "context": "c", "rationale": ""}, {"context"}),
        ({"instruction": "a", "output": "b", "text": "a b"}, {"text"}),
        ({"messages": [ASK, SAY], "prompt": "Is it late?"}, {"prompt"}),
        ({"text": "a", "system": "b"}, {"system"}),
        ({"prompt": "a", "completion": "b", "label": True}, set()),
        ({"prompt": "a", "completion": "b", "label": 1}, set()),
        ({"text": "a review", "label": 0}, {"label"}),
        ({"prompt": "a", "completion": "b", "label": 7}, {"label"}),
    ],
)  # fmt: skip
def test_a_field_that_nothing_reads_is_named(row: dict[str, Any], unused: set[str]) -> None:
    assert read(row).unused == unused


def test_unused_fields_are_one_finding_that_says_which_how_often_and_where() -> None:
    made = [
        read({"prompt": f"{n}?", "completion": f"{n}!", "context": "c"} | ({"tone": "t"} if n < 3 else {}))
        for n in range(9)
    ]
    finding = judged.judge(made)["unusedFields"]
    assert "context (9 of 9 examples), tone (3 of 9 examples)" in finding.message
    assert finding.places == ("x.jsonl:1 (context)", "x.jsonl:1 (tone)")
    assert (finding.policy, finding.share) == ("Warn", 1.0)
    assert "unusedFields" not in judged.rules(made, checks={"unusedFields": "Ignore"})
    assert [one.rule for one in judged.judge(made, checks={"unusedFields": "Fail"}).reviewed.failing] == [
        "unusedFields"
    ]


@pytest.mark.parametrize("label", [0, "bad", "Incorrect"])
def test_a_label_that_is_the_answer_itself_is_no_judgement_of_it(label: Any) -> None:
    assert read({"prompt": "a", "completion": str(label), "label": label}).answer == str(label)


def test_a_tool_that_returned_nothing_has_an_empty_result() -> None:
    calls = {"role": "assistant", "tool_calls": [tiny.call("thank", id="c1")]}
    row = {"tools": tiny.TOOLS, "messages": [ASK, calls, {"role": "tool", "tool_call_id": "c1", "content": None}, SAY]}
    assert read(row).messages[2].content == ""


def test_a_null_in_a_field_that_is_needed_is_named_as_such() -> None:
    assert "these fields (prompt (null), completion)" in str(refusal({"prompt": None, "completion": "b"}))


def test_thousands_of_fields_are_named_in_a_short_message() -> None:
    row = {f"field{n}": n for n in range(20_000)}
    assert len(str(refusal(row))) < 900
    assert len(judged.judge([read({"prompt": "a", "completion": "b", **row})])["unusedFields"].line()) < 900


# --- Refused ---


@pytest.mark.parametrize(
    "row, words",
    [
        ({"prompt": "a", "completion": "b", "label": False}, "label: False marks the answer as a bad one"),
        ({"prompt": "a", "completion": "b", "label": "False"}, "marks the answer as a bad one"),
        ({"prompt": "a", "completion": "b", "label": 0}, "label: 0 marks the answer as a bad one"),
        ({"prompt": "a", "completion": "b", "label": "0"}, "marks the answer as a bad one"),
        ({"prompt": "a", "completion": "b", "kto_label": -1.0}, "marks the answer as a bad one"),
        ({"messages": [ASK, SAY], "kto_tag": False}, "marks the answer as a bad one"),
        ({"prompt": "a", "completion": "b", "is_correct": False}, "marks the answer as a bad one"),
        ({"prompt": "a", "completion": "b", "label": "Bad"}, "marks the answer as a bad one"),
        ({"prompt": "a", "completion": "b", "rejected": "c"}, "needs 'chosen' beside it"),
        ({"prompt": "a", "completion": "b", "weight": 0.3}, "no weight of a row that can be honoured"),
        ({"messages": [ASK, SAY], "images": ["a.png"]}, "'images' cannot be learned"),
        ({"messages": [ASK, SAY | {"weight": 0.5}]}, "the weight 0.5"),
        ({"messages": [ASK, SAY | {"weight": "0"}]}, "the weight '0'"),
        ({"messages": [ASK, SAY | {"train": "no"}]}, "must be true (learned)"),
        ({"messages": [ASK, SAY | {"loss_mask": [1, 0]}]}, "the field 'loss_mask'"),
        ({"messages": [ASK, SAY | {"audio": {"id": "x"}}]}, "the field 'audio'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, SAY]},
         "a part of the type 'image_url'"),
    ],
)  # fmt: skip
def test_a_field_that_changes_the_meaning_is_refused(row: dict[str, Any], words: str) -> None:
    wrong = refusal(row)
    assert wrong.rule == "unlearnableFields"
    assert words in str(wrong)


@pytest.mark.parametrize(
    "row, words",
    [
        ({"system": "A", "messages": [{"role": "system", "content": "B"}, ASK, SAY]}, "'system' differs from"),
        ({"messages": [ASK, SAY] * 1001}, "a chat of 2002 turns, at most 2000"),
        ({"instruction": "a", "output": "b", "history": [["x"]]}, "history[0] must be a pair"),
        ({"instruction": "a", "output": "b", "history": "["}, "'history' is text that is not a JSON list"),
        ({"messages": {"role": ["user"], "content": ["a", "b"]}}, "different lengths (role: 1, content: 2)"),
        ({"messages": [ASK, {"role": "assistant", "content": [{"type": "text", "text": None}]}]}, "is empty"),
        ({"messages": [{"role": "user", "content": [3]}, SAY]}, "is not a content part"),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "refund()"}]},
            "not JSON",
        ),
    ],
)
def test_what_cannot_be_read_says_why(row: dict[str, Any], words: str) -> None:
    assert words in str(refusal(row))


# --- The cases ---


def test_the_cases_are_read_as_they_are_meant() -> None:
    first = examples("03-system-beside-messages.jsonl")[0]
    assert (first.messages[0].role, first.messages[0].content) == ("system", "Answer in French, in one sentence.")
    numbers = examples("04-numeric-input.jsonl")
    assert numbers[0].prompt[0].content == "Double the number.\n\n1"
    assert len({one.key() for one in numbers}) == len(numbers)
    assert all(one.messages[-1].reasoning for one in examples("07-reasoning-content.jsonl"))
    assert examples("14-null-part.jsonl")[0].prompt[0].content == "Where is the kettle?"
    assert [turn.role for turn in examples("44-sharegpt.jsonl")[0].messages] == ["system", "user", "assistant"]
    assert examples("45-struct-of-lists.jsonl")[0].answer == "In hall 0."
    assert examples("48-u2028.jsonl")[0].prompt[0].content.count("\u2028") == 1
    assert len(examples("52-bom-crlf.jsonl")) > 5


def test_bad_answers_of_kto_rows_are_never_examples() -> None:
    found = case("06-kto-label.jsonl")
    good = [one for one in found if isinstance(one, dataset.Example)]
    bad = [one for one in found if isinstance(one, rows.Bad)]
    assert {one.rule for one in bad} == {"unlearnableFields"}
    assert len(good) == len(bad)
    assert not any("Figure it out" in (one.answer or "") for one in good)
