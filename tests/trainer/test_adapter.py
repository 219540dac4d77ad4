import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import safetensors.torch
import torch

from finetune_api import job, reasons
from finetune_trainer.engine import lora, model
from finetune_trainer.process import errors, imports
from finetune_trainer.training import adapter, checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tuned(base: pathlib.Path) -> Any:
    made = lora.add(model.load(base, job.Precision.FLOAT32, CPU), job.LoRA(rank=8), "tiny-base")
    for weight in lora.parameters(made).values():
        torch.nn.init.normal_(weight)
    return made


@pytest.mark.parametrize(
    ("config", "left_out"), [({}, True), ({"quantization_config": {"quant_method": "bitsandbytes"}}, False)]
)
def test_a_model_that_is_not_in_4_bits_needs_no_bitsandbytes(
    base: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], left_out: bool
) -> None:
    """Every process of a stage would import it, and torch's compiler with it."""

    def note(*names: str) -> None:
        raise InterruptedError(*names)

    monkeypatch.setattr(imports, "leave_out", note)
    (tmp_path / "config.json").write_text(json.dumps({**json.loads((base / "config.json").read_text()), **config}))
    with pytest.raises(Exception) as caught:  # there are no weights
        model.load(tmp_path, job.Precision.FLOAT32, CPU)
    assert (caught.type is InterruptedError) is left_out
    assert not left_out or caught.value.args == ("bitsandbytes", "peft")


LEAN = """
import pathlib, sys, torch
from finetune_api import job
from finetune_trainer.process import imports
imports.one_stage()
from finetune_trainer.engine import lora, model
lora.add(model.load(pathlib.Path(sys.argv[1]), job.Precision.FLOAT32, torch.device("cpu")), job.LoRA(rank=8), "tiny-base")
maps = pathlib.Path("/proc/self/maps").read_text()
assert "libtorch_cpu" in maps
assert "libbitsandbytes" not in maps
"""


def test_a_process_of_one_stage_has_an_adapter_and_no_bitsandbytes(base: pathlib.Path) -> None:
    ended = subprocess.run([sys.executable, "-c", LEAN, str(base)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.fixture
def folder(tuned: Any, tmp_path: pathlib.Path) -> pathlib.Path:
    adapter.write(tmp_path / "a", tuned, checkpoint.copy(lora.parameters(tuned)), "template", torch.bfloat16)
    return tmp_path / "a"


def test_vllm_accepts_what_we_write(folder: pathlib.Path, tuned: Any) -> None:
    adapter.check(folder, "tiny-base", tuned)
    weights = safetensors.torch.load_file(folder / adapter.WEIGHTS)
    assert len(weights) == 2 * 7 * 2
    assert all(tensor.dtype is torch.bfloat16 for tensor in weights.values())


def configured(**changes: Any) -> Any:
    def change(folder: pathlib.Path) -> None:
        path = folder / adapter.CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def weighted(edit: Any) -> Any:
    def change(folder: pathlib.Path) -> None:
        weights = safetensors.torch.load_file(folder / adapter.WEIGHTS)
        edit(weights)
        safetensors.torch.save_file(weights, folder / adapter.WEIGHTS)

    return change


A = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"


@pytest.mark.parametrize(
    "change, words",
    [
        (configured(use_dora=True), "use_dora is True"),
        (configured(bias="all"), "bias is 'all'"),
        (configured(modules_to_save=["lm_head"]), "modules_to_save"),
        (configured(trainable_token_indices=[1]), "trainable_token_indices"),
        (configured(init_lora_weights="pissa"), "init_lora_weights is 'pissa'"),
        (configured(r=12), "the rank 12 is not one of 8, 16"),
        (configured(peft_type="IA3"), "peft_type"),
        (configured(base_model_name_or_path="other"), "it names the base 'other', expected 'tiny-base'"),
        (weighted(lambda w: w.update({A.replace("up_proj", "sideways"): w.pop(A)})), "matches no layer"),
        (weighted(lambda w: w.update({"base_model.model.lm_head.lora_A.weight": w.pop(A)})), "the output head"),
        (weighted(lambda w: w.update({A: w[A][:4].clone()})), "expected rank 8"),
        (weighted(lambda w: w[A].fill_(float("inf"))), "not finite"),
        (weighted(lambda w: [t.zero_() for k, t in w.items() if "lora_B" in k]), "it has no effect"),
        (weighted(lambda w: w.clear()), "no weights"),
    ],
)
def test_what_vllm_refuses_or_ignores_is_refused_first(
    folder: pathlib.Path, tuned: Any, change: Any, words: str
) -> None:
    change(folder)
    with pytest.raises(errors.Failure, match="vLLM would not serve") as caught:
        adapter.check(folder, "tiny-base", tuned)
    assert words in caught.value.message
    assert caught.value.reason is reasons.Reason.ADAPTER_INCOMPATIBLE
    assert caught.value.exit == 2
