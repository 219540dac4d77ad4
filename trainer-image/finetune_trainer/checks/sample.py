"""A thousand of the training files' examples, drawn while they pass, as numbers: what the advisor's measures look at.

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
"""Examples of the sample: a share is known to about three points in a hundred."""

ASKED, ANSWERED = 65_536, 8_192
"""Characters of a prompt and of an answer that are looked at."""

STEM, LONG = 5, 6
"""Words of LONG letters or more count as rare words; they are in a prompt where one of its words begins with the same STEM
letters, so that refund and refunded are the same."""

SHORT = 4
"""Words of an answer that is a label or a name rather than a sentence."""

CODE = 0.06
"""Share of the signs of programs and markup from which an answer is no prose."""

TITLE = 0.7
"""Share of capitalised words from which a line without a full stop is a title."""

_WORD = re.compile(r"[^\W\d_]+")
_NUMBER = re.compile(r"[^\W_]*\d\w*(?:[.,:/-]\w*\d\w*)*")
_RUN = re.compile(r"\d+")
_COMPUTED = re.compile(r"=\s*[^\w\s]?\s*-?\d")
_SIGNS = re.compile(r"[{}()\[\];=<>_\\|]")


@dataclasses.dataclass(frozen=True)
class Traits:
    """An example as hashes (uint32, each once) of words in small letters and of numbers."""

    row: int
    source: str
    answer: int
    """A hash of the whole answer."""
    asked: Array
    """Words of the prompt, numbers as one word."""
    said: Array
    """Words and numbers of the answer."""
    added: Array
    """Those of them that are not in the prompt."""
    small: Array
    """Words of prompt and answer that are written small."""
    numbers: Array
    names: Array
    words: Array
    """Of the answer and not in the prompt: numbers and codes of two digits or more; capitalised words within a sentence, and
    acronyms; long words."""
    short: bool
    """Whether the answer is a few words."""
    language: int
    """Of the answer: an index of languages.NAMES."""


class Sampler:
    """Draws SIZE examples at random; each has the same chance, however many there are."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(f"sample {seed}")  # noqa: S311
        self._kept: list[Traits] = []
        self._seen = 0

    def take(self, row: int, example: dataset.Example) -> None:
        """An example of the training files; plain text has no answer to look at."""
        if example.answer is None:
            return
        self._seen += 1
        place = len(self._kept) if len(self._kept) < SIZE else self._random.randrange(self._seen)
        if place < SIZE:
            self._kept[place : place + 1] = [traits(row, example)]

    def among(self, wanted: Array) -> list[Traits]:
        """Those whose row is wanted (bool [rows])."""
        return [one for one in sorted(self._kept, key=lambda one: one.row) if wanted[one.row]]


def traits(row: int, example: dataset.Example) -> Traits:
    """What the measures need of an example that has an answer."""
    prompt = "\n".join(turn.text for turn in example.prompt)[-ASKED:]
    answer = (example.answer or "")[:ANSWERED]
    asked, said = _WORD.findall(prompt), _WORD.findall(answer)
    known = {word.casefold() for word in asked}
    stems = {word[:STEM] for word in known}
    runs = _runs(prompt)
    numbers = [token for token in _NUMBER.findall(answer) if sum(map(str.isdigit, token)) > 1]
    new = [token for token in numbers if not _told(token, runs)]
    prose = len(_SIGNS.findall(answer)) < CODE * len(answer)
    long = {word.casefold() for word in said if len(word) >= LONG and word.islower()} if prose else set()
    return Traits(
        row=row,
        source=example.source,
        answer=zlib.crc32(answer.strip().encode("utf-8", "replace")),
        asked=_hashes([*known, *(["0"] if runs else [])]),
        said=_hashes([*map(str.casefold, said), *numbers]),
        added=_hashes([*(word for word in map(str.casefold, said) if word not in known), *new]),
        small=_hashes(word for word in itertools.chain(asked, said) if word.islower()),
        numbers=_hashes(new if not _COMPUTED.search(answer) else ()),
        names=_hashes(word for word in map(str.casefold, _names(answer, said) if prose else ()) if word not in known),
        words=_hashes(word for word in long if word[:STEM] not in stems),
        short=len(said) + len(numbers) <= SHORT,
        language=languages.language(answer),
    )


def _runs(text: str) -> set[str]:
    """The digits of a text's numbers, run by run and as a whole, without leading zeros."""
    found = {run.lstrip("0") for run in _RUN.findall(text)}
    return found | {"".join(_RUN.findall(token)).lstrip("0") for token in _NUMBER.findall(text)}


def _told(number: str, runs: set[str]) -> bool:
    """Whether the prompt has the number, maybe written otherwise: most digits of a date are those of the same date."""
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
