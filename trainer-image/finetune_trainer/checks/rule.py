"""The interface of rules. Rules are pure: rows or columns in, hits out."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from finetune_trainer.data import dataset, tokens

Rows = np.ndarray[Any, np.dtype[np.int64]]
"""Row numbers, ascending."""

Mask = np.ndarray[Any, np.dtype[np.bool]]
"""bool [rows]."""


@dataclasses.dataclass(frozen=True)
class TokenizedExample:
    """An example with its tokens: the input of row rules."""

    example: dataset.Example
    details: tokens.Details

    @functools.cached_property
    def text(self) -> str:
        """All texts of the example."""
        example = self.example
        others = (example.text or "", example.rejected or "", example.tools or "")
        thought = (turn.reasoning for turn in example.messages if turn.reasoning)
        return "\n".join([*(turn.text for turn in example.messages), *thought, *others])

    @functools.cached_property
    def answers(self) -> list[str]:
        """The answers as text; all of a plain text."""
        if self.example.text is not None:
            return [self.example.text]
        return [turn.content for turn in self.example.messages if turn.role == "assistant"]


class RowRule(Protocol):
    """A rule of one row."""

    @property
    def id(self) -> str: ...

    def fires(self, row: TokenizedExample) -> bool: ...

    def words(self, example: dataset.Example) -> str:
        """A short description of the place; empty for none."""
        ...


@dataclasses.dataclass(frozen=True)
class Hits:
    """The result of a rule."""

    rows: Rows
    of: int
    """The number of rows that the rule checked."""
    text: str
    """The end of a sentence that begins with "12 of 300 examples"; or a whole sentence, see `whole`."""
    drop: Rows | None = None
    """The rows to leave out, where these are not `rows`."""
    beside: Rows | None = None
    """For each row another one to mention with it, such as the one that it repeats."""
    words: Callable[[dataset.Example], str] | None = None
    """A short description of one place."""
    whole: bool = False
    """Whether `text` is a whole sentence."""


NONE = Hits(np.zeros(0, dtype=np.int64), 0, "")


def rows(mask: Mask) -> Rows:
    return np.flatnonzero(mask)
