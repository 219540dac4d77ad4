"""What the comparison with transformers sees before our passes are trusted: each fault here is one that training would hide."""

import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tests.trainer import decoders, loops

from finetune_api import job, run
from finetune_trainer.data import corpus
from finetune_trainer.engine import comparison, decoder, decoding, elementwise, layers, lora, model, passes
from finetune_trainer.stages import train
from finetune_trainer.store import storage
from finetune_trainer.training import processes

CPU = torch.device("cpu")


def made(family: str, kind: torch.dtype = torch.float32, **changes: Any) -> Any:
    config = decoders.FAMILIES[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    tuned = decoders.made(config)
    for name, weight in tuned.named_parameters():
        if "lora_" not in name:
            weight.data = weight.data.to(kind)
    return tuned


def refusal(tuned: Any) -> str:
    """What differs; empty where the fast engine is taken."""
    try:
        decoder.of(model.decoder(tuned), CPU)
    except layers.Unknown as problem:
        return str(problem)
    return ""


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", decoders.FAMILIES)
def test_a_family_that_is_known_is_trained_fast_in_every_precision(family: str, kind: torch.dtype) -> None:
    assert refusal(made(family, kind)) == ""


@pytest.mark.parametrize("local", [0, 1])
def test_one_process_of_a_node_compares_the_form(
    local: int, world: Callable[..., run.Run], base: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy takes the host's memory of a few layers in float32, which a node with eight GPUs has once."""
    copies: list[Any] = []
    miniature = comparison.miniature

    def copied(*given: Any) -> Any:
        copies.append(miniature(*given))
        return copies[-1]

    monkeypatch.setattr(comparison, "miniature", copied)
    group = processes.ProcessGroup(local, 1, local)
    spec = world(training={"lora": {"dropout": 0}})
    data = corpus.Splits(loops.examples(), loops.examples(), None, "")
    prepared = train.prepare(spec, storage.of(spec.storage), group, base, CPU, data, None)
    assert isinstance(prepared.engine, passes.Fast)
    assert len(copies) == (local == 0)


WINDOWS: dict[str, Callable[..., int | None]] = {
    "on every layer": lambda _, config, __: config.sliding_window,
    "on none": lambda *_: None,
    "on the others": lambda _, config, number: (
        None if "sliding" in config.layer_types[number] else config.sliding_window
    ),
}


@pytest.mark.parametrize("place", WINDOWS)
def test_a_window_at_the_wrong_layers_is_seen_though_no_example_is_as_long(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = made("gemma 3, alternating windows", sliding_window=1024)
    assert refusal(tuned) == ""
    monkeypatch.setattr(layers, "_window", WINDOWS[place])
    assert "states differ" in refusal(tuned)


def test_a_window_that_is_one_token_too_long_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_window", lambda _, config, __: config.sliding_window + 1)
    assert "states differ" in refusal(made("mistral, sliding window", sliding_window=4096))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", decoders.FAMILIES)
def test_the_comparison_on_the_device_allows_what_its_precision_rounds(family: str, kind: torch.dtype) -> None:
    decoder.compare_on_device(comparison.miniature(model.decoder(made(family))), CPU, kind)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["mistral, sliding window", "gemma 3, alternating windows"])
def test_the_comparison_on_the_device_sees_a_window_that_is_one_token_too_long(
    family: str, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = comparison.miniature(model.decoder(made(family)))
    original = layers._window
    monkeypatch.setattr(layers, "_window", lambda *given: (original(*given) or 0) + 1 or None)
    with pytest.raises(layers.Unknown, match="states differ"):
        decoder.compare_on_device(small, CPU, kind)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_the_comparison_on_the_device_sees_a_wrong_gradient(kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*GRADIENTS["of a norm"])
    with pytest.raises(layers.Unknown, match="gradients of"):
        decoder.compare_on_device(comparison.miniature(model.decoder(made("llama 3"))), CPU, kind)


def test_a_layer_of_a_type_that_is_unknown_is_not_taken_for_another() -> None:
    tuned = made("llama 3", layer_types=["full_attention", "linear_attention", "full_attention"])
    assert "linear_attention" in refusal(tuned)


GRADIENTS: dict[str, tuple[Any, str, Any]] = {
    "of the activation": (elementwise, "activate_backward", lambda *_: None),
    "of the rotary embedding": (elementwise, "rotate_back", lambda x, cos, sin, out: out.copy_(x.transpose(0, 1))),
    "of a norm": (layers.Norm, "backward", lambda self, upstream, unit, factor: upstream.float() * factor),
}


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", GRADIENTS)
def test_a_wrong_gradient_is_seen_though_the_states_are_right(
    part: str,
    kind: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(*GRADIENTS[part])
    assert "gradients of" in refusal(made("llama 3", kind))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_layer_in_the_middle_that_differs_by_little_is_seen(
    kind: torch.dtype,
) -> None:
    tuned = made("qwen 2.5", kind)
    layer = model.decoder(tuned).layers[1]
    layer.register_forward_hook(lambda _, given, output: given[0] + 1.05 * (output - given[0]))
    assert "layer 1" in refusal(tuned)


def test_an_error_in_the_comparison_only_disables_the_fast_path(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a release of transformers that we do not know")

    monkeypatch.setattr(decoder.Decoder, "_layer_backward", broken)
    assert "that we do not know" in refusal(made("llama 3"))
    monkeypatch.setattr(decoding.Decoding, "step", broken)
    assert decoding.of(model.decoder(made("llama 3")), CPU) is None
    assert "that we do not know" in caplog.records[-1].fields["differs"]  # type: ignore[attr-defined]


def test_memory_that_is_short_for_the_comparison_only_disables_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(decoder.Decoder, "_layer_backward", short)
    assert "memory was short" in refusal(made("llama 3"))


@pytest.mark.parametrize("room", [1, 0])
def test_a_device_that_is_short_of_memory_compares_one_layer_at_a_time(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []

    def short(small: Any, *_: Any) -> None:
        compared.append(len(small.layers))
        if len(small.layers) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(decoder, "compare_on_device", short)
    inner = model.decoder(made("llama 3"))
    if room:
        decoder._compare_form(inner, torch.device("cuda"))
        assert compared == [2, 1, 1]
    else:
        with pytest.raises(layers.Unknown, match="memory was short"):
            decoder.of(inner, torch.device("cuda"))


def test_answers_past_the_window_are_compared(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert decoding.of(model.decoder(made("mistral, sliding window", sliding_window=4096)), CPU) is not None
    monkeypatch.setattr(layers, "_window", lambda *_: None)
    assert decoding.of(model.decoder(made("mistral, sliding window", sliding_window=4096)), CPU) is None
    assert "states differ" in caplog.records[-1].fields["differs"]  # type: ignore[attr-defined]


def test_the_copy_leaves_the_model_as_it_was() -> None:
    tuned = made("gemma 3, alternating windows", torch.bfloat16)
    inner = model.decoder(tuned)
    before = {name: weight.clone() for name, weight in tuned.state_dict().items()}
    passes = [layer.forward for layer in lora.layers(tuned)]
    small = comparison.miniature(inner)
    comparison.form(decoder.Decoder(small, CPU), small)
    assert inner.config.sliding_window == 24
    assert len(inner.layers) == inner.config.num_hidden_layers == 3
    assert [layer.forward for layer in lora.layers(tuned)] == passes
    assert all(weight.grad is None for weight in lora.parameters(tuned).values())
    for name, weight in tuned.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_only_the_first_and_last_of_many_equal_layers_are_copied() -> None:
    torch.manual_seed(1)
    config = transformers.LlamaConfig(**(decoders.SIZE | {"num_hidden_layers": 9}))
    base = transformers.AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()
    tuned = lora.add(base, job.LoRA(rank=8), "base")
    small = comparison.miniature(model.decoder(tuned))
    assert len(small.layers) == 2
    theirs = model.decoder(tuned).layers
    assert torch.equal(small.layers[1].mlp.up_proj.base_layer.weight, theirs[8].mlp.up_proj.base_layer.weight)
