"""A random sample of a thousand training examples, drawn while they are read, as numbers: input of the advisor's measurements.

Sampler (one example at a time) -> Traits of each -> `novelty`, `variety`
"""

import dataclasses
import itertools
import random
import re
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from finetune_trainer.checks import languages
from finetune_trainer.data import dataset

Array = np.ndarray[Any, np.dtype[Any]]

SIZE = 1000
"""Examples of the sample: shares are accurate to about three percentage points."""

ASKED, ANSWERED = 65_536, 8_192
"""Characters of a prompt and of an answer that are used."""

STEM, LONG = 5, 6
"""Words of LONG letters or more may count as rare words; a prompt has one if any of its words begins with the same STEM
letters, so that refund and refunded are the same."""

ASKING = 30
"""Words of the longest turn that may be a question about names."""

SHORT = 4
"""Words of an answer that is a label or a name rather than a sentence."""

CODE = 0.06
"""Share of characters typical of programs and markup from which an answer is not prose."""

TITLE = 0.7
"""Share of capitalised words from which a line without a full stop is a title."""

_WORD = re.compile(r"[^\W\d_]+")
_NUMBER = re.compile(r"[^\W_]*\d\w*(?:[.,:/-]\w*\d\w*)*")
_RUN = re.compile(r"\d+")
_COMPUTED = re.compile(r"=\s*[^\w\s]?\s*-?\d")
_SIGNS = re.compile(r"[{}()\[\];=<>_\\|]")


@dataclasses.dataclass(frozen=True)
class Traits:
    """An example as hashes (uint32, each once) of lower-cased words and of numbers."""

    row: int
    source: str
    answer: int
    """A hash of the whole answer."""
    prompt_words: Array
    """Words of the prompt, numbers as one word."""
    answer_words: Array
    """Words and numbers of the answer."""
    added: Array
    """Those of them that are not in the prompt."""
    lower_case: Array
    """Words of prompt and answer that appear in lower case."""
    numbers: Array
    names: Array
    words: Array
    """Of the answer and not in the prompt: numbers and codes of two digits or more; capitalised words within a sentence, and
    acronyms; long words."""
    question: int
    """A hash of the last turn before the answer without its names, for example of "When was … born?"; 0: it has no name."""
    entity: int
    """A hash of the names in that turn; 0: it has none."""
    short: bool
    """Whether the answer is a few words."""
    language: int
    """Of the answer: an index of languages.NAMES."""


class Sampler:
    """Draws SIZE examples at random, with equal probability, however many there are (reservoir sampling)."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(f"sample {seed}")  # noqa: S311
        self._sample: list[Traits] = []
        self._seen = 0

    def take(self, row: int, example: dataset.Example) -> None:
        """An example of the training files; plain text has no answer."""
        if example.answer is None:
            return
        self._seen += 1
        place = len(self._sample) if len(self._sample) < SIZE else self._random.randrange(self._seen)
        if place < SIZE:
            self._sample[place : place + 1] = [traits(row, example)]

    def of_rows(self, wanted: Array) -> list[Traits]:
        """Those of the wanted rows (bool [rows])."""
        return [one for one in sorted(self._sample, key=lambda one: one.row) if wanted[one.row]]


def traits(row: int, example: dataset.Example) -> Traits:
    """The traits of an example that has an answer."""
    prompt = "\n".join(turn.text for turn in example.prompt)[-ASKED:]
    answer = (example.answer or "")[:ANSWERED]
    prompt_words, answer_words = _WORD.findall(prompt), _WORD.findall(answer)
    known = {word.casefold() for word in prompt_words}
    stems = {word[:STEM] for word in known}
    runs = _runs(prompt)
    numbers = [token for token in _NUMBER.findall(answer) if sum(map(str.isdigit, token)) > 1]
    new = [token for token in numbers if not _in_prompt(token, runs)]
    prose = len(_SIGNS.findall(answer)) < CODE * len(answer)
    question, entity = _question(example.prompt[-1].text[-ASKED:] if example.prompt else "")
    long = {word.casefold() for word in answer_words if len(word) >= LONG and word.islower()} if prose else set()
    return Traits(
        row=row,
        source=example.source,
        answer=zlib.crc32(answer.strip().encode("utf-8", "replace")),
        prompt_words=_hashes([*known, *(["0"] if runs else [])]),
        answer_words=_hashes([*map(str.casefold, answer_words), *numbers]),
        added=_hashes([*(word for word in map(str.casefold, answer_words) if word not in known), *new]),
        lower_case=_hashes(word for word in itertools.chain(prompt_words, answer_words) if word.islower()),
        numbers=_hashes(new if not _COMPUTED.search(answer) else ()),
        names=_hashes(
            word for word in map(str.casefold, _names(answer, answer_words) if prose else ()) if word not in known
        ),
        words=_hashes(word for word in long if word[:STEM] not in stems),
        question=question,
        entity=entity,
        short=len(answer_words) + len(numbers) <= SHORT,
        language=languages.language(answer),
    )


def _question(text: str) -> tuple[int, int]:
    """What is asked, and about which names, as hashes; zeros for a text without names, or too long for a question."""
    words = _WORD.findall(text)
    names = _names(text, words) if len(words) <= ASKING else []
    if not names:
        return 0, 0
    return _hash(" ".join(word for word in words if word.islower())), _hash(" ".join(names))


def _hash(text: str) -> int:
    return zlib.crc32(text.encode("utf-8", "replace")) or 1


def _runs(text: str) -> set[str]:
    """The digits of a text's numbers, run by run and as a whole, without leading zeros."""
    found = {run.lstrip("0") for run in _RUN.findall(text)}
    return found | {"".join(_RUN.findall(token)).lstrip("0") for token in _NUMBER.findall(text)}


def _in_prompt(number: str, runs: set[str]) -> bool:
    """Whether the prompt has the number, perhaps in another format: two forms of a date share most digits."""
    parts = [run.lstrip("0") for run in _RUN.findall(number)]
    there = sum(len(part) for part in parts if part in runs)
    return "".join(parts) in runs or 2 * there >= sum(map(len, parts))


def _names(answer: str, words: list[str]) -> list[str]:
    """Capitalised words that do not begin a sentence, a line or a quotation, and acronyms; of a few words all."""
    capital = sum(word[0].isupper() for word in words)
    if len(words) > SHORT and capital >= TITLE * len(words) and answer.rstrip()[-1:] not in ".!?。":
        return []
    found = []
    for match in _WORD.finditer(answer):
        word = match[0]
        if len(word) > 2 and word[0].isupper() and word[1:].islower():
            if len(words) <= SHORT or not _begins(answer, match.start()):
                found.append(word)
        elif 2 <= len(word) <= 5 and word.isupper() and capital < TITLE * len(words):
            found.append(word)
    return found


def _begins(text: str, place: int) -> bool:
    before = text[max(0, place - 4) : place]
    plain = before.rstrip(" \t")
    return not plain or not (plain[-1].isalnum() or plain[-1] in ",'’)&-") or (plain[-1] == "-" and before != plain)


def _hashes(words: Iterable[str]) -> Array:
    return np.unique(np.array([zlib.crc32(word.encode("utf-8", "replace")) for word in words], dtype=np.uint32))
