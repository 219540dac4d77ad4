"""What is most similar to a question, by BM25: training examples by their questions (Retrieved), passages of documents (RAG).

Of examples only the frozen split's training ones are indexed, the same that the tuned model learned from. The split keeps
examples with the same prompt on one side, so a held-out question's own row is never here; nearly equal ones are, as they are in
training.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from finetune_trainer.data import dataset

INDEXED = 100_000
"""Entries of an index, drawn by the seed from more: its memory grows with their words."""

WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
"""What counts as a word: where scripts put no space between words, each character."""

T = TypeVar("T")


def question(example: dataset.Example) -> str:
    """What is searched by: the last turn of the user."""
    return next((turn.content for turn in reversed(example.prompt) if turn.role == "user"), "")


def words(text: str) -> list[str]:
    return WORDS.findall(unicodedata.normalize("NFC", text).lower())


class Index(Generic[T]):
    """BM25 (Lucene's variant, its usual constants) over texts."""

    def __init__(self, entries: Sequence[T], text: Callable[[T], str], size: Callable[[T], int]) -> None:
        """text: what an entry is searched by; size: its tokens in a prompt."""
        import bm25s

        self.entries = entries
        self._size = size
        self._sizes: dict[int, int] = {}
        self._ranking: Any = None
        corpus = [words(text(one)) for one in entries]
        if any(corpus):
            self._ranking = bm25s.BM25()
            self._ranking.index(corpus, show_progress=False)

    def nearest(self, text: str, count: int, room: int) -> list[T]:
        """At most `count` entries within `room` tokens, the most similar one last, where a model reads it best.

        Equal ones in their order. An entry that does not fit is left out, and a less similar one may.
        """
        chosen: list[T] = []
        scores = self._scores(text)
        for place in np.argsort(-scores, kind="stable")[: 2 * count].tolist():
            if len(chosen) == count:
                break
            if place not in self._sizes:
                self._sizes[place] = self._size(self.entries[place])
            if self._sizes[place] <= room:
                chosen.append(self.entries[place])
                room -= self._sizes[place]
        return chosen[::-1]

    def _scores(self, text: str) -> Any:
        known = [word for word in words(text) if self._ranking is not None and word in self._ranking.vocab_dict]
        if not known:
            return np.zeros(len(self.entries))
        return self._ranking.get_scores(known)
