"""Transformers' passes without padding, against the same passes one example at a time; and who does not take them."""

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen
import transformers
from tests.trainer import decoders

from finetune_trainer.engine import lora, loss, model, packing, passes, prefix_tree, sharded
from finetune_trainer.training import batches, objective

CPU = torch.device("cpu")

MIXED: dict[str, Any] = decoders.FAMILIES | {
    "experts": lambda: transformers.Qwen3MoeConfig(
        **decoders.SIZE, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48
    ),
    "positions from a table": lambda: transformers.OPTConfig(
        vocab_size=384,
        hidden_size=64,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=64,
        dropout=0,
    ),
    "another attention": decoders.UNKNOWN["another attention"],
    "an unknown head": decoders.UNKNOWN["an unknown head"],
}

LEFT_PADDED: dict[str, Any] = {
    "convolutions over tokens": lambda: transformers.Lfm2Config(
        **decoders.SIZE, layer_types=["conv", "full_attention", "conv"]
    ),
    "its own attention, and sums in place": lambda: transformers.FalconConfig(
        vocab_size=384, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, new_decoder_architecture=True
    ),
    "a bias made of the mask": lambda: transformers.BloomConfig(vocab_size=384, hidden_size=64, n_layer=2, n_head=4),
}


def made(config: Any, attention: str = "sdpa") -> Any:
    tuned = decoders.made(config)
    if tuned.get_base_model()._supports_sdpa:
        for one in packing.configs(tuned):
            one._attn_implementation = attention
    return tuned


def plain(tuned: Any) -> passes.Plain:
    return passes.Plain(tuned, model.head(tuned.get_base_model()), CPU)


def learned(motor: passes.Plain, tuned: Any) -> None:
    """Checks loss and gradients of one pass."""
    total, wanted = decoders.one_by_one(tuned, decoders.rows())
    assert objective.Supervised().learn(motor, decoders.rows(), 1) == pytest.approx(total, rel=1e-5)
    decoders.close(lora.parameters(tuned), wanted)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", MIXED)
def test_packed_equals_one_by_one(family: str, checkpointing: bool) -> None:
    tuned = made(MIXED[family](), "eager" if checkpointing else "sdpa")
    motor = plain(tuned)
    assert not motor.pads
    if checkpointing:
        motor.checkpoint()
    learned(motor, tuned)
    assert packing.implementation(tuned) != packing.NAME, "outside of the passes it is the model that it was"


def test_nothing_is_padded_and_what_no_learned_token_needs_is_left_out() -> None:
    tuned = made(decoders.UNKNOWN["another attention"]())
    motor, seen = plain(tuned), []
    model.decoder(tuned).get_input_embeddings().register_forward_hook(lambda _, given, __: seen.append(given[0].shape))
    motor.forward(decoders.rows(), save=True)
    assert seen == [(1, sum(prefix_tree.needed(row) for row in decoders.rows()))]


def test_rows_of_which_nothing_is_learned_take_a_pass_without_a_result() -> None:
    motor = plain(made(decoders.UNKNOWN["another attention"]()))
    nothing = prefix_tree.TokenRow(np.arange(9), np.zeros(9, dtype=bool))
    assert len(motor.forward([nothing, nothing], save=True).states) == 0
    motor.backward(torch.zeros(0, 64))
    one = decoders.rows()[0]
    assert set(motor.forward([nothing, one], save=False).rows.tolist()) == {1}


