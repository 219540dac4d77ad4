"""Memory of LoRA training from a model's numbers, buffer by buffer: pure arithmetic, no weights and no torch needed.

workload.Workload -> Memory (a table of terms) -> Setup: micro-batch and gradient checkpointing

preflight reports it, train chooses by it, `forecast` says what to change. Bytes everywhere. Each term counts buffers of
`decoder`, `attention`, `fused`, `loss` or `checkpoint`; docs/benchmarks/estimate.md has how far the sum is from measured peaks.
"""

import dataclasses
import enum
import math

from finetune_api import job
from finetune_trainer.planning.workload import Device, Workload
from finetune_trainer.process import machine

MIB = 1 << 20

MASTER = 16
"""Of an adapter weight: float32 value, gradient and AdamW's two moments."""

COPIES = 28
"""Of an adapter weight, on the host: the best adapter (4), its successor while it is taken (4), and a checkpoint on its way:
value and moments (12), and the moments once more as the bytes of their file (8)."""

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a weight in 4 bits with double quantisation: half a byte, a byte for each block of 64, 4 for each 256 of these
(arXiv 2305.14314)."""

CHUNK, ROWS, PIECE, TOGETHER, ROUND, EVEN = 512, 1280, 256, 2048, 32, 16
"""As in `loss`, `decoder` and `prefix_tree`, which need torch: a test compares them."""

LIBRARIES = {"cpu": 660 * MIB, "cuda": 1024 * MIB}
"""On a CPU what Python, torch, transformers and peft take once all is imported, measured; on a GPU the context and the
libraries' workspaces, by common experience: not measured here."""

COMPILER = 150 * MIB
"""What bitsandbytes brings with it on a CPU, torch's compiler included; see `uncompiled`."""

CODE = 680 << 10
"""Of the code that oneDNN makes for each shape of a bfloat16 product on a CPU, measured."""

SPARE = {"cpu": 0.03, "cuda": 0.10}
"""Of activations and work, for what the allocator cannot use again."""

PLAIN = 1.2
"""Of the plain engine's activations, for what autograd and the allocator keep besides."""

SHARE = {"cpu": 0.9, "cuda": 0.85}
"""Of the device's memory that may be planned for."""

MUCH = 128
"""Tokens of a shared beginning from which on computing it once a step is worth a larger micro-batch."""


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
        """The peak that is to be expected."""
        return sum(term.bytes for term in self.terms)

    @property
    def needed(self) -> int:
        """The peak without the pages of the model's file, which the kernel takes back where memory is short."""
        return self.total - self.of(Purpose.LOADING)


@dataclasses.dataclass(frozen=True)
class Setup:
    """What train runs with."""

    tokens: int
    """Tokens of a micro-batch: of its forest, or padding included on the plain engine."""
    checkpointing: bool
    memory: Memory


# -- the table --


