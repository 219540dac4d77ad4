"""The training examples that are most similar to a question, by BM25 over their questions: for the contender Retrieved.

Only the frozen split's training examples are indexed, the same that the tuned model learned from. The split keeps examples with
the same prompt on one side, so a held-out question's own row is never here; nearly equal ones are, as they are in training.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from finetune_trainer.data import dataset

INDEXED = 100_000
"""Training examples in the index, drawn by the seed from more: its memory grows with their words."""

WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
"""What counts as a word: where scripts put no space between words, each character."""


def question(example: dataset.Example) -> str:
    """What is searched by: the last turn of the user."""
    return next((turn.content for turn in reversed(example.prompt) if turn.role == "user"), "")


def words(text: str) -> list[str]:
    return WORDS.findall(text.lower())


class Index:
    """BM25 (Lucene's variant, its usual constants) over the questions of examples."""

    def __init__(self, examples: Sequence[dataset.Example], size: Callable[[dataset.Example], int]) -> None:
        """size: the tokens of an example that is shown before a question."""
        import bm25s

        self.examples = examples
        self._size = size
        self._sizes: dict[int, int] = {}
        self._ranking: Any = None
        corpus = [words(question(one)) for one in examples]
        if any(corpus):
            self._ranking = bm25s.BM25()
            self._ranking.index(corpus, show_progress=False)

    def nearest(self, text: str, count: int, room: int) -> list[dataset.Example]:
        """At most `count` examples within `room` tokens, the most similar one last, where a model reads it best.

        Equal ones in the order of the file. An example that does not fit is left out, and a less similar one may.
        """
        chosen: list[dataset.Example] = []
        scores = self._scores(text)
        for place in np.argsort(-scores, kind="stable")[: 2 * count].tolist():
            if len(chosen) == count:
                break
            if place not in self._sizes:
                self._sizes[place] = self._size(self.examples[place])
            if self._sizes[place] <= room:
                chosen.append(self.examples[place])
                room -= self._sizes[place]
        return chosen[::-1]

    def _scores(self, text: str) -> Any:
        known = [word for word in words(text) if self._ranking is not None and word in self._ranking.vocab_dict]
        if not known:
            return np.zeros(len(self.examples))
        return self._ranking.get_scores(known)
