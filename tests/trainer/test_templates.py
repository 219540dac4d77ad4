"""Chat templates as model folders have them: several named ones, and such that write an empty reasoning block."""

import json
import pathlib
from typing import Any

import pytest
from tests.trainer import families, tiny
from tests.trainer.checks import judged

from finetune_api import job
from finetune_trainer.data import dataset, tokens
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
            tokenizer.chat_template = tokens.one_template(named)
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
    assert '"refund"' in encoder._applied(calling.messages, False, calling.tools)


def test_named_templates_without_a_default_are_refused_by_name() -> None:
    assert tokens.one_template({"tool_use": "x"}) == "x"
    assert tokens.one_template({"other": "x"}) == "x"
    assert tokens.one_template(None) is None
    with pytest.raises(ValueError, match="a, b none is named default"):
        tokens.one_template({"a": "x", "b": "y"})


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


def test_a_template_that_opens_a_reasoning_block_in_the_prompt_is_refused_in_these_words() -> None:
    opening = tiny.CHAT_TEMPLATE.replace(
        "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"
    )
    assert opening != tiny.CHAT_TEMPLATE
    with pytest.raises(dataset.Wrong, match="open reasoning block"):
        judged.encoder(opening).encode(example(ASK, SAY))


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
