"""Training steps on a GPU that is not there, for every model of the catalogue in its real shapes.

No CPU tensor meets a CUDA one, and the process waits for the GPU only where it must: for the loss of each micro-batch, for the
norm of the gradients and, among several processes, for their sums. Numbers are not computed: `test_engine` compares these.
"""

import pathlib
import types
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from tests.trainer import decoders, fake_gpu, tiny

from finetune_api import run
from finetune_trainer.data import corpus
from finetune_trainer.engine import comparison, decoder, flex_attention, lora, loss, model, passes
from finetune_trainer.planning import memory
from finetune_trainer.process import errors, progress
from finetune_trainer.store import storage
from finetune_trainer.training import batches, checkpoint, loop, objective, processes, shortage

CHART = pathlib.Path(__file__).parents[2] / "charts/finetune-operator/values.yaml"

CATALOGUE: dict[str, Any] = yaml.safe_load(CHART.read_text())["catalogue"]

CLASSES: dict[str, Any] = {
    "llama-3.1": transformers.LlamaConfig,
    "qwen-2.5": transformers.Qwen2Config,
    "mistral": transformers.MistralConfig,
    "gemma-2": transformers.Gemma2Config,
}

OTHERS: dict[str, Any] = {
    "qwen 3": transformers.Qwen3Config,
    "gemma 3": transformers.Gemma3TextConfig,
}
"""Families that the passes know and the catalogue has no model of, in the shapes of the configuration's defaults."""

STEP = {"loss.total": 2, "loop.Loop.step": 1}
"""Waits of a step of two micro-batches."""


