"""Base models, whose chat template ends turns with another token than their tokenizer: an answer ends as the server ends it."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
from tests.trainer import masks, tiny
from tests.trainer.checks import judged

from finetune_api import job, run
from finetune_trainer.data import dataset, tokens
from finetune_trainer.evaluation import answers
from finetune_trainer.stages import evaluate, preflight, train

TEXTUAL = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} [end]\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
"""Ends turns with text that is no token of its own."""
LATE = tiny.CHAT_TEMPLATE + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
"""Writes the tokenizer's end once, after the last turn."""

ASK, SAY = {"role": "user", "content": "Is 12 late?"}, {"role": "assistant", "content": "it is great"}


def example(*turns: dict[str, Any]) -> dataset.Example:
    return dataset.example({"messages": list(turns)}, job.Format.CHAT, "x:1")


def base_model(folder: pathlib.Path, template: str | None, **config: Any) -> tokens.Encoder:
    """The encoder of a folder whose tokenizer ends with <|endoftext|>, whatever its template ends turns with."""
    tiny.make_tiny_model(folder, template=template or "")
    for name in ("tokenizer_config.json", "config.json", "generation_config.json"):
        path = folder / name
        known = json.loads(path.read_text())
        ends: Any = "<|endoftext|>" if name.startswith("tokenizer") else 0
        known |= {"eos_token" if name.startswith("tokenizer") else "eos_token_id": ends}
        path.write_text(json.dumps(known | (config if name == "config.json" else {})))
    if template is None:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    return tokens.load(folder, job.Training(max_sequence_length=512))


def served(encoder: tokens.Encoder, ids: list[int]) -> str:
    """What a client receives: the server stops at the first stop token and skips special ones."""
    stop = next(index for index, id in enumerate(ids) if id in encoder.stops)
    return str(encoder.tokenizer.decode(ids[:stop], skip_special_tokens=True))


@pytest.mark.parametrize("template", [tiny.CHAT_TEMPLATE, TEXTUAL, LATE, None])
def test_the_last_answer_is_learned_and_served_and_compared_as_the_data_have_it(
    template: str | None, tmp_path: pathlib.Path
) -> None:
    encoder = base_model(tmp_path, template)
    assert encoder.stops == {0}
    one = example(ASK, SAY)
    encoded = encoder.encode(one)
    assert masks.learned(encoder, one) == ["it is great<|endoftext|>"]
    prompt = encoder.prompt(one)
    assert encoded.ids[: len(prompt)] == prompt
    answer = encoded.ids[len(prompt) :]
    assert served(encoder, answer) == "it is great"
    assert answers.decode_answer(encoder, one, answer)[0] == "it is great"
    assert encoder.batch([one]) == [(encoded,)]


@pytest.mark.parametrize("template", [tiny.CHAT_TEMPLATE, TEXTUAL, LATE])
def test_an_answer_before_another_question_cannot_end_so_and_preflight_says_what_differs(
    template: str, tmp_path: pathlib.Path
) -> None:
    encoder = base_model(tmp_path, template)
    chat = example(ASK, SAY, ASK, SAY)
    (place,) = judged.judge([chat], with_encoder=encoder)["stopToken"].places
    assert place.startswith("x:1 (the chat template ends turns with ")
    assert repr(encoder.turn_end) in place
    assert "the server stops at '<|endoftext|>'" in place
    last = dataclasses.replace(encoder, loss_on=job.LossOn.LAST_ASSISTANT)
    assert masks.learned(last, chat) == ["it is great<|endoftext|>"]
    assert "stopToken" not in judged.rules([chat], with_encoder=last)
    assert encoder.tokenizer.decode(encoder.prompt(chat)) in encoder.tokenizer.decode(last.encode(chat).ids)


def test_a_tokenizer_without_an_end_is_named(tmp_path: pathlib.Path) -> None:
    encoder = base_model(tmp_path, TEXTUAL)
    encoder.tokenizer.eos_token = None
    endless = dataclasses.replace(encoder, stops=frozenset())
    (place,) = judged.judge([example(ASK, SAY)], with_encoder=endless)["stopToken"].places
    assert "the tokenizer has no eos_token" in place


def test_calls_of_a_base_model_end_as_its_texts_do(tmp_path: pathlib.Path) -> None:
    encoder = base_model(tmp_path, tiny.TOOL_TEMPLATE)
    call = {"role": "assistant", "content": "", "tool_calls": [tiny.call("refund", item=12)]}
    one = dataset.example({"messages": [ASK, call], "tools": tiny.TOOLS}, job.Format.CHAT, "x:1")
    (learned,) = masks.learned(encoder, one)
    assert learned.endswith("</tool_call><|endoftext|>")
    _, score = answers.decode_answer(encoder, one, encoder.encode(one).ids[len(encoder.prompt(one)) :])
    assert score is not None
    assert score.match


@pytest.mark.parametrize("written, stops", [(2, {0, 2}), ([1, 2], {0, 1, 2}), (None, {0})])
def test_without_a_generation_config_the_server_reads_the_end_from_config_json(
    written: Any, stops: set[int], tmp_path: pathlib.Path
) -> None:
    base_model(tmp_path, tiny.CHAT_TEMPLATE, eos_token_id=written)
    (tmp_path / "generation_config.json").unlink()
    encoder = tokens.load(tmp_path, job.Training())
    assert encoder.stops == stops


OPENING = tiny.CHAT_TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")


@pytest.mark.parametrize("template", [TEXTUAL, OPENING, None])
def test_what_was_learned_is_generated_compared_and_stored_with_the_adapter_in_the_same_form(
    template: str | None, tmp_path: pathlib.Path, world: Callable[..., run.Run]
) -> None:
    encoder = base_model(tmp_path / "model", template)
    weights = safetensors.torch.load_file(tmp_path / "model" / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    embedding[0] = embedding[9].flip(
        0
    )  # a random model has zeros there, and its head is tied: it could not say this token
    safetensors.torch.save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    spec = world(
        [{"prompt": f"Is item {n} late?", "completion": '{"late": true}'} for n in range(60)],
        baseModel={"name": "tiny-base", "source": f"file://{tmp_path}/model"},
        training={"maxSteps": 80},
        dataset={"checks": {"constantAnswers": "Ignore"}},
        evaluation={"generation": {"maxNewTokens": 40}},
    )
    found = preflight.preflight(spec).preflight
    assert found is not None
    assert any("open reasoning block" in one for one in found.advice) is (template is OPENING)
    trained = train.train(spec, 1, 1.0).training
    assert trained is not None
    assert trained.adapter is not None
    stored = pathlib.Path(trained.adapter.uri.removeprefix("file://")) / "chat_template.jinja"
    assert (stored.read_text() if template else stored.exists()) == (encoder.tokenizer.chat_template or False)
    scores = evaluate.evaluate(spec, None, None, 1).evaluation
    assert scores is not None
    values = {(value.name, value.contender): float(value.value) for value in scores.metrics}
    samples = next((tmp_path / "out").rglob("samples.jsonl")).read_text()
    assert values[job.Metric.EXACT_MATCH, job.Contender.TUNED] == 1.0, samples
    canary = json.loads(next((tmp_path / "out").rglob("canary.json")).read_text())
    assert {one["answer"][-1] for one in canary["examples"]} <= encoder.stops, (
        "the server is verified with the same end"
    )
