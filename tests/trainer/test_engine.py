"""The trainer's own forward and backward pass against transformers, PEFT and autograd, one example at a time."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.trainer import decoders
from tests.trainer.decoders import close, one_by_one, rows

from finetune_api import job
from finetune_trainer.engine import (
    attention,
    buffers,
    flex_attention,
    fused,
    lora,
    loss,
    model,
    passes,
    sizes,
)
from finetune_trainer.training import objective

CPU = torch.device("cpu")


def fast(tuned: Any) -> passes.Fast:
    """The fast engine; what is wrong in it must not be hidden by the other, which is taken then."""
    motor = passes.of(tuned, model.head(tuned.get_base_model()), CPU)
    assert isinstance(motor, passes.Fast)
    return motor


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("modules", list(job.Modules))
@pytest.mark.parametrize("family", decoders.FAMILIES)
def test_packed_and_shared_equals_one_by_one(family: str, modules: job.Modules, checkpointing: bool) -> None:
    tuned = decoders.made(decoders.FAMILIES[family](), modules)
    total, wanted = one_by_one(tuned, rows())
    head = model.head(tuned.get_base_model())
    motor = passes.of(tuned, head, CPU)
    if checkpointing:
        motor.checkpoint()
    assert isinstance(motor, passes.Fast)
    value = objective.Supervised().learn(motor, rows(), 1)
    assert value == pytest.approx(total, rel=1e-5)
    close(lora.parameters(tuned), wanted)
    assert objective.Supervised().value(motor, rows()) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("family", decoders.FAMILIES)
def test_gpu_attention_computes_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but FlexAttention's kernel, which has no backward pass on a CPU: its mask, its layouts, its arguments."""
    monkeypatch.setattr(attention, "of", lambda batch, _: flex_attention.FlexAttention(batch))
    tuned = decoders.made(decoders.FAMILIES[family]())
    total, wanted = one_by_one(tuned, rows())
    motor = fast(tuned)
    assert objective.Supervised().learn(motor, rows(), 1) == pytest.approx(total, rel=1e-5)
    close(lora.parameters(tuned), wanted)


@pytest.mark.parametrize("rows_of_a_block", [64, 256])
def test_blocks_of_rows_change_nothing(rows_of_a_block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "ROWS", rows_of_a_block)
    tuned = decoders.made(decoders.FAMILIES["qwen 3"]())
    total, wanted = one_by_one(tuned, rows())
    motor = fast(tuned)
    assert objective.Supervised().learn(motor, rows(), 1) == pytest.approx(total, rel=1e-5)
    close(lora.parameters(tuned), wanted)


def test_one_micro_batch_leaves_nothing_behind_for_the_next() -> None:
    """Buffers are used again: a large batch before a small one must not show."""
    tuned = decoders.made(decoders.FAMILIES["gemma 2, soft-capping"]())
    few = rows()[2:4]
    _, wanted = one_by_one(tuned, few)
    motor = fast(tuned)
    objective.Supervised().learn(motor, rows(), 1)
    for weight in lora.parameters(tuned).values():
        weight.grad = None
    objective.Supervised().learn(motor, few, 1)
    close(lora.parameters(tuned), wanted)


def test_the_optimizers_changes_reach_the_next_pass() -> None:
    tuned = decoders.made(decoders.FAMILIES["llama 3"]())
    motor = fast(tuned)
    with torch.no_grad():
        for weight in lora.parameters(tuned).values():
            weight.mul_(-0.5)
    motor.refresh()
    total, wanted = one_by_one(tuned, rows())
    assert objective.Supervised().learn(motor, rows(), 1) == pytest.approx(total, rel=1e-5)
    close(lora.parameters(tuned), wanted)


def test_in_bfloat16_the_loss_is_that_of_transformers() -> None:
    tuned = decoders.made(decoders.FAMILIES["qwen 2.5"]())
    exact, _ = one_by_one(tuned, rows())
    for name, weight in tuned.named_parameters():
        if "lora_" not in name:
            weight.data = weight.data.bfloat16()
    motor = fast(tuned)
    assert objective.Supervised().value(motor, rows()) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("plain", [False, True])