def memory(case: Workload, tokens: int, *, checkpointing: bool) -> Memory:
    """The estimate for micro-batches of `tokens`."""
    tokens = -(-tokens // ROUND) * ROUND
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
    held = math.ceil(linear * (NF4 if case.quantised else device.width) / device.shards)
    found = [
        Term(Purpose.WEIGHTS, "embedding, output head, norms", rest * device.width),
        Term(Purpose.WEIGHTS, "linear layers" + (" in 4 bits" if case.quantised else ""), held),
    ]
    if case.fast:
        columns = layers * sum(one.adapter for one in case.linears)
        found.append(Term(Purpose.WEIGHTS, "adapter's columns beside them", columns * device.width))
    if case.quantised or device.shards > 1:
        kinds = [one.outputs * (one.inputs + one.rank) for one in case.linears]
        text = "one layer's weights put together"
        found.append(Term(Purpose.WEIGHTS, text, (sum(kinds) + max(kinds)) * device.width))
    return found


def _adapter(case: Workload) -> list[Term]:
    size = case.adapter
    found = [Term(Purpose.ADAPTER, "weights, gradients, AdamW's moments", size * MASTER)]
    if case.device.cpu:
        found.append(Term(Purpose.ADAPTER, "best adapter, checkpoint on its way", size * COPIES))
    if case.device.processes > 1:
        found.append(Term(Purpose.ADAPTER, "sum of all processes' gradients", size * 4))
    return found


def span(length: int) -> float:
    """Keys that a token of an example of `length` tokens has probabilities for in `attention.Tiles`, padding included; on
    average."""
    total = 0
    for begin in range(0, length, PIECE):
        own = -(-min(PIECE, length - begin) // EVEN) * EVEN
        total += own * (begin + own)
    return total / max(length, 1)


def beginning(case: Workload) -> float:
    """Tokens that the examples of a step begin with together, on average."""
    examples, count = case.examples, case.training.batch_size
    if count < 2:
        return 0.0
    shared = (examples.average * count - examples.step) / (count - 1)
    return min(max(0.0, shared), examples.row - 1.0, examples.step)


def reach(case: Workload) -> float:
    """The same for the different tokens of a step: those after a shared beginning see all of it."""
    shared = beginning(case)
    share = shared / case.examples.step if shared else 0.0
    return share * span(round(shared)) + (1 - share) * (shared + span(case.examples.row - round(shared)))


def _activations(case: Workload, tokens: int, checkpointing: bool) -> list[Term]:
    """`decoder.Kept`: of all layers, or of one with checkpointing; and of one more, for validation and DPO's reference."""
    shape, numbers, device = case.shape, case.shape.numbers, case.device
    held = 1 if checkpointing else numbers.layers + 1
    # The last layer's feed-forward part is kept for learned tokens only.
    blocks = 1 if checkpointing else numbers.layers + case.examples.learned
    hidden, heads = numbers.hidden_size, numbers.attention_heads
    columns = sum(one.rank for one in case.linears if one.name == "out")
    each = {  # elements a token
        "inputs of the layers": (numbers.layers + 1) * hidden,
        "queries, keys, values": held * (shape.queries + 2 * shape.keys),
        "queries and keys before their norms": held * (shape.queries + shape.keys) * shape.heads_normed,
        "attention's output": held * (shape.queries + columns),
        "stream after attention": blocks * hidden,
        "feed-forward gates": blocks * 2 * numbers.intermediate_size,
        "what blocks add, before its norm": blocks * 2 * hidden * shape.blocks_normed,
    }
    if device.cpu:
        each["attention's probabilities"] = held * heads * reach(case)
    else:
        each["attention's copies for autograd"] = held * (2 * shape.queries + 2 * shape.keys + 4 * heads / device.width)
        if not device.compiled:
            # torch's kernels take no mask together with shared key-value heads but the one that keeps all scores.
            each["attention's probabilities"] = held * heads * tokens
    return [Term(Purpose.ACTIVATIONS, name, math.ceil(tokens * size * device.width)) for name, size in each.items()]


def _work(case: Workload, tokens: int) -> list[Term]:
    """The arena's buffers that all layers use in turn, and what a layer's backward pass makes and forgets."""
    shape, numbers, device = case.shape, case.shape.numbers, case.device
    rows = min(ROWS, tokens) if device.cpu else tokens
    hidden, middle = numbers.hidden_size, numbers.intermediate_size
    widths = {one.name: one.inputs + one.rank for one in case.linears}
    block = max(widths["qkv"], widths["up"]) + widths["down"] + sum(widths.values()) + 3 * middle
    block += shape.queries + 2 * shape.keys + (shape.queries + shape.keys) * shape.heads_normed
    norms = 3 * 4 * hidden
    whole = 4 * shape.queries + 2 * shape.keys + 2 * hidden
    states = case.examples.learned * hidden * (4 + 8 / device.width)
    found = [
        Term(Purpose.WORK, "a block of rows in one layer", rows * (block * device.width + norms)),
        Term(Purpose.WORK, "a layer's gradients", math.ceil(tokens * (whole + states) * device.width)),
    ]
    longest = case.examples.row
    if device.cpu:
        own = -(-min(longest, PIECE) // EVEN) * EVEN
        tile = PIECE if longest > PIECE else max(own, min(tokens, TOGETHER // own * own))
        scores = 3 * numbers.attention_heads * (-(-longest // EVEN) * EVEN)
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
    kept = numbers.layers * layer if not checkpointing else numbers.layers * width * numbers.hidden_size + layer
    return [Term(Purpose.ACTIVATIONS, "what autograd keeps", round(tokens * kept * PLAIN))]


SLOPES = {"cpu": 32, "cuda": 256}
"""`loss.PIECE`"""


def _loss(case: Workload, tokens: int) -> list[Term]:
    """Logits of a chunk, and those of a piece of it in float32; Gemma 2's tanh takes one more."""
    learned = max(1, math.ceil(tokens * case.examples.learned))
    chunk, piece = min(CHUNK, learned), min(SLOPES[case.device.kind], learned)
    size = chunk * case.device.width + piece * 4 * (1 + case.shape.softcap)
    return [Term(Purpose.LOSS, "logits of a chunk and their slopes", size * case.shape.numbers.vocabulary_size)]


def _overhead(case: Workload, moving: int) -> list[Term]:
    device = case.device
    name = "Python, torch, transformers, peft" if device.cpu else "CUDA's context and libraries"
    found = [Term(Purpose.OVERHEAD, name, LIBRARIES[device.kind])]
    if device.cpu and case.quantised:
        found.append(Term(Purpose.OVERHEAD, "bitsandbytes, torch's compiler", COMPILER))
    if device.cpu and device.width == 2:
        found.append(Term(Purpose.OVERHEAD, "code for shapes of products", machine.CODES * CODE))
    return [*found, Term(Purpose.OVERHEAD, "fragmentation", round(moving * SPARE[device.kind]))]


def _loading(case: Workload, terms: list[Term]) -> list[Term]:
    """While the weights are copied, the model's file is mapped too: what that takes beyond what training takes later."""
    if not (case.device.cpu and case.fast):
        return []
    begun = LIBRARIES["cpu"] + case.adapter * 4 + sum(term.bytes for term in terms if term.purpose is Purpose.WEIGHTS)
    later = sum(term.bytes for term in terms)
    return [
        Term(Purpose.LOADING, "model file, until it is copied", begun + case.parameters * case.shape.stored - later)
    ]


# -- what train runs with --

MODES = {
    job.GradientCheckpointing.AUTO: (False, True),
    job.GradientCheckpointing.ENABLED: (True,),
    job.GradientCheckpointing.DISABLED: (False,),
}

SMALLEST = {"cpu": 256, "cuda": 2048}
"""Tokens of a micro-batch below which checkpointing costs less than making it still smaller."""


def most(case: Workload) -> int:
    """Tokens of a micro-batch beyond which the device gains little."""
    if not case.device.cpu:
        return 16_384 if case.device.compiled else 4_096
    return 2_560 if case.fast and beginning(case) >= MUCH else 640


def wanted(case: Workload) -> int:
    """The micro-batch that training is fastest with: a step, or equal parts of it, with a tenth for steps that are larger than
    others; never less than the longest example."""
    step = case.examples.step / case.device.processes * 1.1
    parts = math.ceil(step / most(case))
    room = case.examples.average if parts > 1 else 0
    return max(case.examples.longest, min(most(case), math.ceil((step / parts + room) / ROUND) * ROUND))


def setup(case: Workload, available: int) -> Setup:
    """The micro-batch that fits into `available` bytes, and whether checkpointing is needed for it."""
    best = None
    modes = MODES[case.training.gradient_checkpointing]
    for checkpointing in modes:
        tokens, longest = wanted(case), case.examples.longest
        least = longest if checkpointing is modes[-1] else max(longest, min(tokens, SMALLEST[case.device.kind]))
        while True:
            best = Setup(tokens, checkpointing, memory(case, tokens, checkpointing=checkpointing))
            if fits(best.memory, available, case.device):
                return best
            if tokens <= least:
                break
            tokens = max(least, tokens // 2)
    assert best is not None
    return best


def fits(found: Memory, available: int, device: Device) -> bool:
    return found.needed <= available * SHARE[device.kind]


def text(size: int) -> str:
    """Bytes for people: 21Gi, or 3.2Gi below ten."""
    gib = size / 2**30
    return f"{gib:.0f}Gi" if gib >= 10 else f"{gib:.1f}Gi"
