"""Memory of LoRA training from a model's numbers, buffer by buffer: pure arithmetic, no weights and no torch needed.

workload.Workload -> Memory (a table of terms) -> Setup: micro-batch and gradient checkpointing

preflight reports it, train chooses by it, `forecast` says what to change. All sizes are bytes. Each term counts buffers of
`decoder`, `attention`, `fused`, `loss` or `checkpoint`; docs/benchmarks/estimate.md compares the sum with measured peaks.
"""

import dataclasses
import enum
import math

from finetune_api import job
from finetune_trainer.engine import sizes
from finetune_trainer.planning.workload import Device, Workload
from finetune_trainer.process import machine

MIB = 1 << 20

MASTER = 16
"""Bytes per adapter weight: float32 value, gradient and AdamW's two moments."""

COPIES = 28
"""Bytes per adapter weight, on the host: the best adapter (4), its successor while it is copied (4), and a checkpoint that is
being saved: value and moments (12), and the moments again as the bytes of their file (8)."""

SEARCHED = 20
"""Bytes per adapter weight, on the host, of training.search: where candidates start (4), and value, moments and best adapter of
the leader (16)."""

NF4, CONSTANTS = 0.5, 1 / 64 + 4 / (64 * 256)
"""Bytes per weight in 4 bits with double quantisation: half a byte; a byte for each block of 64, and 4 for each 256 of these
(arXiv 2305.14314)."""

GATHERED = 3
"""Layers that FSDP2 holds at once: the one that runs, and the next one as it arrives and as it is laid out (torch's
documentation of fully_shard)."""

LIBRARIES = {"cpu": 810 * MIB, "cuda": 1024 * MIB}
"""On a CPU: Python, torch, transformers, peft and what they import (torch's compiler and bitsandbytes too), measured; on a GPU:
the context and the libraries' workspaces, a common figure, not measured here."""

CODE = 680 << 10
"""The code that oneDNN generates for each shape of a bfloat16 product on a CPU, measured."""

SPARE = {"cpu": 0.03, "cuda": 0.10}
"""Share of activations and work that the allocator cannot reuse (fragmentation)."""

PLAIN = 1.2
"""Factor on the plain engine's activations, for what autograd and the allocator keep besides."""

SHARE = {"cpu": 0.9, "cuda": 0.85}
"""Share of the device's memory that may be used."""

LONG_PREFIX = 128
"""Tokens of a common prefix from which computing it once per step is worth a larger micro-batch."""


class Purpose(enum.StrEnum):
    WEIGHTS = "weights"
    ADAPTER = "adapter"
    ACTIVATIONS = "activations"
    WORK = "work"
    LOSS = "loss"
    OVERHEAD = "overhead"
    LOADING = "loading"


@dataclasses.dataclass(frozen=True)
class Term:
    """One line of the table."""

    purpose: Purpose
    name: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes by purpose."""

    terms: tuple[Term, ...] = ()

    def of(self, *purposes: Purpose) -> int:
        return sum(term.bytes for term in self.terms if term.purpose in purposes)

    @property
    def weights(self) -> int:
        return self.of(Purpose.WEIGHTS)

    @property
    def adapter(self) -> int:
        return self.of(Purpose.ADAPTER)

    @property
    def total(self) -> int:
        """The expected peak."""
        return sum(term.bytes for term in self.terms)

    @property
    def needed(self) -> int:
        """The peak without the pages of the model's file, which the kernel takes back where memory is short."""
        return self.total - self.of(Purpose.LOADING)


@dataclasses.dataclass(frozen=True)
class Setup:
    """The settings that train runs with."""

    tokens: int
    """Tokens of a micro-batch: of its prefix tree, or of its examples on the plain engine; padding counts where it pads."""
    checkpointing: bool
    memory: Memory


# -- the table --


