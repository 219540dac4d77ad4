"""Where an answer differs from the expected one, word by word, for the samples. Pure."""

import difflib
import itertools
import re
import typing

WORDS = 1500
"""Words up to which texts are compared; the time is quadratic."""

ALIKE = 0.3
"""Share of letters and digits that must be common; below it, marks on nearly every word would hide the answer."""

Kind = typing.Literal["same", "lacks", "adds"]
Parts = list[tuple[Kind, str]]
"""Pieces of text in their order; none is empty."""

_PIECES = re.compile(r"\w+|\s+|[^\w\s]")


def marked(expected: str, answer: str) -> Parts | None:
    """The answer, with what it lacks and what it adds.

    None where that would not help: the texts are too long, or share too few words.
    """
    expected_pieces, answer_pieces = _PIECES.findall(expected), _PIECES.findall(answer)
    begin = _common(expected_pieces, answer_pieces)
    end = _common(expected_pieces[begin:][::-1], answer_pieces[begin:][::-1])
    left, right = expected_pieces[begin : len(expected_pieces) - end], answer_pieces[begin : len(answer_pieces) - end]
    if len(left) > WORDS or len(right) > WORDS:
        return None
    changes = [
        ("".join(left[a:b]), "".join(right[c:d]), kind == "equal")
        for kind, a, b, c, d in difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes()
    ]
    head, tail = "".join(answer_pieces[:begin]), "".join(answer_pieces[len(answer_pieces) - end :])
    shared = "".join([head, *(new for _, new, same in changes if same), tail])
    if _letters(shared) < ALIKE * max(_letters(expected), _letters(answer)):
        return None
    parts: Parts = [("same", head)]
    for old, new, same in _joined(changes):
        parts += [("same", new)] if same else [("lacks", old), ("adds", new)]
    return [(kind, piece) for kind, piece in [*parts, ("same", tail)] if piece]


def _joined(changes: list[tuple[str, str, bool]]) -> list[tuple[str, str, bool]]:
    """The changes, those with only a space between them as one: a replaced phrase reads better than replaced words."""
    made: list[tuple[str, str, bool]] = []
    for index, (old, new, same) in enumerate(changes):
        blank = same and not new.strip() and 0 < index < len(changes) - 1
        if made and not made[-1][2] and (blank or not same):
            made[-1] = (made[-1][0] + old, made[-1][1] + new, False)
        else:
            made.append((old, new, same))
    return made


def _letters(text: str) -> int:
    return sum(map(str.isalnum, text))


def similarity(expected: str, answer: str) -> float:
    """The similarity of the words, from 0 to 1; of long texts only the beginning is compared."""
    expected_pieces: list[str] = _PIECES.findall(expected)[:400]
    answer_pieces: list[str] = _PIECES.findall(answer)[:400]
    return difflib.SequenceMatcher(None, expected_pieces, answer_pieces, autojunk=False).ratio()


def _common(a: list[str], b: list[str]) -> int:
    """The number of pieces that both begin with."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
