"""The memory estimate: its structure, its buffers one by one, and a small training process measured."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.bench.trainer import process
from tests.trainer import decoders as families

from finetune_api import basemodel, job, run
from finetune_trainer.data import corpus
from finetune_trainer.engine import model, passes, prefix_tree
from finetune_trainer.planning import architecture, forecast, memory, parallelism, workload
from finetune_trainer.stages import estimate, preflight
from finetune_trainer.training import objective

LLAMA_8B = architecture.Shape(
    basemodel.Architecture(
        layers=32,
        hidden_size=4096,
        intermediate_size=14336,
        attention_heads=32,
        key_value_heads=8,
        head_dim=128,
        vocabulary_size=128256,
        max_positions=131072,
    )
)
GIB = 2**30
EXAMPLES = workload.Examples(longest=2048, row=2048, average=500, step=8000)
GPU = workload.Device("cuda")


def wanted(examples: workload.Examples = EXAMPLES, device: workload.Device = GPU, **training: Any) -> workload.Workload:
    return workload.Workload(LLAMA_8B, job.Training.model_validate(training), examples, device)


def total(of: workload.Workload, tokens: int = 2048, checkpointing: bool = False) -> int:
    return memory.memory(of, tokens, checkpointing=checkpointing).total


# -- numbers of a model --


def test_parameters_follow_from_the_architecture() -> None:
    assert LLAMA_8B.parameters == 8_030_261_248
    assert LLAMA_8B.adapter(job.LoRA(rank=16)) == 41_943_040
    parts = [LLAMA_8B.adapter(job.LoRA(target_modules=modules)) for modules in ("Attention", "MLP")]
    assert sum(parts) == LLAMA_8B.adapter(job.LoRA())


def test_a_config_without_the_usual_names_has_no_estimate() -> None:
    assert architecture.of({"model_type": "mamba", "d_model": 3}) is None
    config = {
        "num_hidden_layers": 2,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 2,
        "vocab_size": 384,
    }
    found = architecture.of({"text_config": config})
    assert found is not None
    assert (found.numbers.head_dim, found.numbers.key_value_heads) == (64, 2)
    assert not found.fast, "a family that the decoder does not know is trained by the plain engine"


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_config_of_each_family_tells_its_parameters(family: str) -> None:
    tuned = families.made(families.FAMILIES[family]())
    found = architecture.of(tuned.config.to_dict())
    assert found is not None
    assert found.fast
    base = sum(weight.numel() for weight in tuned.parameters() if not weight.requires_grad)
    adapter = sum(weight.numel() for weight in tuned.parameters() if weight.requires_grad)
    assert found.parameters == pytest.approx(base, rel=0.02), "all but biases and small norms"
    assert found.adapter(job.LoRA(rank=8)) == adapter


def test_the_estimate_for_gpus_is_that_of_the_trainer_image_whatever_this_machine_has(
    world: Callable[..., run.Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A laptop without a compiler gets the same answer as one with it, and it says for what it holds."""
    texts = []
    spec = world(gpus=1, memory="22Gi")
    for path in (os.environ["PATH"], ""):
        monkeypatch.setenv("PATH", path)
        monkeypatch.delenv("CC", raising=False)
        texts.append(estimate.text(estimate.estimate(spec)))
    assert texts[0] == texts[1]
    assert "trainer image" in texts[0]
    assert "C compiler" in texts[0]
    on_cpus = estimate.estimate(world(memory="22Gi"))
    assert "C compiler" not in estimate.text(on_cpus)
    assert on_cpus.document()["compiledAttention"] is False


# -- structure --


def test_every_factor_moves_the_total_in_its_direction() -> None:
    base = total(wanted())
    assert total(wanted(), 4096) > base
    assert total(wanted(lora={"rank": 64})) > base
    assert total(wanted(device=workload.Device("cuda", width=4))) > base
    assert total(wanted(device=workload.Device("cuda", compiled=False))) > base
    assert total(wanted(lora={"targetModules": "Attention"})) < base
    assert total(wanted(), checkpointing=True) < base
    assert total(wanted(method="QLoRA")) < base
    several = workload.Device("cuda", processes=4, shards=4)
    assert total(wanted(device=several)) < base
    whole = workload.Device("cuda", processes=4)
    in_4_bits = [
        memory.memory(wanted(method="QLoRA", device=one), 2048, checkpointing=True).weights for one in (several, whole)
    ]
    assert in_4_bits[0] < in_4_bits[1], "sharded, too"
    cpu = wanted(device=workload.Device("cpu"))
    longer = dataclasses.replace(EXAMPLES, row=4096)
    assert total(wanted(longer, workload.Device("cpu"))) > total(cpu), "probabilities grow with the length of a row"


def test_known_models_take_what_is_known_of_them() -> None:
    assert 16 * GIB < total(wanted(), 1024) < 26 * GIB
    whole = memory.memory(wanted(), 1024, checkpointing=True)
    assert whole.weights / GIB == pytest.approx(8.03e9 * 2 / GIB, rel=0.02)
    quarter = memory.memory(wanted(method="QLoRA"), 1024, checkpointing=True)
    assert 5 * GIB < quarter.weights < 7 * GIB, "8 billion weights in 4 bits, the embedding and the head in 16"
    assert whole.adapter == 41_943_040 * 16


