import dataclasses
import pathlib
from typing import Any

import pytest
from tests.trainer import families, masks, tiny

from finetune_api import job
from finetune_trainer.data import dataset, tokens

USER, ANSWER = dataset.Message("user", "Is 12 late?"), dataset.Message("assistant", '{"reply": true}')
MORE = (dataset.Message("user", "Thank you"), dataset.Message("assistant", "it is great"))
PAIR = dataset.Example("x:1", (USER, ANSWER))
CHAT = dataset.Example("x:2", (USER, ANSWER, *MORE))


@pytest.fixture(scope="module")
def encoder(base: pathlib.Path) -> tokens.Encoder:
    return tokens.load(base, job.Training(max_sequence_length=512))


def test_answers_are_learned_with_their_stop_token_and_nothing_else(encoder: tokens.Encoder) -> None:
    assert masks.learned(encoder, PAIR) == ['{"reply": true}<|im_end|>']
    assert masks.learned(encoder, CHAT) == ['{"reply": true}<|im_end|>', "it is great<|im_end|>"]


def test_the_rule_of_the_loss_decides_which_turns_are_learned(encoder: tokens.Encoder) -> None:
    last = dataclasses.replace(encoder, loss_on=job.LossOn.LAST_ASSISTANT)
    assert masks.learned(last, CHAT) == ["it is great<|im_end|>"]
    everything = dataclasses.replace(encoder, loss_on=job.LossOn.ALL)
    encoded = everything.encode(CHAT)
    assert all(encoded.learned)
    assert encoded.trainable == len(encoded.ids) - 1


def test_context_answers_are_not_learned(encoder: tokens.Encoder) -> None:
    context = dataclasses.replace(ANSWER, learned=False)
    assert masks.learned(encoder, dataset.Example("x", (USER, context, *MORE))) == ["it is great<|im_end|>"]


def test_a_chat_of_context_alone_has_nothing_to_learn(encoder: tokens.Encoder) -> None:
    context = dataset.Example("x", (USER, dataclasses.replace(ANSWER, learned=False)))
    assert encoder.encode(context).trainable == 0
    assert encoder.batch([context]) == [(encoder.encode(context),)]


def test_the_prompt_is_the_beginning_of_the_example(encoder: tokens.Encoder) -> None:
    for example in (PAIR, CHAT):
        prompt, ids = encoder.prompt(example), encoder.encode(example).ids
        assert ids[: len(prompt)] == prompt
        assert encoder.answered(example).learned.index(True) == len(prompt)


def test_long_examples_are_cut_and_say_so(encoder: tokens.Encoder) -> None:
    short = dataclasses.replace(encoder, max_length=20).encode(CHAT)
    assert short.truncated
    assert len(short.ids) == len(short.learned) == 20
    nothing = dataclasses.replace(encoder, max_length=5).encode(CHAT)
    assert nothing.trainable == 0
    assert not encoder.encode(CHAT).truncated


def test_the_models_positions_limit_the_length(base: pathlib.Path) -> None:
    assert tokens.load(base, job.Training(max_sequence_length=1_000_000)).max_length == 1024


def with_template(encoder: tokens.Encoder, template: str | None) -> tokens.Encoder:
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = template
    return dataclasses.replace(encoder, tokenizer=tokenizer)


def test_an_answer_that_would_merge_with_its_prompt_is_tokenized_on_its_own(encoder: tokens.Encoder) -> None:
    """The template ends the prompt with 'answer' and no space; ' the' is one token that begins with the space."""
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }} th{% else %}{{ m['content'] }}"
        "<|im_end|>{% endif %}{% endfor %}"
    )
    merging = with_template(encoder, template)
    example = dataset.Example("x", (dataset.Message("user", "dog"), dataset.Message("assistant", "e fox")))
    joint = merging.tokenizer("dog the fox<|im_end|>")["input_ids"]
    prompt, encoded = merging.prompt(example), merging.encode(example)
    assert joint[: len(prompt)] != prompt, "the test is about tokens that merge"
    assert encoded.ids[: len(prompt)] == prompt
    assert masks.learned(merging, example) == ["e fox<|im_end|>"]


def test_a_template_that_rewrites_the_past_is_refused_with_advice(encoder: tokens.Encoder) -> None:
    template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    with pytest.raises(dataset.Wrong, match="LastAssistant"):
        with_template(encoder, template).encode(CHAT)


