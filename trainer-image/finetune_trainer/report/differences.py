"""Where an answer differs from the expected one, word by word, for the samples. Pure."""

import difflib
import itertools
import re

from finetune_trainer.report import markup

WORDS = 1500
"""Words up to which texts are compared; the time grows with the square."""

_PIECES = re.compile(r"\w+|\s+|[^\w\s]")


def marked(expected: str, answer: str) -> markup.Html | None:
    """The answer with what it lacks as <del> and what it adds as <ins>; None: too long to compare word by word."""
    wanted, got = _PIECES.findall(expected), _PIECES.findall(answer)
    begin = _common(wanted, got)
    end = _common(wanted[begin:][::-1], got[begin:][::-1])
    left, right = wanted[begin : len(wanted) - end], got[begin : len(got) - end]
    if len(left) > WORDS or len(right) > WORDS:
        return None
    parts = [markup.text("".join(got[:begin]))]
    for kind, a, b, c, d in difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        if kind == "equal":
            parts.append(markup.text("".join(right[c:d])))
            continue
        parts += [_wrapped("del", "".join(left[a:b])), _wrapped("ins", "".join(right[c:d]))]
    return "".join([*parts, markup.text("".join(got[len(got) - end :]))])


def nearness(expected: str, answer: str) -> float:
    """How much of the words is shared, from 0 to 1; of long texts only the beginning is looked at."""
    pair = [_PIECES.findall(one)[:400] for one in (expected, answer)]
    return difflib.SequenceMatcher(None, *pair, autojunk=False).ratio()


def _common(a: list[str], b: list[str]) -> int:
    """How many pieces both begin with."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _wrapped(tag: str, piece: str) -> markup.Html:
    return f"<{tag}>{markup.text(piece)}</{tag}>" if piece else ""
