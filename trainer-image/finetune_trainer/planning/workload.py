"""The input of the memory estimate: model, settings, examples and device. No weights, no data, no torch.

architecture.Shape, Examples, Device -> Workload -> `memory`
"""

import dataclasses

from finetune_api import job
from finetune_trainer.planning import architecture


@dataclasses.dataclass(frozen=True)
class Examples:
    """The training examples, in tokens. A preference pair is one example of two rows."""

    longest: int
    row: int
    """Of the longest row."""
    average: float
    step: float
    """Of an optimizer step, common prefixes counted once; on average."""
    learned: float = 1.0
    """Share of the tokens that are learned."""

    @classmethod
    def of_one_kind(cls, tokens: int, count: int) -> "Examples":
        """Examples of one length without common prefixes, `count` a step."""
        return cls(tokens, tokens, tokens, tokens * count)


@dataclasses.dataclass(frozen=True)
class Device:
    """Where training runs."""

    kind: str
    """cpu or cuda"""
    width: int = 2
    """Bytes of a base weight and of an activation: bfloat16, or 4 for float32."""
    processes: int = 1
    """Processes that train together, each with a part of a step's examples."""
    shards: int = 1
    """Processes that shard the frozen layers: 1, or all; `parallelism` decides."""
    compiled: bool = True
    """Whether FlexAttention can be compiled on a GPU, as in the trainer image; else its mask is over the whole micro-batch."""

    @property
    def cpu(self) -> bool:
        return self.kind == "cpu"


@dataclasses.dataclass(frozen=True)
class Workload:
    """Model, settings, examples and device of one training."""

    shape: architecture.Shape
    training: job.Training
    examples: Examples
    device: Device
    counted: int | None = None
    """The base model's weights, where they are known exactly."""
    chosen: bool | None = None
    """Whether the fast engine was chosen, where the engine is known."""

    @property
    def fast(self) -> bool:
        """Whether the fast engine trains it: as chosen, or before that by the family. It does not train sharded layers."""
        if self.device.shards > 1:
            return False
        if self.chosen is not None:
            return self.chosen
        return self.shape.fast and not self.training.lora.dropout

    @property
    def quantised(self) -> bool:
        return self.training.method is job.Method.QLORA

    @property
    def linears(self) -> tuple[architecture.Linear, ...]:
        return self.shape.linears(self.training.lora)

    @property
    def parameters(self) -> int:
        return self.counted or self.shape.parameters

    @property
    def adapter(self) -> int:
        return self.shape.adapter(self.training.lora)
