"""Estimated duration and price of training: arithmetic before anything is measured.

workload.Workload, steps -> work (floating-point operations) -> seconds on the job's GPUs -> price
"""

import math
import re

from finetune_api import job, run
from finetune_trainer.planning import epoch_count, learning_rate, memory, workload

UTILISATION = 0.35
"""Share of a GPU's peak that training reaches. An assumption: efficient trainers report 30 to 40 % on dense models of
a few billion parameters (PaLM, arXiv 2204.02311, table 3: 20 to 46 %); short steps and slow links reach less."""

QUANTISED = 1.75
"""QLoRA's time divided by LoRA's: 1.5 to 2."""

TERA = 1e12

PEAKS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("gb300",), 2500),
    (("gb200",), 2500),
    (("b300",), 2250),
    (("b200",), 2250),
    (("b100",), 1750),
    (("gh200",), 989),
    (("h200", "nvl"), 835),
    (("h200",), 989),
    (("h100", "pcie"), 756),
    (("h100", "nvl"), 835),
    (("h100",), 989),
    (("h800", "pcie"), 756),
    (("h800",), 989),
    (("h20",), 148),
    (("a100",), 312),
    (("a800",), 312),
    (("a40",), 149.7),
    (("a30",), 165),
    (("a10g",), 70),
    (("a10",), 125),
    (("a2",), 18),
    (("l40s",), 362),
    (("l40",), 181),
    (("l4",), 121),
    (("rtx", "6000", "ada"), 364),
    (("a6000",), 154.8),
)
"""TFLOP/s of bfloat16 matrix products, dense, of the GPU whose gpuType contains these words; the first match counts. Source:
NVIDIA's data sheet of each product (the GB and B series: of the NVL72 and HGX systems), halved where it counts
sparsity. Older ones (V100, T4) have no bfloat16."""


def work(wanted: workload.Workload, setup: memory.Setup, examples: int) -> float:
    """Floating-point operations of the whole training, without validation and evaluation.

    A frozen weight takes 2 a token forward and 2 for the gradient of its input, with checkpointing 2 more; an adapter's also 2
    for its own gradient; the head takes 4 for learned tokens; attention 4 (heads · head_dim) for each key that a token
    attends to, and twice that backward. DPO's reference is one more forward pass.
    """
    shape, numbers, found = wanted.shape, wanted.shape.numbers, wanted.examples
    recomputed, reference = int(setup.checkpointing), int(wanted.training.objective is job.Objective.DPO)
    forward = 2 * numbers.layers * sum(one.weights for one in wanted.linears)
    adapter = 2 * wanted.adapter
    scores = 4 * numbers.layers * shape.queries * found.row / 2
    head = found.learned * 2 * numbers.vocabulary_size * numbers.hidden_size
    each = (
        forward * (2 + recomputed + reference)
        + (adapter + scores) * (3 + recomputed)
        + scores * reference
        + head * (2 + reference)
    )
    # A common prefix of a step's examples is computed once in each micro-batch.
    processes = wanted.device.processes
    parts = processes * math.ceil(found.step / processes / setup.tokens)
    shared = memory.common_prefix(wanted) if wanted.fast else 0.0
    whole = found.average * wanted.training.batch_size
    tokens = min(whole, found.step + (parts - 1) * shared) if wanted.fast else whole
    total_examples = epoch_count.total_examples(examples, wanted.training)
    steps = total_examples / wanted.training.batch_size
    searched = learning_rate.searched_steps(math.ceil(steps), wanted.training) / math.ceil(steps)
    return each * tokens * steps * searched * (QUANTISED if wanted.quantised else 1.0)


def peak(gpu_type: str | None) -> float | None:
    """FLOP/s of a GPU by its gpuType; None for an unknown one, and for a slice of one."""
    parts = set(re.split(r"[^a-z0-9]+", (gpu_type or "").lower()))
    if any(part.startswith("mig") for part in parts):
        return None
    return next((tflops * TERA for names, tflops in PEAKS if parts.issuperset(names)), None)


def seconds(spec: run.Run, operations: float | None) -> float | None:
    """Duration of training on the GPUs of the run; None on CPUs, for unknown GPUs and for float32, whose peaks are different."""
    fastest = peak(spec.gpu_type)
    if operations is None or not spec.gpus or fastest is None or spec.training.precision is job.Precision.FLOAT32:
        return None
    return operations / (fastest * UTILISATION * spec.gpus * spec.nodes)


def price(spec: run.Run, duration: float | None) -> str | None:
    """The price of so many seconds, as text; None without a price."""
    if duration is None or spec.price_per_gpu_hour is None:
        return None
    amount = spec.price_per_gpu_hour * spec.gpus * spec.nodes * duration / 3600
    return f"{amount:.2f} {spec.currency}" if amount >= 0.005 else f"less than 0.01 {spec.currency}"