def test_the_terms_are_named_once_and_sum_up_to_the_total() -> None:
    found = memory.memory(wanted(device=workload.Device("cpu"), method="QLoRA"), 2048, checkpointing=False)
    names = [term.name for term in found.terms]
    assert len(names) == len(set(names))
    assert found.total == sum(found.of(purpose) for purpose in memory.Purpose)


def test_a_dropout_takes_the_plain_engine() -> None:
    assert wanted().fast
    plain = wanted(lora={"dropout": 0.1})
    assert not plain.fast
    assert total(plain, 4096) > total(wanted(), 4096), "autograd keeps more than our own passes"


# -- buffers --

TERMS = {
    "q": "queries, keys, values",
    "k": "queries, keys, values",
    "v": "queries, keys, values",
    "unnormed": "queries and keys before their norms",
    "mixed": "attention's output",
    "probabilities": "attention's probabilities",
    "middle": "residual stream after attention",
    "gates": "feed-forward gates",
    "attended": "outputs of blocks before their norms",
    "projected": "outputs of blocks before their norms",
}


@pytest.mark.parametrize("length, count", [(48, 20), (608, 2)])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama 3", "qwen 3", "gemma 3, alternating windows"])
def test_each_term_is_what_its_buffers_take(family: str, checkpointing: bool, length: int, count: int) -> None:
    tuned = families.made(families.FAMILIES[family]())
    motor = passes.of(tuned, model.head(tuned.get_base_model()), torch.device("cpu"))
    if checkpointing:
        motor.checkpoint()
    assert isinstance(motor, passes.Fast)
    number = np.random.default_rng(0)
    rows = [
        prefix_tree.TokenRow(np.append(at + 1, number.integers(1, 384, length)), np.ones(length + 1, dtype=bool))
        for at in range(count)
    ]
    objective.Supervised().learn(motor, rows, 1)
    objective.Supervised().value(motor, rows)

    shape = architecture.of(tuned.config.to_dict())
    assert shape is not None
    training = job.Training(lora=job.LoRA(rank=8), batch_size=count)
    one = workload.Workload(shape, training, workload.Examples.of_one_kind(length, count), workload.Device("cpu", 4))
    found = memory.memory(one, length * count, checkpointing=checkpointing)
    held: dict[str, int] = {}
    for name, buffer in motor._inner.memory._buffers.items():
        term = TERMS.get(name[0], "work") if isinstance(name, tuple) else "work"
        term = "inputs of the layers" if isinstance(name, tuple) and name[0] == "y" else term
        held[term] = held.get(term, 0) + buffer.numel() * buffer.element_size()
    held["inputs of the layers"] += rows_of(held, shape, found)
    estimated = {term.name: term.bytes for term in found.terms if term.purpose is memory.Purpose.ACTIVATIONS}
    work = held.pop("work")
    assert estimated == {name: pytest.approx(size, rel=0.02) for name, size in held.items()}
    assert work < found.of(memory.Purpose.WORK) < 3 * work, "it has what a layer makes and forgets too"


def rows_of(held: dict[str, int], shape: architecture.Shape, found: memory.Memory) -> int:
    """Bytes of the embedding's output, which is not a buffer of the pool."""
    return held["inputs of the layers"] // shape.numbers.layers


@pytest.mark.parametrize("shared, own, count", [(0, 100, 8), (400, 100, 16), (900, 60, 4), (40, 300, 8)])
def test_tokens_after_a_shared_beginning_have_probabilities_for_it(shared: int, own: int, count: int) -> None:
    number = np.random.default_rng(0)
    beginning = number.integers(1, 384, shared)
    rows = [np.concatenate([beginning, [at + 1], number.integers(1, 384, own)]) for at in range(count)]
    batch = prefix_tree.build([prefix_tree.TokenRow(ids, np.ones(len(ids), dtype=bool)) for ids in rows])
    found = sum(len(tile.lengths) * tile.longest * (tile.before + tile.longest) for tile in batch.tiles)
    length, distinct = shared + own, shared + own * count
    examples = workload.Examples(length, length, length, distinct)
    one = workload.Workload(LLAMA_8B, job.Training(batch_size=count), examples, workload.Device("cpu"))
    assert memory.mean_keys_in_step(one) * distinct == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize("length", [1, 16, 100, 256, 300, 1024])
def test_the_span_of_a_row_is_that_of_its_tiles(length: int) -> None:
    ids = np.arange(1, length + 2)
    batch = prefix_tree.build([prefix_tree.TokenRow(ids, np.ones(length + 1, dtype=bool))])
    mine = [tile for tile in batch.tiles if tile.begin < length]
    scores = sum(len(tile.lengths) * tile.longest * (tile.before + tile.longest) for tile in mine)
    assert memory.mean_keys(length) * length == pytest.approx(scores)


# -- what train runs with --