@pytest.mark.parametrize("kind", LEFT_PADDED)
def test_what_cannot_be_packed_stays_padded_and_says_so(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    tuned = made(LEFT_PADDED[kind]())
    motor = plain(tuned)
    assert motor.pads
    assert "padded" in (motor.note or "")
    assert any("not packed" in line for line in caplog.messages)
    learned(motor, tuned)


@pytest.mark.parametrize(
    "family, votes", [("llama 3", [True, False, True]), ("another attention", [False, False, True])]
)
def test_no_process_takes_passes_that_did_not_prove_themselves_in_another(
    family: str, votes: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    """Each asks the others once for its own passes and once for each way of packing, however they end here."""
    tuned, asked = made(MIXED[family]()), []
    total, wanted = decoders.one_by_one(tuned, decoders.rows())

    def agreed(holds: bool) -> bool:
        asked.append(holds)
        return False

    motor = passes.of(tuned, model.head(tuned.get_base_model()), CPU, agreed=agreed)
    assert asked == votes
    assert isinstance(motor, passes.Plain)
    assert motor.pads
    assert "padded" in (motor.note or "")
    assert any("not packed" in line for line in caplog.messages)
    assert objective.Supervised().learn(motor, decoders.rows(), 1) == pytest.approx(total, rel=1e-5)
    decoders.close(lora.parameters(tuned), wanted)


def test_a_comparison_that_fails_within_a_layer_leaves_a_sharded_model_as_it_was() -> None:
    tuned = made(LEFT_PADDED["a bias made of the mask"]())
    total, wanted = decoders.one_by_one(tuned, decoders.rows())
    head = model.head(tuned.get_base_model())
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        sharded.shard(tuned, CPU)
        motor = passes.Plain(tuned, head, CPU)
        assert motor.pads
        assert objective.Supervised().learn(motor, decoders.rows(), 1) == pytest.approx(total, rel=1e-5)
        decoders.close(lora.parameters(tuned), wanted)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("shards", [False, True])
def test_memory_that_is_short_while_packing_is_compared_means_padding_where_no_other_process_waits(
    shards: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(packing, "_compare", short)
    monkeypatch.setattr(packing, "is_sharded", lambda _: shards)
    tuned = made(decoders.UNKNOWN["another attention"]())
    with pytest.raises(torch.OutOfMemoryError) if shards else contextlib.nullcontext():
        assert plain(tuned).pads


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_window_that_is_lost_in_packing_is_seen(precision: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = made(decoders.FAMILIES["mistral, sliding window"]())
    tuned.get_base_model().config.sliding_window = 4096  # longer than all examples of the comparison
    for name, weight in tuned.named_parameters():
        weight.data = weight.data if "lora_" in name else weight.data.to(precision)
    assert not plain(tuned).pads
    monkeypatch.setattr(packing, "_unless_causal", lambda _: None)
    assert plain(tuned).pads
    assert tuned.get_base_model().config.sliding_window == 4096


def kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    begins: torch.Tensor,
    same: torch.Tensor,
    longest: int,
    _: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """What torch documents of its kernel of variable length, which runs on GPUs alone: [T, heads, width]."""
    lengths = begins.diff()
    assert begins is same
    assert longest == int(lengths.max())
    assert window_size[1] == 0
    owners = torch.repeat_interleave(lengths)
    distance = torch.arange(len(query))[:, None] - torch.arange(len(query))
    seen = (owners[:, None] == owners) & (distance >= 0)
    if window_size[0] >= 0:
        seen &= distance <= window_size[0]
    parts = [part.transpose(0, 1)[None] for part in (query, key, value)]
    mixed = torch.nn.functional.scaled_dot_product_attention(*parts, attn_mask=seen, scale=scale, enable_gqa=enable_gqa)
    return mixed[0].transpose(0, 1)


@pytest.mark.parametrize("family", ["llama 3", "mistral, sliding window", "gemma 3, alternating windows"])
def test_a_kernel_for_all_examples_gets_their_ends_and_windows(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(packing, "_may_take_kernel", lambda *_: True)
    monkeypatch.setattr(
        torch.nn.attention.varlen, "varlen_attn", lambda *given, **named: calls.append(1) or kernel(*given, **named)
    )
    tuned = made(decoders.FAMILIES[family]())
    motor = plain(tuned)
    calls.clear()
    learned(motor, tuned)
    assert len(calls) == 3, "once a layer"


def test_masks_that_the_kernel_cannot_have_are_refused() -> None:
    row = packing.Row([20, 30], "sdpa", packing.VARLEN)
    owners = torch.repeat_interleave(torch.tensor(row.lengths))

    def causal(_: Any, __: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (owners[query] == owners[key]) & (key <= query)

    def chunks(*at: Any) -> torch.Tensor:
        return causal(*at) & (at[2] // 8 == at[3] // 8)

    assert packing._is_causal(row, causal, None, CPU)
    assert not packing._is_causal(row, causal, 8, CPU)
    assert not packing._is_causal(row, chunks, 8, CPU)


def test_micro_batches_without_padding_fill_the_budget_and_share_nothing() -> None:
    units = [[prefix_tree.TokenRow(np.arange(40), np.ones(40, dtype=bool))] for _ in range(4)]
    assert [len(part) for part in batches.cut(units, 80, share=False)] == [2, 2]
    assert [len(part) for part in batches.cut(units, 80)] == [4]


def test_the_standard_path_of_a_head_that_is_unknown_packs_logits() -> None:
    tuned = made(decoders.FAMILIES["llama 3"]())
    packed = packing.proven(tuned, loss.Head(None), CPU)
    assert packed is not None
    assert packed.labelled(decoders.rows())[0].shape[1] == 384
