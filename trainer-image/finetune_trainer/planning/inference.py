"""Memory of what follows training: does the GPU of baseline and evaluation hold the model, and those of the server?

workload -> weights, keys and values of a context -> what is short, and what to change; `stages.preflight` says it before training
"""

import dataclasses
from collections.abc import Iterator

from finetune_api import arguments, job, run
from finetune_trainer.planning import forecast, memory, workload

UTILIZATION = 0.9
"""Share of a GPU that vLLM takes, its default of --gpu-memory-utilization."""

ASKED = 0.8
"""Share of a GPU that the weights may take in baseline and evaluation in process, as `evaluation.in_process`."""

STEP = 1024
"""Lengths of a context are proposed in multiples of it."""


AT_ONCE = 4
"""Questions of the training's length for which a server beside an evaluation has room, at least."""

SPLITS = (1, 2, 4, 8, 16)
"""Numbers of GPUs over which vLLM may split a model whose attention heads they divide."""


@dataclasses.dataclass(frozen=True)
class Shortage:
    """What does not fit, and what to change; fatal: the weights alone do not."""

    text: str
    fatal: bool


def shortages(spec: run.Run, case: workload.Workload) -> Iterator[Shortage]:
    """Of baseline and evaluation, and of serving; nothing where the GPUs' memory is unknown."""
    for found in (_evaluation(spec, case), _serving(spec, case)):
        if found is not None:
            yield found


def weights(case: workload.Workload, *, quantised: bool = False) -> int:
    """Bytes of the base model in bfloat16, or with its linear layers in 4 bits."""
    method = job.Method.QLORA if quantised else job.Method.LORA
    training = case.training.model_copy(update={"method": method})
    one = dataclasses.replace(case, training=training, device=workload.Device("cuda"))
    return memory.memory(one, 1, checkpointing=True).weights


def cache(case: workload.Workload) -> int:
    """Bytes of the keys and values of one token in all layers, in bfloat16."""
    return 2 * case.shape.numbers.layers * case.shape.keys * 2


def _evaluation(spec: run.Run, case: workload.Workload) -> Shortage | None:
    on = spec.evaluating
    if on is None or not on.gpus or on.memory is None:
        return None
    if spec.evaluation.asks_a_server(on.gpus):
        return _asked_server(on, case)
    capacity, needed = forecast.size(on.memory), weights(case)
    if needed > ASKED * capacity and case.training.method is job.Method.QLORA:
        needed = weights(case, quantised=True)
    if needed <= ASKED * capacity:
        return None
    return Shortage(
        f"baseline and evaluation hold the whole base model on one GPU: its weights need {memory.text(needed)}, and may take "
        f"{ASKED:.0%} of {on.memory}: choose an evaluation.resources.gpuType with {memory.text(int(needed / ASKED) + 1)}, "
        "training.method QLoRA, or a smaller base model.",
        fatal=True,
    )


def _asked_server(on: run.Place, case: workload.Workload) -> Shortage | None:
    """Of the server beside baseline and evaluation, whose context is as long as there is room for."""
    if arguments.value(on.arguments, "quantization"):
        return None
    each, usable = weights(case) / on.gpus, usable_of(on)
    if each <= usable:
        return None
    change = "more evaluation.resources.gpus, a larger evaluation.resources.gpuType"
    if case.training.method is job.Method.QLORA:
        change += ", evaluation.engine: InProcess (which holds the model in 4 bits, on one GPU)"
    return Shortage(
        f"the server beside baseline and evaluation needs {memory.text(int(each))} for weights {_where(on)}, and may use "
        f"{memory.text(int(max(0, usable)))} of {on.memory}: choose {change}, or a smaller base model.",
        fatal=True,
    )


def evaluation_gpus(spec: run.Run, case: workload.Workload) -> int | None:
    """The fewest of the training's GPUs that baseline and evaluation need; None where the GPUs' memory is unknown, or all of them
    are not enough."""
    if not spec.gpus or spec.memory is None:
        return None
    if not spec.evaluation.asks_a_server(spec.gpus):
        return 1
    given = spec.evaluating.arguments if spec.evaluating else []
    if arguments.value(given, "quantization"):
        return None
    asked = spec.training.max_sequence_length + spec.evaluation.generation.max_new_tokens
    keys = AT_ONCE * cache(case) * min(asked, case.shape.numbers.max_positions)
    for count in SPLITS:
        fits = (weights(case) + keys) / count <= usable_of(run.Place(gpus=count, memory=spec.memory, arguments=given))
        if fits and count <= spec.gpus and case.shape.numbers.attention_heads % count == 0:
            return count
    return None


def usable_of(on: run.Place) -> float:
    """Bytes of each GPU that a server may use for weights, keys and values."""
    share = float(arguments.value(on.arguments, "gpu-memory-utilization") or UTILIZATION)
    return share * forecast.size(on.memory or "0") - memory.LIBRARIES["cuda"]


def _where(on: run.Place) -> str:
    return f"on each of {on.gpus} GPUs" if on.gpus > 1 else "on its GPU"


def _serving(spec: run.Run, case: workload.Workload) -> Shortage | None:
    on = spec.serving
    if on is None or not on.gpus or on.memory is None or arguments.value(on.arguments, "quantization"):
        return None
    context = int(arguments.value(on.arguments, "max-model-len") or case.shape.numbers.max_positions)
    split = max(1, on.gpus // arguments.replicas(on.arguments))
    each, usable = weights(case) / split, usable_of(on)
    need = f"serving needs {memory.text(int(each))} for weights"
    where = _where(on)
    change = "a larger deployment.resources.gpuType, more deployment.resources.gpus, or a smaller base model"
    if each > usable:
        return Shortage(
            f"{need} {where}, and may use {memory.text(int(max(0, usable)))} of {on.memory}: choose {change}.", True
        )
    fitting = int((usable - each) * split / cache(case)) // STEP * STEP
    if fitting >= context:
        return None
    keys = memory.text(int(cache(case) * context / split))
    shorter = f"--max-model-len={fitting} in deployment.extraArgs, " if fitting else ""
    return Shortage(
        f"{need} and {keys} for the keys and values of one context of {context} tokens {where}, and may use "
        f"{memory.text(int(usable))} of {on.memory}: set {shorter}{change}.",
        fatal=not fitting,
    )
