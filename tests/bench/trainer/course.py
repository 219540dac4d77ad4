"""One run of one side, as both sides report it, and what follows from it. Frozen data."""

import dataclasses

WARM_UP = 1
"""Steps at the beginning that are not counted: a small batch, on which threads start and buffers are made."""


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
        """Real tokens per second: of all steps after the warm-up, from its end to the end of the last step."""
        return sum(self.tokens[WARM_UP:]) / (self.ends[-1] - self.ends[WARM_UP - 1])

    @property
    def first_step(self) -> float:
        """Seconds from the execution of the process to the end of its first optimizer step."""
        return self.ends[0] - self.started

    @property
    def final_loss(self) -> float:
        return self.losses[-1]