def memory(case: Workload, tokens: int, *, checkpointing: bool) -> Memory:
    """The estimate for micro-batches of `tokens`."""
    tokens = -(-tokens // sizes.ROUND) * sizes.ROUND
    terms = [*_weights(case), *_adapter(case)]
    if case.fast:
        terms += _activations(case, tokens, checkpointing)
        terms += _work(case, tokens)
    else:
        terms += _plain(case, tokens, checkpointing)
    terms += _loss(case, tokens)
    terms += _overhead(case, sum(term.bytes for term in terms if term.purpose in (Purpose.ACTIVATIONS, Purpose.WORK)))
    return Memory(tuple(term for term in [*terms, *_loading(case, terms)] if term.bytes > 0))


def _weights(case: Workload) -> list[Term]:
    device, layers = case.device, case.shape.numbers.layers
    linear = layers * sum(one.weights for one in case.linears)
    rest = case.parameters - linear
    each = NF4 if case.quantised else device.width
    found = [
        Term(Purpose.WEIGHTS, "embedding, output head, norms", rest * device.width),
        Term(
            Purpose.WEIGHTS,
            "linear layers" + (" in 4 bits" if case.quantised else "") + (", sharded" if device.shards > 1 else ""),
            math.ceil(linear * each / device.shards),
        ),
    ]
    if case.quantised:
        found.append(Term(Purpose.WEIGHTS, "constants of the 4 bits", math.ceil(linear * CONSTANTS)))
    if case.fast:
        columns = layers * sum(one.adapter for one in case.linears)
        found.append(Term(Purpose.WEIGHTS, "adapter's columns", columns * device.width))
    if device.shards > 1:
        found.append(Term(Purpose.WEIGHTS, "gathered layers", math.ceil(GATHERED * linear / layers * each)))
    if case.quantised and case.fast:
        kinds = [one.outputs * (one.inputs + one.rank) for one in case.linears]
        found.append(Term(Purpose.WEIGHTS, "one layer's decoded weights", (sum(kinds) + max(kinds)) * device.width))
    elif case.quantised:
        largest = case.shape.numbers.hidden_size * max(case.shape.numbers.intermediate_size, case.shape.queries)
        found.append(Term(Purpose.WEIGHTS, "one linear layer's decoded weights", largest * device.width))
    return found


def _adapter(case: Workload) -> list[Term]:
    size = case.adapter
    found = [Term(Purpose.ADAPTER, "weights, gradients, AdamW's moments", size * MASTER)]
    if case.device.cpu:
        found.append(Term(Purpose.ADAPTER, "best adapter, checkpoint being saved", size * COPIES))
    if case.device.cpu and case.training.search:
        found.append(Term(Purpose.ADAPTER, "where candidates start, and the leader", size * SEARCHED))
    if case.device.processes > 1:
        found.append(Term(Purpose.ADAPTER, "sum of all processes' gradients", size * 4))
    return found


def mean_keys(length: int) -> float:
    """Attention probabilities per token, on average over an example of `length` tokens: keys in `attention.Tiles`, padding
    included."""
    total = 0
    for begin in range(0, length, sizes.PIECE):
        own = -(-min(sizes.PIECE, length - begin) // sizes.EVEN) * sizes.EVEN
        total += own * (begin + own)
    return total / max(length, 1)


def common_prefix(case: Workload) -> float:
    """Tokens of the common prefix of a step's examples, on average."""
    examples, count = case.examples, case.training.batch_size
    if count < 2:
        return 0.0
    prefix = (examples.average * count - examples.step) / (count - 1)
    return min(max(0.0, prefix), examples.row - 1.0, examples.step)


def mean_keys_in_step(case: Workload) -> float:
    """The same for the different tokens of a step: those after a common prefix attend to all of it."""
    prefix = common_prefix(case)
    share = prefix / case.examples.step if prefix else 0.0
    return share * mean_keys(round(prefix)) + (1 - share) * (prefix + mean_keys(case.examples.row - round(prefix)))


def _activations(case: Workload, tokens: int, checkpointing: bool) -> list[Term]:
    """`decoder.Saved` of all layers, or of one with checkpointing; and of one more, for validation and DPO's reference."""
    shape, numbers, device = case.shape, case.shape.numbers, case.device
    saved_layers = 1 if checkpointing else numbers.layers + 1
    # The last layer's feed-forward part is saved for learned tokens only.
    blocks = 1 if checkpointing else numbers.layers + case.examples.learned
    hidden, heads = numbers.hidden_size, numbers.attention_heads
    columns = sum(one.rank for one in case.linears if one.name == "out")
    each = {  # elements a token
        "inputs of the layers": (numbers.layers + 1) * hidden,
        "queries, keys, values": saved_layers * (shape.queries + 2 * shape.keys),
        "queries and keys before their norms": saved_layers * (shape.queries + shape.keys) * shape.heads_normed,
        "attention's output": saved_layers * (shape.queries + columns),
        "residual stream after attention": blocks * hidden,
        "feed-forward gates": blocks * 2 * numbers.intermediate_size,
        "outputs of blocks before their norms": blocks * 2 * hidden * shape.blocks_normed,
    }
    if device.cpu:
        each["attention's probabilities"] = saved_layers * heads * mean_keys_in_step(case)
    else:
        each["attention's copies for autograd"] = saved_layers * (
            2 * shape.queries + 2 * shape.keys + 4 * heads / device.width
        )
        if not device.compiled:
            # Of torch's kernels only the one that keeps all scores takes a mask together with grouped KV heads.
            each["attention's probabilities"] = saved_layers * heads * tokens
    return [Term(Purpose.ACTIVATIONS, name, math.ceil(tokens * size * device.width)) for name, size in each.items()]


def _work(case: Workload, tokens: int) -> list[Term]:
    """The buffer pool's buffers that all layers use in turn, and the temporary tensors of a layer's backward pass."""
    shape, numbers, device = case.shape, case.shape.numbers, case.device
    rows = min(sizes.ROWS, tokens) if device.cpu else tokens
    hidden, middle = numbers.hidden_size, numbers.intermediate_size
    widths = {one.name: one.inputs + one.rank for one in case.linears}
    block = max(widths["qkv"], widths["up"]) + widths["down"] + sum(widths.values()) + 3 * middle
    block += shape.queries + 2 * shape.keys + (shape.queries + shape.keys) * shape.heads_normed
    norms = 3 * 4 * hidden
    per_token = 4 * shape.queries + 2 * shape.keys + 2 * hidden
    states = case.examples.learned * hidden * (4 + 8 / device.width)
    found = [
        Term(Purpose.WORK, "a block of rows in one layer", rows * (block * device.width + norms)),
        Term(Purpose.WORK, "a layer's gradients", math.ceil(tokens * (per_token + states) * device.width)),
    ]
    longest = case.examples.row
    if device.cpu:
        own = -(-min(longest, sizes.PIECE) // sizes.EVEN) * sizes.EVEN
        tile = sizes.PIECE if longest > sizes.PIECE else max(own, min(tokens, sizes.TOGETHER // own * own))
        scores = 3 * numbers.attention_heads * (-(-longest // sizes.EVEN) * sizes.EVEN)
        size = tile * (scores + 4 * shape.queries + 2 * shape.keys)
    else:
        size = tokens * (2 * shape.queries + 2 * shape.keys)
        if not device.compiled:
            size += tokens * tokens * (2 * numbers.attention_heads + 2)
    return [*found, Term(Purpose.WORK, "attention of one layer", size * device.width)]


def _plain(case: Workload, tokens: int, checkpointing: bool) -> list[Term]:
    """What autograd keeps of transformers' modules, a layer and token: two norms' float32 inputs and their outputs, queries, keys
    and values (repeated to all heads), the attention's output twice, four feed-forward activations. With checkpointing: each
    layer's input, and one layer."""
    numbers, width = case.shape.numbers, case.device.width
    layer = (
        2 * (4 + width) * numbers.hidden_size + 5 * width * case.shape.queries + 4 * width * numbers.intermediate_size
    )
    saved = numbers.layers * layer if not checkpointing else numbers.layers * width * numbers.hidden_size + layer
    found = [Term(Purpose.ACTIVATIONS, "activations saved by autograd", round(tokens * saved * PLAIN))]
    if case.shape.softcap:
        # No kernel of torch caps scores: of each example all are saved, after the tangent, as float32 probabilities and rounded.
        scores = (
            (1 if checkpointing else numbers.layers) * numbers.attention_heads * case.examples.row * (4 + 2 * width)
        )
        found.append(Term(Purpose.ACTIVATIONS, "attention's scores and probabilities", tokens * scores))
    return found


def _loss(case: Workload, tokens: int) -> list[Term]:
    """Logits of a chunk, and those of a piece of it in float32; Gemma 2's tanh needs one more copy."""
    learned = max(1, math.ceil(tokens * case.examples.learned))
    chunk, piece = min(sizes.CHUNK, learned), min(sizes.LOGITS[case.device.kind], learned)
    size = chunk * case.device.width + piece * 4 * (1 + case.shape.softcap)
    return [Term(Purpose.LOSS, "logits of a chunk and their gradients", size * case.shape.numbers.vocabulary_size)]


def _overhead(case: Workload, changing: int) -> list[Term]:
    device = case.device
    name = "Python, torch, transformers, peft" if device.cpu else "CUDA's context and libraries"
    found = [Term(Purpose.OVERHEAD, name, LIBRARIES[device.kind])]
    if device.cpu and device.width == 2:
        found.append(Term(Purpose.OVERHEAD, "generated code for matrix shapes", machine.CODES * CODE))
    return [*found, Term(Purpose.OVERHEAD, "fragmentation", round(changing * SPARE[device.kind]))]


def _loading(case: Workload, terms: list[Term]) -> list[Term]:
    """While the weights are copied, the model's file is mapped too: the part that exceeds what training needs later."""
    if not (case.device.cpu and case.fast):
        return []
    loading = LIBRARIES["cpu"] + case.adapter * 4 + sum(term.bytes for term in terms if term.purpose is Purpose.WEIGHTS)
    later = sum(term.bytes for term in terms)
    return [
        Term(Purpose.LOADING, "model file, until it is copied", loading + case.parameters * case.shape.stored - later)
    ]


# -- the settings that train runs with --

MODES = {
    job.GradientCheckpointing.AUTO: (False, True),
    job.GradientCheckpointing.ENABLED: (True,),
    job.GradientCheckpointing.DISABLED: (False,),
}

SMALLEST = {"cpu": 256, "cuda": 2048}
"""Tokens of a micro-batch below which checkpointing costs less than an even smaller micro-batch."""


def max_tokens(case: Workload) -> int:
    """Tokens of a micro-batch above which the device gains little."""
    if not case.device.cpu:
        return 16_384 if case.device.compiled else 4_096
    return 2_560 if case.fast and common_prefix(case) >= LONG_PREFIX else 640


def best_tokens(case: Workload) -> int:
    """The fastest micro-batch: a step, or equal parts of it, with a tenth more for steps above the average;
    never less than the longest example."""
    whole = case.examples.step if case.fast else case.examples.average * case.training.batch_size
    step = whole / case.device.processes * 1.1
    parts = math.ceil(step / max_tokens(case))
    room = case.examples.average if parts > 1 else 0
    return max(
        case.examples.longest, min(max_tokens(case), math.ceil((step / parts + room) / sizes.ROUND) * sizes.ROUND)
    )


def setup(case: Workload, available: int) -> Setup:
    """The micro-batch that fits into `available` bytes, and whether checkpointing is needed for it."""
    best = None
    modes = MODES[case.training.gradient_checkpointing]
    for checkpointing in modes:
        tokens, longest = best_tokens(case), case.examples.longest
        minimum = longest if checkpointing is modes[-1] else max(longest, min(tokens, SMALLEST[case.device.kind]))
        while True:
            best = Setup(tokens, checkpointing, memory(case, tokens, checkpointing=checkpointing))
            if fits(best.memory, available, case.device):
                return best
            if tokens <= minimum:
                break
            tokens = max(minimum, tokens // 2)
    assert best is not None
    return best


def fits(found: Memory, available: int, device: Device) -> bool:
    return found.needed <= available * SHARE[device.kind]


def text(size: int) -> str:
    """Bytes for people: 21Gi, or 3.2Gi below ten."""
    gib = size / 2**30
    return f"{gib:.0f}Gi" if gib >= 10 else f"{gib:.1f}Gi"
