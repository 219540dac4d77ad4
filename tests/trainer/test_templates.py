"""Chat templates as model folders have them: several named ones, and such that write an empty reasoning block."""

import dataclasses
import json
import pathlib
from typing import Any

import pytest
from tests.trainer import families, tiny
from tests.trainer.checks import judged

from finetune_api import job
from finetune_trainer.data import dataset, templates, tokens
from finetune_trainer.evaluation import answers

CASES = pathlib.Path(__file__).parent / "cases"
THINKING = (CASES / "09-think-template.jinja").read_text()
NAMED = {
    one["name"]: one["template"]
    for one in json.loads((CASES / "10-tokenizer_config-fragment.json").read_text())["chat_template"]
}
ASK, SAY = {"role": "user", "content": "Is it late?"}, {"role": "assistant", "content": '{"late": true}'}


def learned(encoder: tokens.Encoder, encoded: tokens.Encoded) -> str:
    ids = [id for id, target in zip(encoded.ids, encoded.learned, strict=True) if target]
    return str(encoder.tokenizer.decode(ids, skip_special_tokens=True))


def example(*turns: dict[str, Any], **fields: Any) -> dataset.Example:
    return dataset.example({"messages": list(turns), **fields}, job.Format.CHAT, "x:1")


def test_an_empty_reasoning_block_of_the_template_is_not_learned_so_that_clients_get_the_answer_alone() -> None:
    encoder = judged.encoder(THINKING)
    encoded = encoder.answered(example(ASK, SAY))
    assert learned(encoder, encoded).strip() == '{"late": true}'
    prompt = encoder.prompt(example(ASK, SAY))
    assert encoded.ids[: len(prompt)] == prompt, "what is learned follows what the server gets"
    both = encoder.encode(example(ASK, SAY, ASK, SAY))
    assert learned(encoder, both).count('{"late": true}') == 2
    assert "<think>" not in learned(encoder, both)


def test_a_reasoning_block_of_the_data_is_learned() -> None:
    encoder = judged.encoder(THINKING)
    for content in ("<think>\n\n</think>\n\nYes.", "<think>\nIt is ten.\n</think>\n\nYes."):
        assert learned(encoder, encoder.answered(example(ASK, SAY | {"content": content}))).strip() == content


@pytest.mark.parametrize("stops", ["", "\n"])
def test_of_several_named_templates_default_and_tool_use_become_one_that_chooses(stops: str) -> None:
    tokenizer = tiny.make_tokenizer()
    named = {name: f"\n  {template}{stops}" for name, template in (NAMED | {"rag": "{{ 1 / 0 }}"}).items()}
    turns = [ASK, SAY]
    for tools in (None, tiny.TOOLS):
        for generation in (False, True):
            wanted = {"tools": tools, "tokenize": False, "add_generation_prompt": generation}
            tokenizer.chat_template = named
            expected = tokenizer.apply_chat_template(turns, **wanted)
            tokenizer.chat_template = templates.one(named)
            assert tokenizer.apply_chat_template(turns, **wanted) == expected


