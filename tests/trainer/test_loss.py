import pathlib
from typing import Any

import pytest
import torch
import transformers

from finetune_api import job
from finetune_trainer.engine import lora, loss, model, sizes

CPU = torch.device("cpu")


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 512])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradient_equal_the_full_cross_entropy(
    softcap: float | None, bias: bool, chunk: int, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "CHUNK", chunk)
    torch.manual_seed(0)
    hidden = torch.randn(33, 16, requires_grad=True)
    weight, shift = torch.randn(97, 16), torch.randn(97) if bias else None
    targets = torch.randint(0, 97, (33,))
    weights = torch.randn(33) if weighted else None
    logits = torch.nn.functional.linear(hidden, weight, shift)
    if softcap:
        logits = torch.tanh(logits / softcap) * softcap
    each = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    expected = (each if weights is None else each * weights).sum()
    (gradient,) = torch.autograd.grad(expected, hidden)
    head = loss.Head(weight, shift, softcap)
    found, mine = loss.total(hidden.detach(), targets, head, weights)
    assert found == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    torch.testing.assert_close(mine, gradient, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(-loss.log_probabilities(hidden.detach(), targets, head), each, rtol=1e-5, atol=1e-5)


def tiny_model(kind: str) -> Any:
    """A random model of a family, with all that sets its head or attention apart."""
    size: dict[str, Any] = {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
    }
    configs = {
        "llama, tied head": lambda: transformers.LlamaConfig(**size, tie_word_embeddings=True),
        "llama, untied head": lambda: transformers.LlamaConfig(**size, tie_word_embeddings=False),
        "qwen2": lambda: transformers.Qwen2Config(**size),
        "qwen3": lambda: transformers.Qwen3Config(**size),
        "mistral, sliding window": lambda: transformers.MistralConfig(**size, sliding_window=8),
        "gemma2, soft-capping": lambda: transformers.Gemma2Config(**size, sliding_window=8),
        "gemma3": lambda: transformers.Gemma3TextConfig(**size, sliding_window=8),
    }
    torch.manual_seed(1)
    made = transformers.AutoModelForCausalLM.from_config(configs[kind]())
    return made.requires_grad_(False).eval()


FAMILIES = [
    "llama, tied head",
    "llama, untied head",
    "qwen2",
    "qwen3",
    "mistral, sliding window",
    "gemma2, soft-capping",
    "gemma3",
]


def batch() -> tuple[list[list[int]], list[list[bool]]]:
    torch.manual_seed(2)
    rows = [torch.randint(1, 128, (length,)).tolist() for length in (23, 17, 9)]
    learned = [[index > len(row) // 2 for index in range(len(row))] for row in rows]
    return rows, learned


@pytest.mark.parametrize("kind", FAMILIES)
def test_known_heads_are_recognised(kind: str) -> None:
    assert model.head(tiny_model(kind)).weight is not None


def test_an_unknown_head_takes_the_slower_path_with_the_same_loss() -> None:
    """Granite divides its logits by a number that the fast head does not know."""
    config = transformers.GraniteConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, logits_scaling=4.0, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(1)
    made = transformers.AutoModelForCausalLM.from_config(config)
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    made = made.requires_grad_(False).eval()
    head = model.head(made)
    assert head.weight is None
    rows, learned = batch()
    states, targets = model.labelled(made, head, rows, learned, CPU)
    logits = made(input_ids=torch.tensor([rows[0]])).logits[0]
    marks = torch.tensor([*learned[0][1:], False])
    torch.testing.assert_close(states[: int(marks.sum())], logits[marks], rtol=1e-4, atol=1e-4)
    expected = torch.nn.functional.cross_entropy(states.float(), targets, reduction="sum")
    found, gradient = loss.total(states, targets, head)
    assert found == pytest.approx(expected.item(), rel=1e-5)
    assert gradient.shape == states.shape


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_fast_adapter_computes_what_peft_computes(dropout: float) -> None:
    import peft

    base = tiny_model("llama, tied head")
    tuned = lora.add(base, job.LoRA(rank=8, alpha=24, dropout=dropout), "base")
    for weight in lora.parameters(tuned).values():
        torch.nn.init.normal_(weight, std=0.1)
    tuned.train()
    ids = torch.tensor(batch()[0][:1])
    weights = list(lora.parameters(tuned).values())
    torch.manual_seed(3)
    mine = tuned(input_ids=ids).logits
    gradients = torch.autograd.grad(mine.square().sum(), weights)
    for layer in lora.layers(tuned):
        del layer.forward
    assert isinstance(next(lora.layers(tuned)), peft.tuners.lora.Linear)
    torch.manual_seed(3)
    theirs = tuned(input_ids=ids).logits
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients, torch.autograd.grad(theirs.square().sum(), weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_disabling_the_adapter_gives_the_base_model() -> None:
    base = tiny_model("qwen2")
    ids = torch.tensor(batch()[0][:1])
    expected = base(input_ids=ids).logits
    tuned = lora.add(base, job.LoRA(rank=8), "base")
    for weight in lora.parameters(tuned).values():
        torch.nn.init.normal_(weight)
    with lora.disabled(tuned):
        assert torch.equal(tuned(input_ids=ids).logits, expected)
    assert not torch.equal(tuned(input_ids=ids).logits, expected)


@pytest.mark.parametrize(
    "modules, names",
    [
        (job.Modules.ATTENTION, ["k_proj", "o_proj", "q_proj", "v_proj"]),
        (job.Modules.MLP, ["down_proj", "gate_proj", "up_proj"]),
        (job.Modules.ALL_LINEAR, ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]),
    ],
)
def test_targets_are_the_linear_layers_and_never_the_head(modules: job.Modules, names: list[str]) -> None:
    assert lora.targets(tiny_model("llama, untied head"), modules) == names


def test_a_model_is_loaded_frozen_and_only_from_safetensors(base: pathlib.Path) -> None:
    loaded = model.load(base, job.Precision.FLOAT32, CPU)
    assert not any(weight.requires_grad for weight in loaded.parameters())
    assert model.load(base, job.Precision.BFLOAT16, CPU).dtype is torch.bfloat16