def test_a_system_turn_that_the_template_renders_only_before_the_answer_is_part_of_the_learned_example(
    encoder: tokens.Encoder,
) -> None:
    mistral = with_template(encoder, families.TEMPLATES["Mistral"])
    turns = (
        dataset.Message("system", "Be brief."),
        dataset.Message("user", "dog"),
        dataset.Message("assistant", "fox"),
    )
    example = dataset.Example("x", turns)
    prompt = mistral.prompt(example)
    assert "Be brief." not in mistral.render(turns), "the test is about a template that leaves it out"
    assert "Be brief." in mistral.tokenizer.decode(prompt)
    assert mistral.encode(example).ids[: len(prompt)] == prompt
    assert masks.learned(mistral, example) == ["fox<|im_end|>"]
    assert mistral.batch([example]) == [(mistral.encode(example),)]


def test_with_such_a_template_the_last_answer_of_a_longer_chat_is_learned(encoder: tokens.Encoder) -> None:
    mistral = with_template(encoder, families.TEMPLATES["Mistral"])
    chat = dataclasses.replace(CHAT, messages=(dataset.Message("system", "Be brief."), *CHAT.prompt, CHAT.messages[-1]))
    with pytest.raises(dataset.Wrong, match="LastAssistant"):
        mistral.encode(chat)
    last = dataclasses.replace(mistral, loss_on=job.LossOn.LAST_ASSISTANT)
    assert last.encode(chat).ids[: len(last.prompt(chat))] == last.prompt(chat)
    assert masks.learned(last, chat) == [f"{CHAT.messages[-1].content}<|im_end|>"]


def test_a_template_that_refuses_a_row_says_why(encoder: tokens.Encoder) -> None:
    template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(dataset.Wrong, match="System role not supported"):
        with_template(encoder, template).encode(PAIR)


def test_an_answer_without_a_stop_token_gets_one(encoder: tokens.Encoder) -> None:
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}" + (
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    bare = with_template(encoder, template)
    assert bare.encode(PAIR).ids[-1] == encoder.tokenizer.eos_token_id
    assert masks.learned(bare, PAIR) == ['{"reply": true}<|im_end|>']


def test_a_template_that_writes_its_own_first_token_gets_no_second_one(encoder: tokens.Encoder) -> None:
    doubled = with_template(encoder, "<|endoftext|>" + tiny.CHAT_TEMPLATE)

    class Adding:
        """A tokenizer that adds a begin-of-sequence token of its own, as Llama's does."""

        chat_template, eos_token_id = doubled.tokenizer.chat_template, doubled.tokenizer.eos_token_id

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, Any]:
            return {"input_ids": [0] * add_special_tokens + doubled.tokenizer(text)["input_ids"]}

        def apply_chat_template(self, *given: Any, **named: Any) -> Any:
            return doubled.tokenizer.apply_chat_template(*given, **named)

        def convert_ids_to_tokens(self, id: int) -> Any:
            return doubled.tokenizer.convert_ids_to_tokens(id)

    ids = dataclasses.replace(doubled, tokenizer=Adding()).encode(PAIR).ids
    assert ids.count(0) == 1


def test_without_a_template_prompt_and_completion_follow_each_other(encoder: tokens.Encoder) -> None:
    bare = with_template(encoder, None)
    assert masks.learned(bare, PAIR) == ['{"reply": true}<|im_end|>']
    assert bare.tokenizer.decode(bare.encode(PAIR).ids) == 'Is 12 late?{"reply": true}<|im_end|>'
    with pytest.raises(dataset.Wrong, match="no chat template"):
        bare.encode(CHAT)


def test_plain_text_is_learned_whole(encoder: tokens.Encoder) -> None:
    encoded = encoder.encode(dataset.Example("x", text="the quick brown fox"))
    assert all(encoded.learned)
    assert encoded.ids[-1] == encoder.tokenizer.eos_token_id


def test_the_servers_stop_tokens_count_too(base: pathlib.Path, encoder: tokens.Encoder, tmp_path: pathlib.Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    assert tokens.stops(encoder.tokenizer, tmp_path) == {0, 2}
    assert tokens.stops(encoder.tokenizer, base) == {2}
