"""What is to be trained, on what: all that the memory estimate looks at. No weights, no data, no torch.

architecture.Shape, Examples, Device -> Workload -> `memory`
"""

import dataclasses

from finetune_api import job
from finetune_trainer.planning import architecture


@dataclasses.dataclass(frozen=True)
class Examples:
    """What the estimate knows of the training examples, in tokens. A preference pair is one example of two rows."""

    longest: int
    row: int
    """Of the longest row."""
    average: float
    step: float
    """Of an optimizer step, those that its examples begin with together counted once; on average."""
    learned: float = 1.0
    """Share of the tokens that are learned."""

    @classmethod
    def of_one_kind(cls, tokens: int, count: int) -> "Examples":
        """Examples of one length that share nothing, `count` a step."""
        return cls(tokens, tokens, tokens, tokens * count)


@dataclasses.dataclass(frozen=True)
class Device:
    """Where training runs."""

    kind: str
    """cpu or cuda"""
    width: int = 2
    """Bytes of a base weight and of an activation: bfloat16, or 4 for float32."""
    processes: int = 1
    """That train together, each with a part of a step's examples."""
    shards: int = 1
    """Processes that hold the frozen layers together."""
    compiled: bool = True
    """Whether FlexAttention can be compiled on a GPU; else its mask is over the whole micro-batch."""

    @property
    def cpu(self) -> bool:
        return self.kind == "cpu"


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is to be trained, on what."""

    shape: architecture.Shape
    training: job.Training
    examples: Examples
    device: Device
    counted: int | None = None
    """The base model's weights, where they are known exactly."""

    @property
    def fast(self) -> bool:
        """Whether `engine.Fast` will train it."""
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
