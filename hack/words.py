"""`make verify-words`: refuses the words that the project has retired, and says what to write instead.

A reader who knows PyTorch and Kubernetes should need no glossary, and one thing should have one name. WORDS are looked for in
every line of every tracked text file, NAMES in the identifiers of Python files, where some words that are fine in
a sentence say nothing.
"""

import io
import keyword
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator

EXEMPT = ("hack/words.py", "tests/harness/test_words.py", "requirements/", "hack/tools/go.sum")
"""This list itself and its test, and lock files."""

DATA = (".json", ".jsonl", ".png", ".sum", ".tgz")
"""Endings of files that are measured, generated or binary."""

WORDS = {
    "chances": "probabilities",
    "slopes?": "gradient",
    "forests?": "prefix tree",
    "(?<!M_)(?<!Chatbot )arenas?": "buffer pool",
    "(?<![`\"'])duels?|contests?": "comparison, pairwise comparison",
    "rivals?": "contender, baseline",
    "hearings?": "judged comparisons",
    "borders": "token spans",
    "asked for": "requested",
    "g(o|oes|oing|one|went) on": "continues, resumes, follows",
    "anew": "again",
    "by (itself|themselves)": "automatically, alone",
    "belongs? into": "belongs in",
    "stays? away": "is skipped, is missing",
    "in peace": "without faults",
    "looks? after": "watches, manages",
    "so-?manieth": "every n-th",
    "good road": "success path",
    "by luck": "by chance",
    "to be had": "available",
    "well ended": "succeeded",
    "told from": "distinguished from",
    "(taken|goes|going) from (its|a|their|the) machine": "evicted",
    "(its|lost|silent|broken|other|pod's|pods') machines?": "node",
    "machines? that (go|goes|went|is lost|was lost)": "lost node",
    "hears? of": "receives, watches",
    "whole road": "end to end",
    "for want of": "without, because ... is missing",
    "breaks? off|broke off": "stops, is interrupted",
    "the wanted (revision|release|one)": "the current revision",
}
"""Retired words and phrases, as regular expressions, and what to write instead."""

NAMES = {
    "told": "what it is",
    "said": "what it is",
    "heard": "what it is",
    "kept": "saved, or what it is",
}
"""Retired parts of Python identifiers, and what to write instead."""

LEFT, RIGHT = r"(?:(?<![A-Za-z])|(?<=[a-z])(?=[A-Z]))", r"(?![a-z])"
"""The ends of a word: in a sentence, in snake_case and in CamelCase."""

_ANY = "|".join(f"(?P<w{at}>(?i:{word.replace(' ', '[ _]')}){RIGHT})" for at, word in enumerate(WORDS))
PATTERN = re.compile(f"{LEFT}(?:{_ANY})")
MAY_NAME = re.compile("|".join(NAMES), re.IGNORECASE)


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [path for path in listed if not path.startswith(EXEMPT) and not path.endswith(DATA)]


def in_text(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, word, what to write instead) of each retired word."""
    instead = list(WORDS.values())
    for number, line in enumerate(text.splitlines(), 1):
        for found in PATTERN.finditer(line):
            yield number, found[0], instead[int(str(found.lastgroup)[1:])]


def in_names(text: str) -> Iterator[tuple[int, str, str]]:
    """The same for the identifiers of a Python file."""
    if not MAY_NAME.search(text):
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
            for part in token.string.lower().split("_"):
                if part in NAMES:
                    yield token.start[0], token.string, NAMES[part]


def main() -> int:
    count = 0
    for path in tracked():
        with open(path, encoding="utf-8") as file:
            text = file.read()
        found = [*in_text(text), *(in_names(text) if path.endswith(".py") else ())]
        for number, word, instead in sorted(found):
            print(f"{path}:{number}: '{word}' is retired; write: {instead}")
        count += len(found)
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
