"""Exit codes of the trainer image. They are API: the operator decides by them whether an attempt is repeated."""

import enum


class Exit(enum.IntEnum):
    """How a stage's process ended."""

    DONE = 0
    """The stage ended well."""
    INVALID = 2
    """Bad configuration or data: another attempt would end the same, so there is none."""
    OUT_OF_MEMORY = 3
    """Repeated once with half the micro-batch and the same effective batch."""
    DIVERGED = 4
    """The loss is not a number or exploded: another attempt would end the same, so there is none."""
    STORAGE = 5
    """S3 could not be reached for longer than the stage's patience: repeated with growing pauses."""
    STOPPED = 143
    """SIGTERM: a checkpoint was saved first; the next attempt resumes from it."""