def test_in_bfloat16_an_update_smaller_than_half_a_unit_in_the_last_place_arrives(plain: bool) -> None:
    """Added to an output that is rounded already, as PEFT does, it would vanish: the first steps of a training teach little."""
    import peft

    torch.manual_seed(0)
    layer = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(256, 512, bias=False, dtype=torch.bfloat16)})
    tuned = peft.get_peft_model(layer, peft.LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj"]))
    adapted = tuned.base_model.model["q_proj"]
    a, b = adapted.lora_A[lora.ADAPTER].weight, adapted.lora_B[lora.ADAPTER].weight
    with torch.no_grad():
        b.copy_(torch.randn_like(b).sign() * 2e-5)  # as AdamW's first step; about 1e-4 of the output
    x = torch.randn(64, 256, dtype=torch.bfloat16)
    with torch.no_grad():
        update = 2 * x.float() @ a.t() @ b.t()
        exact = x.float() @ adapted.base_layer.weight.float().t()
        theirs = adapted(x).float()
        if plain:
            mine = lora._forward(adapted, x).float()
        else:
            fast = fused.Fused([adapted], "qkv", buffers.BufferPool(torch.bfloat16, CPU))
            fast.refresh()
            inputs = torch.cat([x, x.new_zeros(64, 16)], 1)
            mine = fast.forward(inputs, torch.empty(64, 512, dtype=torch.bfloat16)).float()

    def arrives(output: torch.Tensor) -> float:
        return float(((output - exact) * update).sum() / update.square().sum())

    assert arrives(mine) == pytest.approx(1, abs=0.3)
    assert arrives(theirs) < 0.5


@pytest.mark.parametrize("kind", decoders.UNKNOWN)
def test_an_unknown_family_takes_the_slower_path_and_logs_why(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    tuned = decoders.made(decoders.UNKNOWN[kind]())
    total, wanted = one_by_one(tuned, rows())
    motor = passes.of(tuned, model.head(tuned.get_base_model()), CPU)
    assert isinstance(motor, passes.Plain)
    assert not motor.pads
    assert any("slowly" in line or "full logits" in line for line in caplog.messages), "it says so"
    assert objective.Supervised().learn(motor, rows(), 1) == pytest.approx(total, rel=1e-5)
    close(lora.parameters(tuned), wanted)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_takes_the_slower_path(checkpointing: bool) -> None:
    tuned = decoders.made(decoders.FAMILIES["llama 3"](), dropout=0.2)
    motor = passes.of(tuned, model.head(tuned.get_base_model()), CPU)
    if checkpointing:
        motor.checkpoint()
    assert isinstance(motor, passes.Plain)
    torch.manual_seed(5)
    first = objective.Supervised().learn(motor, rows(), 1)
    torch.manual_seed(5)
    assert objective.Supervised().learn(motor, rows(), 1) == first
    assert objective.Supervised().learn(motor, rows(), 1) != first


@pytest.mark.parametrize("plain", [False, True])
def test_with_the_adapters_off_it_is_the_base_model(plain: bool) -> None:
    tuned = decoders.made(decoders.FAMILIES["gemma 3, alternating windows"](), dropout=0.1 if plain else 0.0)
    head = model.head(tuned.get_base_model())
    motor = passes.of(tuned, head, CPU)
    assert isinstance(motor, passes.Plain if plain else passes.Fast)
    found = motor.forward(rows(), save=False, adapted=False)
    mine = float(loss.log_probabilities(found.states, found.targets, head).sum())
    with lora.disabled(tuned), torch.no_grad():
        total = 0.0
        for row in rows():
            logits = tuned(input_ids=torch.tensor(row.ids)[None]).logits[0].float()
            at = np.flatnonzero(row.learned[1:])
            total += float(
                torch.nn.functional.cross_entropy(logits[at], torch.tensor(row.ids[at + 1]), reduction="sum")
            )
    assert -mine == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("family", decoders.FAMILIES)
def test_the_head_of_every_family_is_known_in_bfloat16(family: str) -> None:
    """Gemma 2's logits are capped by transformers in bfloat16 and here in float32: rounding, no reason for full logits."""
    base = decoders.made(decoders.FAMILIES[family]()).get_base_model()
    for weight in base.parameters():
        weight.data = weight.data.to(torch.bfloat16)
    assert model.head(base).weight is not None
