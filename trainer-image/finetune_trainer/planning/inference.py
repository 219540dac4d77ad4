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

ALLOWANCE = 1 << 30
"""Bytes of each GPU for what vLLM holds besides: the activations of its largest step and its CUDA graphs. Not measured."""


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


def served(case: workload.Workload) -> int:
    """Bytes of the base model in vLLM, in bfloat16."""
    return 2 * case.parameters


def weights(case: workload.Workload, *, quantised: bool = False) -> int:
    """Bytes of the base model in the trainer's own engine, in bfloat16 or with its linear layers in 4 bits."""
    method = job.Method.QLORA if quantised else job.Method.LORA
    training = case.training.model_copy(update={"method": method})
    one = dataclasses.replace(case, training=training, device=workload.Device("cuda"))
    return memory.memory(one, 1, checkpointing=True).weights


def cache(case: workload.Workload) -> int:
    """Bytes of the keys and values of one token in all layers, in bfloat16."""
    return 2 * case.shape.numbers.layers * case.shape.keys * 2


def _evaluation(spec: run.Run, case: workload.Workload) -> Shortage | None:
    on = spec.evaluating
    if on is None or not on.gpus:
        return None
    if spec.evaluation.asks_a_server(on.gpus):
        return _asked_server(spec, on, case)
    if on.memory is None:
        return None
    capacity, needed = forecast.size(on.memory), weights(case)
    if needed > ASKED * capacity and case.training.method is job.Method.QLORA:
        needed = weights(case, quantised=True)
    if needed <= ASKED * capacity:
        return None
    change = forecast.larger("evaluation.resources.gpuType", int(needed / ASKED) + 1, spec.gpu_types)
    return Shortage(
        f"baseline and evaluation hold the whole base model on one GPU: its weights need {memory.text(needed)}, and may take "
        f"{ASKED:.0%} of {on.memory}: choose {change}, training.method QLoRA, or a smaller base model.",
        fatal=True,
    )


def _asked_server(spec: run.Run, on: run.Place, case: workload.Workload) -> Shortage | None:
    """Of the server beside baseline and evaluation, whose context is as long as there is room for."""
    if spec.evaluation.resources is None and evaluation_gpus(spec, case) is not None:
        return None  # its pods request as many of the GPUs as it needs
    listed = spec.base_model.architecture
    split = listed.splits(on.gpus)[-1] if listed else on.gpus
    if (uneven := _uneven(case, split)) is not None:
        return Shortage(f"the server beside baseline and evaluation {uneven} evaluation.resources.gpus.", fatal=True)
    if on.memory is None or arguments.value(on.arguments, "quantization"):
        return None
    each, usable = served(case) / split + slots(case, on, split), usable_of(on)
    if each <= usable:
        return None
    enough = size_for(on, each)
    change = "more evaluation.resources.gpus, " if split == on.gpus else ""
    change += forecast.larger("evaluation.resources.gpuType", enough, spec.gpu_types)
    if case.training.method is job.Method.QLORA:
        change += ", evaluation.engine: InProcess (which holds the model in 4 bits, on one GPU)"
    return Shortage(
        f"the server beside baseline and evaluation needs {memory.text(int(each))} for weights and adapter {_where(split)}, and "
        f"may use {memory.text(int(max(0, usable)))} of {on.memory}: choose {change}, or a smaller base model.",
        fatal=True,
    )


def evaluation_gpus(spec: run.Run, case: workload.Workload) -> int | None:
    """The fewest of the training's GPUs that baseline and evaluation need; None for all, also where all are too few. Where the
    GPUs' memory is unknown, as many as the model's heads can be split over."""
    if not spec.gpus:
        return None
    if spec.memory is None:
        most = case.shape.numbers.splits(spec.gpus)[-1]
        return most if most < spec.gpus and spec.evaluation.asks_a_server(spec.gpus) else None
    if not spec.evaluation.asks_a_server(spec.gpus):
        return 1
    given = spec.evaluating.arguments if spec.evaluating else []
    if arguments.value(given, "quantization"):
        return None
    asked = spec.training.max_sequence_length + spec.evaluation.generation.max_new_tokens
    keys = AT_ONCE * cache(case) * min(asked, case.shape.numbers.max_positions)
    on = run.Place(gpus=spec.gpus, memory=spec.memory, arguments=given)
    for count in case.shape.numbers.splits(spec.gpus):
        if (served(case) + keys) / count + slots(case, on, count) <= usable_of(on):
            return count
    return None


