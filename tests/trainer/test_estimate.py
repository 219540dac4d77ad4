import pytest

from finetune_api import basemodel, job
from finetune_trainer import estimate

LLAMA_8B = basemodel.Architecture(
    layers=32,
    hidden_size=4096,
    intermediate_size=14336,
    attention_heads=32,
    key_value_heads=8,
    head_dim=128,
    vocabulary_size=128256,
    max_positions=131072,
)
GIB = 2**30


def test_parameters_follow_from_the_architecture() -> None:
    assert estimate.parameters(LLAMA_8B) == 8_030_261_248
    assert estimate.adapter_parameters(LLAMA_8B, job.LoRA(rank=16)) == 41_943_040


def test_more_tokens_need_more_memory_and_checkpointing_less() -> None:
    training = job.Training()
    few, many = (estimate.memory(LLAMA_8B, training, tokens, checkpointing=False).total for tokens in (1024, 4096))
    saved = estimate.memory(LLAMA_8B, training, 4096, checkpointing=True).total
    assert few < many
    assert saved < many
    assert 16 * GIB < few < 30 * GIB


def test_a_large_gpu_trains_without_checkpointing_and_a_small_one_with_it() -> None:
    def setup(gib: int, longest: int = 2048) -> estimate.Setup:
        return estimate.setup(
            LLAMA_8B, job.Training(), longest=longest, average=500, available=gib * GIB, device="cuda"
        )

    assert not setup(80).checkpointing
    assert setup(24).checkpointing
    assert setup(24).tokens >= 2048
    assert setup(24).memory.total < 24 * GIB
    assert setup(8).tokens == 2048, "what cannot fit is still tried with the smallest micro-batch"


def test_the_spec_decides_about_checkpointing_where_it_says_so() -> None:
    for mode, expected in (("Enabled", True), ("Disabled", False)):
        training = job.Training.model_validate({"gradientCheckpointing": mode})
        found = estimate.setup(LLAMA_8B, training, longest=100, average=90, available=24 * GIB, device="cuda")
        assert found.checkpointing is expected


@pytest.mark.parametrize("size, text", [(3 * GIB, "3.0Gi"), (21.4 * GIB, "21Gi"), (0.52 * GIB, "0.5Gi")])
def test_sizes_are_said_as_kubernetes_says_them(size: float, text: str) -> None:
    assert estimate.text(int(size)) == text


def test_a_config_without_the_usual_names_has_no_estimate() -> None:
    assert estimate.architecture({"model_type": "mamba", "d_model": 3}) is None
    config = {
        "num_hidden_layers": 2,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 2,
        "vocab_size": 384,
    }
    found = estimate.architecture({"text_config": config})
    assert found is not None
    assert (found.head_dim, found.key_value_heads) == (64, 2)
