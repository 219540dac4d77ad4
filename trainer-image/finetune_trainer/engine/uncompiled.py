"""torch's compiler and bitsandbytes, left out of processes that use neither: 150 MiB and two seconds of every start.

transformers and torch's optimizers import torch._dynamo to mark functions for it, and PEFT imports bitsandbytes where it is
installed, which imports torch._inductor. On a CPU nothing is compiled: a module whose marks do nothing takes the compiler's
place.
"""

import importlib.machinery
import sys
import types
from typing import Any

COMPILER = "torch._dynamo"
INDEXING = f"{COMPILER}._trace_wrapped_higher_order_op"
QUANTISER = "bitsandbytes"


def leave_out() -> None:
    """To be called before torch is imported."""
    if COMPILER in sys.modules:
        return
    compiler, indexing = _module(COMPILER), _module(INDEXING)
    compiler.__path__ = []
    compiler.disable = compiler.allow_in_graph = compiler.assume_constant_result = _mark  # type: ignore[attr-defined]
    compiler.graph_break = compiler.mark_static_address = _nothing  # type: ignore[attr-defined]
    # torch.distributed clears a cache of the compiler's where it sees it imported.
    compiler.trace_rules = types.SimpleNamespace(clear_lru_cache=_nothing)  # type: ignore[attr-defined]
    indexing.TransformGetItemToIndex = _Absent  # type: ignore[attr-defined]
    sys.modules |= {COMPILER: compiler, INDEXING: indexing}
    sys.modules.setdefault(QUANTISER, None)  # type: ignore[arg-type]


def bring_back() -> None:
    """To be called before what was left out is used."""
    for name in (COMPILER, INDEXING, QUANTISER):
        found = sys.modules.get(name)
        if name in sys.modules and (found is None or getattr(found, "stands_in", False)):
            del sys.modules[name]


def _module(name: str) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    made.stands_in = True  # type: ignore[attr-defined]
    return made


def _mark(function: Any = None, *_: Any, **__: Any) -> Any:
    return function if function is not None else lambda wrapped: wrapped


def _nothing(*_: Any, **__: Any) -> None: ...


class _Absent:
    """For masks that a caller gives as functions of its own, which none of ours does."""

    def __init__(self) -> None:
        raise RuntimeError(f"{COMPILER} was left out of this process, see {__name__}")
