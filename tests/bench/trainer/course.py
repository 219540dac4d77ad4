"""One run of one side, as both sides report it, and what follows from it. Frozen data."""

import dataclasses

WARM_UP = 1
"""Steps of a small batch at the beginning, on which threads start."""

UNCOUNTED = WARM_UP + 1
"""Steps that are not counted: the warm-up, and the first one of the workload, for which both sides make code and buffers."""


@dataclasses.dataclass(frozen=True)
class Course:
    """A run. The lists have one entry for each optimizer step, the warm-up too."""

    started: float
    """When its process was executed, in seconds since the epoch."""
    ends: list[float]
    """When each optimizer step ended, in seconds since the epoch."""
    losses: list[float]
    """Nats per learned token of each step's batch, before its update."""
    tokens: list[int]
    """Real tokens of each step's batch: padding is no work, a token that is shared counts for each example."""
    labelled: list[int]
    peak: int
    """Bytes of the process."""
    seconds: float
    """Of the whole process, imports and saving included."""

    @property
    def rate(self) -> float:
        """Real tokens per second of the counted steps, from the end of the one before to the end of the last."""
        return sum(self.tokens[UNCOUNTED:]) / (self.ends[-1] - self.ends[UNCOUNTED - 1])

    @property
    def first_step(self) -> float:
        """Seconds from the execution of the process to the end of its first optimizer step."""
        return self.ends[0] - self.started

    @property
    def final_loss(self) -> float:
        return self.losses[-1]
