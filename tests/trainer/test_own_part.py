"""A base model of which a process loads a part of each layer: what it holds, and at most holds meanwhile."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import pytest
import torch
import transformers
from tests.bench.estimate import fake
from tests.trainer import tiny

from finetune_api import job, reasons
from finetune_trainer.engine import lora, model, own_part
from finetune_trainer.process import errors

CPU = torch.device("cpu")

SHARES = 4


@dataclasses.dataclass(frozen=True)
class Case:
    folder: pathlib.Path
    quantised: bool
    """Whether training quantises."""
    in_4_bits: bool
    """Whether it trains on weights in 4 bits."""


@dataclasses.dataclass(frozen=True)
class Loaded:
    model: Any
    peak: int
    """Bytes that lived at once."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A base model whose layers are most of it, in float32."""
    made = tmp_path_factory.mktemp("base")
    tiny.make_tiny_model(made, hidden=256, layers=12)
    return made


@pytest.fixture(scope="module")
def stored(folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The same model as bitsandbytes stores it in 4 bits."""
    made: pathlib.Path = tmp_path_factory.mktemp("stored")
    model.load(folder, job.Precision.BFLOAT16, CPU, quantised=True).save_pretrained(made)
    return made


@pytest.fixture(params=["LoRA", "QLoRA", "stored in 4 bits"])
def case(request: pytest.FixtureRequest, folder: pathlib.Path, stored: pathlib.Path) -> Case:
    return Case(stored if "stored" in request.param else folder, request.param == "QLoRA", request.param != "LoRA")


def load(case: Case, part: tuple[int, int] | None) -> Loaded:
    """Tensors are copied from the file, as for a GPU, in the main thread, which is the one that the counter sees."""
    live, loading = fake.Live(CPU), transformers.core_model_loading
    with pytest.MonkeyPatch.context() as patch, live:
        patch.setattr(loading, "_materialize_copy", lambda read, _, dtype: read[...].to(CPU, dtype, copy=True))
        patch.setenv(model.NO_THREADS, "1" if part is None else "")
        patch.setattr(loading, "ThreadPoolExecutor", None)
        loaded = model.load(case.folder, job.Precision.BFLOAT16, CPU, case.quantised, part)
    return Loaded(loaded, live.peak)


def linears(loaded: Any) -> dict[str, torch.nn.Linear]:
    return dict(lora.linears(loaded))


def test_a_process_holds_its_part_and_one_weight_while_it_loads(case: Case) -> None:
    own = load(case, (1, SHARES))
    found = linears(own.model).values()
    weights = [layer.in_features * layer.out_features for layer in found]
    each = 0.5 if case.in_4_bits else 2
    rest = sum(
        weight.numel() * 2
        for weight in own.model.parameters()
        if id(weight) not in {id(layer.weight) for layer in found}
    )
    held = sum(layer.weight.nbytes for layer in found)
    assert held == pytest.approx(sum(weights) * each / SHARES, rel=0.01)
    # one weight as it is read, in its precision, and in 4 bits with what its blocks are computed with
    allowed = rest + held + sum(weights) * 0.02 * case.in_4_bits + max(weights) * 14
    assert own.peak < allowed
    assert load(case, None).peak > allowed, "a process that loads all would not pass"


@pytest.mark.parametrize("shares", [2, 3])
def test_the_parts_together_are_the_weights(case: Case, shares: int) -> None:
    whole = linears(load(case, None).model)
    parts = [linears(load(case, (rank, shares)).model) for rank in range(shares)]
    for name in list(whole)[:7]:
        assert torch.equal(torch.cat([part[name].weight.data for part in parts]), whole[name].weight.data), name
        assert getattr(parts[0][name].weight, own_part.WHOLE) == whole[name].weight.shape
        if case.in_4_bits:
            state, expected = lora.state_of(parts[1][name]), lora.state_of(whole[name])
            assert torch.equal(state.absmax, expected.absmax)
            assert state.shape == whole[name].weight.quant_state.shape  # type: ignore[attr-defined]


@pytest.mark.parametrize("threads", [None, "0"])
def test_reading_a_share_without_threads_is_this_loads_alone(
    stored: pathlib.Path, monkeypatch: pytest.MonkeyPatch, threads: str | None
) -> None:
    monkeypatch.delenv(model.NO_THREADS, raising=False)
    if threads is not None:
        monkeypatch.setenv(model.NO_THREADS, threads)
    model.load(stored, job.Precision.BFLOAT16, CPU, part=(0, 2))
    assert os.environ.get(model.NO_THREADS) == threads


@pytest.mark.parametrize("part", [None, (0, 2)], ids=["whole", "a share"])
def test_memory_that_runs_out_as_a_weight_is_quantised_is_no_fault_of_the_model(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, part: tuple[int, int] | None
) -> None:
    tried = []

    def quantise(*_: Any, **__: Any) -> None:
        tried.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("transformers.integrations.bitsandbytes.Bnb4bitQuantize.convert", quantise)
    with pytest.raises(torch.OutOfMemoryError):
        model.load(folder, job.Precision.BFLOAT16, CPU, quantised=True, part=part)
    assert tried == [1], "the weights that follow would not fit either"


def test_another_fault_of_a_weight_is_the_models(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def quantise(*_: Any, **__: Any) -> None:
        raise RuntimeError("Blockwise quantization only supports 16/32-bit floats")

    monkeypatch.setattr("transformers.integrations.bitsandbytes.Bnb4bitQuantize.convert", quantise)
    with pytest.raises(errors.Failure) as refused:
        model.load(folder, job.Precision.BFLOAT16, CPU, quantised=True)
    assert refused.value.reason == reasons.Reason.MODEL_INVALID


def test_weights_of_another_shape_than_config_json_says_are_refused(case: Case, tmp_path: pathlib.Path) -> None:
    for file in case.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((case.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": config["intermediate_size"] // 2}))
    with pytest.raises(errors.Failure) as refused:
        model.load(tmp_path, job.Precision.BFLOAT16, CPU, case.quantised, (0, 2))
    assert refused.value.reason == reasons.Reason.MODEL_INVALID