def config_of(name: str) -> Any:
    """The configuration of a model of the catalogue."""
    entry = CATALOGUE[name]
    shape = entry["architecture"]
    return CLASSES[entry["family"]](
        vocab_size=shape["vocabularySize"],
        hidden_size=shape["hiddenSize"],
        intermediate_size=shape["intermediateSize"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["attentionHeads"],
        num_key_value_heads=shape["keyValueHeads"],
        head_dim=shape["headDim"],
        max_position_embeddings=shape["maxPositions"],
        tie_word_embeddings=shape["tiedEmbeddings"],
    )


def few_layers(config: Any, count: int = 2) -> Any:
    """Some of the layers, the others have the same shapes: in families with windows the first two have one each way."""
    config.num_hidden_layers = count
    if kinds := getattr(config, "layer_types", None):
        first = next((place for place, pair in enumerate(pairwise(kinds)) if len(set(pair)) == 2), 0)
        config.layer_types = kinds[first : first + count]
    return config


def examples(count: int, pairs: bool = False) -> corpus.Corpus:
    """Rows of 300 to 700 tokens that begin with the same 200; every second half is learned."""
    random = np.random.default_rng(0)
    prefix = random.integers(1, 1000, 200)
    ids = [np.concatenate([prefix, random.integers(1, 1000, size)]) for size in random.integers(100, 500, count)]
    lengths = np.array([len(row) for row in ids])
    learned = [np.arange(len(row)) > len(row) // 2 for row in ids]
    ends = lengths.cumsum()
    trainable = np.array([int(row[1:].sum()) for row in learned], dtype=np.int32)
    flat = np.concatenate(ids).astype(np.int32)
    cut = np.zeros(count, dtype=bool)
    return corpus.Corpus(flat, np.concatenate(learned), ends - lengths, ends, trainable, cut, pairs)


def training(
    folder: pathlib.Path, config: Any, group: processes.ProcessGroup | None = None, **settings: Any
) -> loop.Loop:
    """The loop of a training on the fake GPU: real but for the weights."""
    document = tiny.run_document("file:///none", ["file:///none"], f"file://{folder}", training=settings)
    spec = run.Run.model_validate(document)
    tuned = fake_gpu.adapted(config, spec.training.lora)
    with fake_gpu.tensors():
        fake_gpu.move(tuned)
        inner = decoder.Decoder(model.decoder(tuned), fake_gpu.CUDA)
        engine = passes.Fast(inner, loss.head_of(tuned.get_base_model()), fake_gpu.CUDA)
        weights = lora.parameters(tuned)
        optimizer = torch.optim.AdamW(weights.values(), lr=0.0, weight_decay=0.0, fused=True)
    pairs = spec.training.objective == "DPO"
    data: Any = types.SimpleNamespace(train=examples(32, pairs), validation=examples(8, pairs))
    setup = memory.Setup(2200 if not pairs else 4400, False, memory.Memory())
    store = storage.of(spec.storage)
    return loop.Loop(
        spec,
        data,
        batches.plan(data.train.examples, spec.training),
        setup,
        engine,
        objective.of(spec.training),
        group or processes.ProcessGroup(),
        weights,
        optimizer,
        checkpoint.Saver(store, spec.layout, "fake", 1, lambda _: None),
        progress.Progress(spec, "train", 1),
        0.01,
        fake_gpu.CUDA,
    )


@pytest.fixture(autouse=True)
def without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Triton cannot compile for a GPU that is not there; attention takes torch's own kernels, with a mask."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    flex_attention._flex.cache_clear()
    yield
    flex_attention._flex.cache_clear()


QUICK = ("llama-3.1-8b-instruct", "gemma 3")
"""Families of which `make check` takes a step: a plain one, and one with windows in some layers."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in (*CATALOGUE, *OTHERS)],
)
def test_a_step_of_every_family_stays_on_the_gpu(name: str, tmp_path: pathlib.Path) -> None:
    made = training(tmp_path, few_layers(OTHERS[name]() if name in OTHERS else config_of(name)))
    with fake_gpu.tensors() as syncs:
        shortage.try_largest(made)
        syncs.clear()
        made.step()
    assert dict(syncs) == STEP
    assert {weight.grad.device for weight in made.weights.values() if weight.grad is not None} == {fake_gpu.CUDA}


@pytest.mark.slow
def test_more_layers_of_the_largest_model_wait_no_more_often(tmp_path: pathlib.Path) -> None:
    """Eight of its eighty, where the others have two: the passes go through them in a loop."""
    made = training(tmp_path, few_layers(config_of("llama-3.1-70b-instruct"), 8))
    with fake_gpu.tensors() as syncs:
        made.step()
    assert len(made.weights) == 8 * 7 * 2
    assert dict(syncs) == STEP


@pytest.mark.parametrize("family", decoders.FAMILIES)
def test_the_comparison_on_the_device_stays_there(family: str) -> None:
    """The fake answers each difference with 1, which is allowed here."""
    small = comparison.miniature(model.decoder(decoders.made(decoders.FAMILIES[family]())))
    with fake_gpu.tensors() as syncs:
        fake_gpu.move(small)
        ours = decoder.Decoder(small, fake_gpu.CUDA)
        syncs.clear()
        comparison.form(ours, small, fake_gpu.CUDA, 1.0)
    assert set(syncs) == {"comparison.equal"}
    assert {weight.grad.device for weight in lora.parameters(small).values() if weight.grad is not None} == {
        fake_gpu.CUDA
    }


def test_gradient_checkpointing_waits_no_more_often(tmp_path: pathlib.Path) -> None:
    made = training(tmp_path, few_layers(config_of("gemma-2-9b-it")))
    made.engine.checkpoint()
    with fake_gpu.tensors() as syncs:
        made.step()
    assert dict(syncs) == STEP


def test_a_preference_step_waits_for_its_value_alone(tmp_path: pathlib.Path) -> None:
    made = training(tmp_path, few_layers(config_of("qwen2.5-7b-instruct")), objective="DPO")
    with fake_gpu.tensors() as syncs:
        made.step()
    assert dict(syncs) == {"objective.Preference.learn": 2, "loss.total": 2, "loop.Loop.step": 1}


def test_several_processes_wait_for_their_sums_too(tmp_path: pathlib.Path) -> None:
    group = processes.ProcessGroup(0, 2, 0, fake_gpu.CUDA)
    made = training(tmp_path, few_layers(config_of("llama-3.1-8b-instruct")), group)
    with fake_gpu.processes(), fake_gpu.tensors() as syncs:
        with pytest.raises(errors.Stopped):  # the fake answers every question with 1: another process is to stop
            made.step()
        assert dict(syncs) == {"loss.total": 1, "processes.ProcessGroup.add": 3}
        made.mean(made.data.validation)


def test_a_validation_and_a_checkpoint_leave_the_gpu_only_to_be_saved(tmp_path: pathlib.Path) -> None:
    made = training(tmp_path, few_layers(config_of("llama-3.1-8b-instruct")))
    with fake_gpu.tensors() as syncs:
        made.step()
        syncs.clear()
        made.validate()
        snapshot = made.snapshot()
        assert set(syncs) == {"objective.Supervised.value", "checkpoint.copy", "checkpoint.capture"}
        checkpoint.restore(snapshot, made.weights, made.optimizer)
        made.engine.refresh()
        made.step()
    assert {value.device for value in snapshot.adapter.values()} == {torch.device("cpu")}
