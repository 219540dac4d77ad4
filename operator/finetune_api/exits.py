"""Exit codes of the trainer image. They are API: the operator uses them to decide whether to retry an attempt."""

import enum


class Exit(enum.IntEnum):
    """How a stage's process ended."""

    DONE = 0
    """The stage succeeded."""
    INVALID = 2
    """Invalid configuration or data: not retried, since another attempt would fail in the same way."""
    OUT_OF_MEMORY = 3
    """Out of memory: retried once with half the micro-batch and the same effective batch in training, and with half the rows
    and tokens per batch in baseline and evaluation."""
    DIVERGED = 4
    """The loss diverged or is NaN: not retried, since another attempt would fail in the same way."""
    STORAGE = 5
    """S3 was unreachable for longer than the stage's timeout: retried with growing pauses."""
    STOPPED = 143
    """SIGTERM: a checkpoint was saved first; the next attempt resumes from it."""