def usable_of(on: run.Place) -> float:
    """Bytes of each GPU that a server may use for weights, adapters, keys and values."""
    return _share(on) * forecast.size(on.memory or "0") - memory.LIBRARIES["cuda"] - ALLOWANCE


def size_for(on: run.Place, needed: float) -> int:
    """Bytes of a GPU of which a server may use so many."""
    return int((needed + memory.LIBRARIES["cuda"] + ALLOWANCE) / _share(on)) + 1


def _share(on: run.Place) -> float:
    return float(arguments.value(on.arguments, "gpu-memory-utilization") or UTILIZATION)


def slots(case: workload.Workload, on: run.Place, split: int) -> float:
    """Bytes on each of `split` GPUs that vLLM reserves for --max-loras adapters of the training's rank in bfloat16, of all linear
    layers. It splits B of layers that are split by columns, A of those that are by rows, and copies the other matrix."""
    lora = case.training.lora
    rank = arguments.max_lora_rank(lora.rank)
    numbers, shape = case.shape.numbers, case.shape
    columns = [shape.queries, shape.keys, shape.keys, *[numbers.intermediate_size] * 2]
    each = sum(numbers.hidden_size + one / split for one in columns)
    each += sum(one / split + numbers.hidden_size for one in (shape.queries, numbers.intermediate_size))
    return 2 * rank * numbers.layers * each * int(arguments.value(on.arguments, "max-loras") or 1)


def _uneven(case: workload.Workload, split: int, copies: int = 1) -> str | None:
    """Of a server that vLLM refuses to start, since the heads cannot be split over so many GPUs: what is wrong, up to the name of
    the field. copies: of so many GPUs in one pod."""
    numbers = case.shape.numbers
    if split in (allowed := numbers.splits(split)):
        return None
    counts = ", ".join(str(copies * one) for one in allowed)
    return (
        f"splits each layer over {split} GPUs, which the model's {numbers.attention_heads} query heads and "
        f"{numbers.key_value_heads} KV heads do not allow: choose {counts} as"
    )


def _where(split: int) -> str:
    return f"on each of {split} GPUs" if split > 1 else "on its GPU"


def _serving(spec: run.Run, case: workload.Workload) -> Shortage | None:
    on = spec.serving
    if on is None or not on.gpus:
        return None
    split = max(1, on.gpus // arguments.replicas(on.arguments))
    layers = arguments.tensor_parallel(on.gpus, on.arguments)
    given = arguments.value(on.arguments, "tensor-parallel-size") or ""
    if given.isdigit() and (uneven := _uneven(case, int(given))) is not None:
        return Shortage(f"serving {uneven} --tensor-parallel-size.", fatal=True)
    if not given and (uneven := _uneven(case, layers, on.gpus // layers)) is not None:
        return Shortage(f"serving {uneven} deployment.resources.gpus.", fatal=True)
    if on.memory is None or arguments.value(on.arguments, "quantization"):
        return None
    context = int(arguments.value(on.arguments, "max-model-len") or case.shape.numbers.max_positions)
    each, usable = served(case) / split + slots(case, on, layers) * layers / split, usable_of(on)
    need = f"serving needs {memory.text(int(each))} for weights and adapter"
    where, keys = _where(on.gpus), cache(case) * context / split
    change = (
        f"{forecast.larger('deployment.resources.gpuType', size_for(on, each + keys), spec.gpu_types)}, more "
        "deployment.resources.gpus, or a smaller base model"
    )
    if each > usable:
        return Shortage(
            f"{need} {where}, and may use {memory.text(int(max(0, usable)))} of {on.memory}: choose {change}.", True
        )
    fitting = int((usable - each) * split / cache(case)) // STEP * STEP
    if fitting >= context:
        return None
    shorter = f"--max-model-len={fitting} in deployment.extraArgs, " if fitting else ""
    return Shortage(
        f"{need} and {memory.text(int(keys))} for the keys and values of one context of {context} tokens {where}, and may use "
        f"{memory.text(int(usable))} of {on.memory}: set {shorter}{change}.",
        fatal=not fitting,
    )