def setup(
    gib: float, device: workload.Device = GPU, examples: workload.Examples = EXAMPLES, **training: Any
) -> memory.Setup:
    return memory.setup(wanted(examples, device, **training), int(gib * GIB))


def test_a_large_gpu_trains_without_checkpointing_and_a_small_one_with_it() -> None:
    assert not setup(80).checkpointing
    assert setup(24).checkpointing
    assert setup(24).tokens >= 2048
    assert setup(24).memory.total < 24 * GIB
    assert setup(8).tokens == 2048, "what cannot fit is still tried with the smallest micro-batch"


def test_the_spec_decides_about_checkpointing_where_it_says_so() -> None:
    for mode, expected in (("Enabled", True), ("Disabled", False)):
        assert setup(24, gradientCheckpointing=mode).checkpointing is expected


def test_less_memory_never_makes_a_larger_micro_batch() -> None:
    tokens = [setup(gib, gradientCheckpointing="Enabled").tokens for gib in (80, 40, 30, 24, 20, 16)]
    assert tokens == sorted(tokens, reverse=True)


def test_a_cpu_takes_no_more_tokens_than_it_gains_from() -> None:
    cpu = workload.Device("cpu")
    apart = workload.Examples(longest=140, row=140, average=117, step=1800)
    together = dataclasses.replace(apart, average=500)
    assert setup(64, cpu, apart).tokens <= 640, "parts of a step instead of the whole"
    assert setup(64, cpu, together).tokens >= 1800, "a step that shares much stays in one piece"
    assert setup(64, cpu, dataclasses.replace(apart, step=300)).tokens < 512
    many = dataclasses.replace(together, step=3600)
    assert setup(64, dataclasses.replace(cpu, processes=2), many).tokens >= 3600 // 2, "each process has its part"


def test_shared_beginnings_are_found_by_drawing_steps(tmp_path: pathlib.Path) -> None:
    def made(name: str, beginning: int) -> corpus.Corpus:
        writer = corpus.Writer(tmp_path / name)
        number = np.random.default_rng(1)
        for _ in range(50):
            ids = np.concatenate([np.full(beginning, 7), number.integers(100, 10_000, 20)])
            writer.add(ids, np.ones(len(ids), dtype=bool), False)
        return writer.finish("", pairs=False, template=None)

    assert made("apart", 5).step(16) == 16 * 25, "prefixes too short for the tree are not shared"
    assert made("together", 400).step(16) == 400 + 16 * 20


# -- advice --


def test_advice_names_changes_that_fit() -> None:
    gpu = wanted(device=GPU, gradientCheckpointing="Disabled", lora={"rank": 256})
    assert forecast.advice(gpu, 400 * GIB) is None
    advice = forecast.advice(gpu, 22 * GIB)
    assert advice is not None
    assert "training.method QLoRA" not in advice, "that alone does not do"
    small = forecast.advice(wanted(), 16 * GIB)
    assert small is not None
    assert "training.method QLoRA" in small
    assert "resources.gpuType" in small
    assert "resources.gpuType l4 (22Gi; " in (
        forecast.advice(wanted(), 16 * GIB, {"a100": 40, "l4": 22, "t4": 15}) or ""
    )
    assert parallelism.cannot_fit(wanted(), 12 * GIB)
    assert not parallelism.cannot_fit(wanted(device=workload.Device("cuda", processes=4)), 12 * GIB)


@pytest.mark.parametrize("size, text", [(3 * GIB, "3.0Gi"), (21.4 * GIB, "21Gi"), (0.52 * GIB, "0.5Gi")])
def test_sizes_are_written_as_kubernetes_quantities(size: float, text: str) -> None:
    assert memory.text(int(size)) == text


@pytest.mark.parametrize("text, size", [("22Gi", 22 * GIB), ("1.5G", 1_500_000_000), ("512Mi", GIB // 2), ("7", 7)])
def test_quantities_are_read_as_kubernetes_reads_them(text: str, size: int) -> None:
    assert forecast.size(text) == size


def test_an_invalid_quantity_is_refused_with_an_example() -> None:
    with pytest.raises(ValueError, match="22Gi"):
        forecast.size("22 gigabytes")


# -- a process --


@pytest.mark.slow
def test_a_small_training_process_takes_what_is_estimated(
    world: Callable[..., run.Run], tmp_path: pathlib.Path
) -> None:
    """The libraries are nearly all of it here; docs/benchmarks/estimate.md has larger models."""
    spec = world(training={"maxSteps": 2})
    preflight.preflight(spec)
    path = tmp_path / "run.json"
    path.write_text(spec.model_dump_json(by_alias=True, exclude_none=True))
    command = [sys.executable, "-m", "finetune_trainer"]
    environment = {"FINETUNE_WORK": str(tmp_path / "own"), "FINETUNE_TERMINATION_PATH": str(tmp_path / "end")}
    answer = subprocess.run(
        [*command, "estimate", "--run", path, "--output", "json"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = json.loads(answer.stdout)["chosen"]["bytes"]
    found = process.run([*command, "train", "--run", path], environment, tmp_path / "train.log").peak
    assert expected == pytest.approx(found, rel=0.25)
