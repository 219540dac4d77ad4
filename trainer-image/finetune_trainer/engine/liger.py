"""Norms and feed-forward parts of transformers' modules by the fused kernels of liger-kernel (Triton), on a GPU.

    model of a family that it knows -> padded passes -> kernels applied -> the same passes again -> equal in all processes: kept

A base model that is sharded is left as it is: the processes would wait within a pass for the one whose kernels fail.

What it replaces can be given back. Its kernels for rotary embeddings and losses are not taken: the first are replaced for all
models of a process, and the loss is our own, see `loss`.
"""

import contextlib
import copy
import importlib.util
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import torch

from finetune_trainer.engine import comparison, lora, loss, model, packing, prefix_tree
from finetune_trainer.process import errors, log

PARTS = {
    "rms_norm": True,
    "swiglu": True,
    "geglu": True,
    "rope": False,
    "layer_norm": False,
    "cross_entropy": False,
    "fused_linear_cross_entropy": False,
    "relu_squared": False,
}
"""Which parts of it are taken, by the names of its own settings; every one, since the default of some is to be taken."""

APPLIED = "; with liger-kernel's norms and feed-forward parts"

REFUSED = "; without liger-kernel's kernels, which did not prove themselves"


def families() -> Collection[str]:
    """The model types that the installed liger-kernel knows."""
    if importlib.util.find_spec("liger_kernel") is None:
        return ()
    try:
        from liger_kernel.transformers import monkey_patch
    except Exception as problem:  # Triton, or a version of transformers that it does not know
        log.warning("liger-kernel cannot be imported", problem=errors.describe(problem))
        return ()
    return frozenset(monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN)


def applies(device: str, family: str, known: Callable[[], Collection[str]] = families) -> bool:
    """Whether its kernels are tried: on CUDA, for a model type that it knows. On other devices it is not even imported."""
    return device == "cuda" and family in known()


def proven(tuned: Any, head: loss.Head, where: torch.device, agreed: Callable[[bool], bool] = bool) -> str:
    """Applies the kernels where they compute what the modules do, in all processes; what the status says of them.

    agreed: whether something holds in all processes, as of `packing.proven`.
    """
    tried = not packing.is_sharded(tuned) and applies(where.type, tuned.get_base_model().config.model_type)
    if not (agreed(tried) if where.type == "cuda" else tried):  # it may not be importable in one of them
        return ""
    before = {module: _attributes(module) for module in tuned.modules()}
    same = agreed(_computes_the_same(tuned, head, where))
    if not same:
        for module, attributes in before.items():
            vars(module).clear()
            vars(module).update(attributes)
    return APPLIED if same else REFUSED


def _attributes(module: torch.nn.Module) -> dict[str, Any]:
    """What can be given back: the dictionaries of its parts are copies."""
    return {name: copy.copy(value) if isinstance(value, dict) else value for name, value in vars(module).items()}


def _computes_the_same(tuned: Any, head: loss.Head, where: torch.device) -> bool:
    try:
        compare(tuned, head, where)
        return True
    except Exception as problem:  # whatever the kernels or their compiler raise
        log.warning("liger-kernel's kernels are not used", differs=comparison.described(problem))
        return False


def compare(tuned: Any, head: loss.Head, where: torch.device) -> None:
    """Applies the kernels. Raises Unknown when states or gradients of a few examples differ from those before."""
    states, gradients = _passes(tuned, head, where)
    with _unchanged(sys.modules[type(tuned.get_base_model()).__module__]):
        apply(tuned.get_base_model())
    found, ours = _passes(tuned, head, where)
    bound = comparison.EXACT if states.dtype is torch.float32 else comparison.ON_DEVICE[states.dtype]
    comparison.equal("states", found, states, bound)
    comparison.equal("gradients", ours, gradients, bound)


def apply(base: Any) -> None:
    """Replaces the forward functions of a model's norms and feed-forward parts."""
    from liger_kernel.transformers import monkey_patch

    monkey_patch._apply_liger_kernel_to_instance(model=base, **PARTS)
    for module in base.modules():
        if hasattr(module, "row_mode"):  # the kernel that the few rows of the comparison take, whatever their number
            module.row_mode = True


@contextlib.contextmanager
def _unchanged(module: Any) -> Iterator[None]:
    """Gives back the classes of a module: liger-kernel replaces those of the family too, for models that are made later."""
    before = dict(vars(module))
    try:
        yield
    finally:
        vars(module).update(before)


def _passes(tuned: Any, head: loss.Head, where: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """States and gradients of the adapter of padded passes of a few examples."""
    rows = [prefix_tree.TokenRow(row.ids, np.ones(len(row.ids), dtype=bool)) for row in comparison.examples()]
    ids, marks = [row.ids.tolist() for row in rows], [row.learned.tolist() for row in rows]
    tuned.eval()
    states, _ = model.labelled(tuned, head, ids, marks, where)
    upstream = torch.randn(states.shape, generator=torch.Generator().manual_seed(1)).to(where, states.dtype)
    return states.detach(), packing.gradient_of(states, upstream, list(lora.parameters(tuned).values()))