def test_a_folder_with_several_named_templates_is_loaded_with_one(tmp_path: pathlib.Path) -> None:
    tiny.make_tiny_model(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = [{"name": name, "template": template} for name, template in NAMED.items()]
    path.write_text(json.dumps(config))
    encoder = tokens.load(tmp_path, job.Training())
    assert isinstance(encoder.tokenizer.chat_template, str)
    plain = encoder.render(example(ASK, SAY).messages)
    assert plain == judged.encoder(NAMED["default"]).render(example(ASK, SAY).messages)
    calling = example(ASK, SAY, tools=tiny.TOOLS)
    assert '"refund"' in templates.applied(encoder.tokenizer, calling.messages, False, calling.tools)


def test_named_templates_without_a_default_are_refused_by_name() -> None:
    assert templates.one({"tool_use": "x"}) == "x"
    assert templates.one({"other": "x"}) == "x"
    assert templates.one(None) is None
    with pytest.raises(ValueError, match="a, b none is named default"):
        templates.one({"a": "x", "b": "y"})


def test_every_family_of_templates_still_learns_the_answers_alone() -> None:
    for name, template in families.TEMPLATES.items():
        if template is None:
            continue
        encoder = judged.encoder(name)
        assert '{"late": true}' in learned(encoder, encoder.answered(example(ASK, SAY))), name


@pytest.mark.parametrize("beside", [True, False])
def test_reasoning_beside_an_answer_is_no_part_of_the_answer_that_is_compared(beside: bool) -> None:
    encoder = judged.encoder()
    asked = example(ASK, SAY | ({"reasoning_content": "It is ten."} if beside else {}))
    ids = encoder.tokenizer("<think>\nIt is ten, so yes.\n</think>\n\nYes.", add_special_tokens=False)["input_ids"]
    text, _ = answers.decode_answer(encoder, asked, ids)
    assert (text == "Yes.") is beside


OPENING = tiny.CHAT_TEMPLATE.replace(
    "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"
)
"""Opens a reasoning block in the prompt, and renders answers without one."""
REASONING = OPENING.replace(
    "{{ message['content'] }}",
    "{% if message['role'] == 'assistant' and loop.last %}<think>\n{{ message['reasoning_content'] }}\n</think>\n\n{% endif %}"
    "{% set content = message['content'] %}{{ content.split('</think>')[-1].lstrip('\n') }}",
)
"""The same, with the reasoning of the last answer; what earlier answers say of it is removed."""


def opening(template: str, folder: pathlib.Path) -> tokens.Encoder:
    assert template != tiny.CHAT_TEMPLATE
    tiny.make_tiny_model(folder, template=template)
    return tokens.load(folder, job.Training())


@pytest.mark.parametrize("template", [OPENING, REASONING, f"\n  {OPENING}\n"])
def test_a_reasoning_block_that_the_prompt_opens_is_left_to_the_answer(template: str, tmp_path: pathlib.Path) -> None:
    encoder = opening(template, tmp_path)
    assert encoder.closed
    for one in (example(ASK, SAY), example(ASK, SAY, ASK, SAY)):
        prompt = encoder.prompt(one)
        assert "<think>" not in encoder.tokenizer.decode(prompt)
        encoded = encoder.answered(one)
        assert encoded.ids[: len(prompt)] == prompt, "what is learned follows what the server gets"
        assert learned(encoder, encoded).strip() == '{"late": true}'
        ids = [id for id, target in zip(encoded.ids, encoded.learned, strict=True) if target]
        text, _ = answers.decode_answer(encoder, one, ids)
        assert text == '{"late": true}', "the answer that is compared is the one of the data"
    plain = tiny.make_tokenizer()
    plain.chat_template = template
    expected = plain.apply_chat_template([ASK, SAY], tokenize=False)
    assert encoder.render(example(ASK, SAY).messages) == expected, "nothing else of the template changes"


def test_reasoning_of_the_data_is_learned_by_such_a_template(tmp_path: pathlib.Path) -> None:
    encoder = opening(REASONING, tmp_path)
    encoded = encoder.answered(example(ASK, SAY | {"reasoning_content": "It is ten."}))
    assert learned(encoder, encoded).strip() == '<think>\nIt is ten.\n</think>\n\n{"late": true}'


def test_a_template_that_opens_nothing_stays_as_it_is(tmp_path: pathlib.Path) -> None:
    encoder = opening(THINKING, tmp_path)
    assert not encoder.closed
    assert encoder.tokenizer.chat_template == THINKING


def test_tools_and_the_adapters_template_are_those_of_the_closed_one(tmp_path: pathlib.Path) -> None:
    encoder = opening(tiny.TOOL_TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"), tmp_path)
    one = example(ASK, SAY, tools=tiny.TOOLS)
    assert encoder.tool_support.dialect == "hermes"
    assert encoder.tokenizer.decode(encoder.prompt(one)).endswith("<|im_start|>assistant\n")
    again = judged.encoder(encoder.tokenizer.chat_template)
    assert again.render(one.prompt, answer=True, tools=one.tools) == encoder.render(
        one.prompt, answer=True, tools=one.tools
    )


def test_reasoning_in_the_content_that_the_template_removes_is_refused(tmp_path: pathlib.Path) -> None:
    encoder = opening(
        OPENING.replace("{{ message['content'] }}", "{{ message['content'].split('</think>')[-1] }}"), tmp_path
    )
    one = example(ASK, SAY | {"content": "<think>\nIt is ten.\n</think>\n\nYes."})
    with pytest.raises(dataset.Wrong, match="<think> block of turn 2"):
        encoder.encode(one)


def test_a_name_that_the_template_leaves_out_is_a_finding_and_one_that_it_renders_is_not() -> None:
    speaker = "{{ message['role'] ~ (' ' ~ message['name'] if message['name'] else '') }}"
    named = tiny.CHAT_TEMPLATE.replace("{{ message['role'] }}", speaker)
    (details,) = judged.encoder(tiny.CHAT_TEMPLATE).details([example(ASK | {"name": "Greta"}, SAY)])
    assert isinstance(details, tokens.Details)
    assert details.omitted == ("messages[].name",)
    (details,) = judged.encoder(named).details([example(ASK | {"name": "Greta"}, SAY)])
    assert isinstance(details, tokens.Details)
    assert details.omitted == ()
    found = judged.judge([example(ASK | {"name": "Greta"}, SAY)])
    assert "messages[].name (1 of 1 examples)" in found["unusedFields"].message


def test_a_system_turn_that_the_template_leaves_out_is_a_finding() -> None:
    silent = tiny.CHAT_TEMPLATE.replace("in messages %}", "in messages if message['role'] != 'system' %}")
    row = example({"role": "system", "content": " Be brief.\n"}, ASK, SAY)
    for template, expected in ((silent, ("the system turn",)), (tiny.CHAT_TEMPLATE, ())):
        (details,) = judged.encoder(template).details([row])
        assert isinstance(details, tokens.Details)
        assert details.omitted == expected
    found = judged.judge([row], with_encoder=judged.encoder(silent))
    assert "the system turn (1 of 1 examples)" in found["unusedFields"].message


@pytest.mark.parametrize(
    "content",
    [
        "{% for part in message['content'] %}{{ part.text }}{% endfor %}",
        "{{ message['content'] | upper }}",
        "{{ message['content'] if message['role'] != 'assistant' }}",
    ],
)
def test_a_template_that_renders_something_else_than_the_answer_is_refused(content: str) -> None:
    other = tiny.CHAT_TEMPLATE.replace("{{ message['content'] }}", content)
    with pytest.raises(dataset.Wrong, match="does not render the content of turn 2 as it is"):
        judged.encoder(other).encode(example(ASK, SAY))


def test_a_question_that_the_template_leaves_out_is_a_finding() -> None:
    forgetful = tiny.CHAT_TEMPLATE.replace("in messages %}", "in messages[-2:] %}")
    last = dataclasses.replace(judged.encoder(forgetful), loss_on=job.LossOn.LAST_ASSISTANT)
    (details,) = last.details([example(ASK | {"content": "Is it early?"}, SAY, ASK, SAY)])
    assert isinstance(details, tokens.Details)
    assert details.omitted == ("turns of the user",)
