"""liger-kernel on the standard path: for which models its kernels are tried, and that they compute what the modules do.

Its kernels run in Triton's interpreter, in a process of its own: Triton chooses when it is imported.
"""

import inspect
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from tests.trainer import decoders

from finetune_trainer.engine import liger, loss

CPU = torch.device("cpu")

CODE = """
import json
import numpy, torch, transformers, triton.language
from liger_kernel.ops import geglu, rms_norm
from tests.trainer import decoders
from triton.runtime import interpreter
from finetune_trainer.engine import comparison, liger, model, prefix_tree

convert, language = interpreter._implicit_cvt, triton.language

def converted(value):  # the interpreter leaves numbers with a fraction as they are, a compiled kernel does not
    if not isinstance(value, float):
        return convert(value)
    handle = interpreter.TensorHandle(numpy.array([value], dtype=numpy.float32), language.float32)
    return language.tensor(handle, language.float32)

interpreter._implicit_cvt = converted
# functions of CUDA's library, which does not exist on a CPU
rms_norm.rsqrt = lambda x: language.rsqrt(x)
geglu.tanh = lambda x: 1 - 2 / (language.exp(2 * x) + 1)
# every program of a kernel is interpreted
rows = [prefix_tree.TokenRow(numpy.arange(1, size), numpy.ones(size - 1, dtype=bool)) for size in (4, 6)]
comparison.examples = lambda: rows
size, replaced = decoders.SIZE | {"num_hidden_layers": 1}, {}
for config in (transformers.LlamaConfig(**size), transformers.Gemma2Config(**size, **decoders.GEMMA)):
    name, tuned = config.model_type, decoders.made(config)
    liger.compare(tuned, model.head(tuned.get_base_model()), torch.device("cpu"))
    replaced[name] = sorted({type(one).__name__ for one in tuned.modules() if one._get_name().startswith("Liger")})
print(json.dumps(replaced))
"""


def test_on_cuda_alone_for_families_that_it_knows() -> None:
    known = frozenset({"llama"})
    assert liger.applies("cuda", "llama", lambda: known)
    assert not liger.applies("cuda", "bloom", lambda: known)

    def asked() -> Any:
        raise AssertionError("it is not imported on a CPU")

    assert not liger.applies("cpu", "llama", asked)


def test_it_knows_every_family_of_ours() -> None:
    """Those of the catalogue."""
    assert {make().model_type for make in decoders.FAMILIES.values()} <= set(liger.families())


def test_every_part_that_it_may_replace_is_chosen() -> None:
    """A new one of a later version would be taken as its default says."""
    from liger_kernel.transformers import monkey_patch

    for apply in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN.values():
        parts = {name for name, one in inspect.signature(apply).parameters.items() if isinstance(one.default, bool)}
        assert parts <= set(liger.PARTS), apply.__name__


@pytest.mark.slow
def test_its_kernels_compute_what_the_modules_do() -> None:
    """Norms and feed-forward parts of two kinds, states and gradients, in float32."""
    ran = subprocess.run(
        [sys.executable, "-c", CODE],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert json.loads(ran.stdout.splitlines()[-1]) == {
        "llama": ["LlamaMLP", "LlamaRMSNorm"],
        "gemma2": ["Gemma2MLP", "Gemma2RMSNorm"],
    }


@pytest.mark.parametrize("problem", ["differs", "raises", "another process"])
def test_the_modules_stay_as_they_were_unless_all_processes_agree(
    problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama import modeling_llama

    def apply(base: Any) -> None:
        """As liger-kernel does: the family's class, and the forward functions of the modules."""
        monkeypatch.setattr(modeling_llama, "LlamaRMSNorm", torch.nn.Identity)
        norm = base.model.norm
        norm.offset = 0.0
        base.model.layers[0].mlp.act_fn = torch.nn.SiLU()
        if problem == "raises":
            raise RuntimeError("no kernel image is available")
        before = type(norm).forward
        norm.forward = lambda x: before(norm, x) * (1.1 if problem == "differs" else 1.0)

    monkeypatch.setattr(liger, "applies", lambda *_: True)
    monkeypatch.setattr(liger, "apply", apply)
    tuned = decoders.made(decoders.FAMILIES["llama 3"]())
    head, norm, family = (
        loss.head_of(tuned.get_base_model()),
        tuned.get_base_model().model.norm,
        modeling_llama.LlamaRMSNorm,
    )
    attributes, activation = set(vars(norm)), tuned.get_base_model().model.layers[0].mlp.act_fn
    votes: list[bool] = []

    def agreed(holds: bool) -> bool:
        votes.append(holds)
        return holds and problem != "another process"

    assert liger.proven(tuned, head, CPU, agreed) == liger.REFUSED
    assert votes == [problem == "another process"]
    assert set(vars(norm)) == attributes
    assert tuned.get_base_model().model.layers[0].mlp.act_fn is activation
    assert modeling_llama.LlamaRMSNorm is family
