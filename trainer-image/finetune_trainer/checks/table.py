"""The columns of all rows: numbers, never text; about 130 bytes per row, the MinHash sketch included."""

import array
import dataclasses
import functools
import json
import re
import unicodedata
from typing import Any

import numpy as np

from finetune_trainer.checks import languages, rule, similar
from finetune_trainer.data import corpus, dataset, split

Array = np.ndarray[Any, np.dtype[Any]]

JSON, BROKEN_JSON, REASONING, UNCLOSED, CALLS, UNFINISHED, TOOLS = 1, 2, 4, 8, 16, 32, 64
"""Marks of an answer: it is a JSON object or list; it begins like one but does not parse; it has a reasoning block; one that is
not closed; it calls tools, which counts as neither JSON nor prose, whatever the dialect; it ends with a letter, a digit or
punctuation that needs a continuation. And of its row: it may call tools."""

_CONTINUES = frozenset(",;:(-–—/&")

_REASONING = re.compile(r"<(/?)(?:think|thinking|thought|reasoning|scratchpad)>", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Table:
    """One row for each example, in the order they were read: training files first, then validation's and test's own."""

    part: Array
    """uint8: 0 train, 1 validation, 2 test: the files that the row came from."""
    fired: Array
    """uint32: a bit for each row rule."""
    prompts: split.Prompts
    answer: Array
    """uint64: a hash of the last answer; 0 for plain text."""
    rejected: Array
    """uint64: the same of a preference pair's rejected answer; 0 where there is none."""
    group: Array
    """uint64: a hash of the row's group by dataset.groupBy; 0 where there is none."""
    marks: Array
    """uint8: JSON, REASONING and so on."""
    characters: Array
    """uint32: the length of the last answer's text."""
    answer_language: Array
    prompt_language: Array
    """uint8: indexes of languages.NAMES."""
    sketches: similar.Sketches | None
    teaching: Array
    truncated: Array
    """bool: from the corpus."""
    learned: Array
    """int32: how many tokens are learned, from the corpus; of a pair, those of the chosen answer."""

    def __len__(self) -> int:
        return len(self.part)

    @functools.cached_property
    def same(self) -> Array:
        """uint64 [rows]: a hash of each row as a whole, the same for rows with the same prompt and answers."""
        return split.mixed(split.mixed(split.mixed(self.rejected) ^ self.answer) ^ self.prompts.last)


class Builder:
    """Takes the rows one by one."""

    def __init__(self, *, sketched: bool, detect_languages: bool) -> None:
        """sketched: whether rows are compared for similarity; detect_languages: whether languages are detected."""
        self._part, self._fired = array.array("B"), array.array("I")
        self._prompts = split.Builder()
        self._answer, self._rejected = array.array("Q"), array.array("Q")
        self._marks, self._answer_languages, self._prompt_languages = (
            array.array("B"),
            array.array("B"),
            array.array("B"),
        )
        self._characters, self._group = array.array("I"), array.array("Q")
        self._sketcher = similar.Sketcher() if sketched else None
        self._detect_languages = detect_languages

    def __len__(self) -> int:
        return len(self._part)

    def add(self, part: int, fired: int, row: rule.TokenizedExample) -> None:
        example = row.example
        answer = example.answer
        self._part.append(part)
        self._fired.append(fired)
        self._prompts.add(list(example.keys()))
        self._answer.append(0 if answer is None else dataset.digest(answer.strip()))
        self._group.append(0 if example.group is None else dataset.digest(["group", example.group]))
        self._rejected.append(0 if example.rejected is None else dataset.digest(example.rejected.strip()))
        answer_text = example.messages[-1].content if example.messages else ""
        calls = bool(example.messages and example.messages[-1].calls)
        found = CALLS | marks(answer_text) & ~(JSON | BROKEN_JSON) if calls else marks(answer_text)
        self._marks.append(found if example.tools is None else found | TOOLS)
        self._characters.append(len(answer_text))
        prompt_text = next((turn.content for turn in reversed(example.prompt) if turn.role == "user"), "")
        detect_languages = self._detect_languages and answer is not None
        self._answer_languages.append(languages.language(answer_text) if detect_languages else languages.UNKNOWN)
        self._prompt_languages.append(languages.language(prompt_text) if detect_languages else languages.UNKNOWN)
        if self._sketcher is not None:
            self._sketcher.add(
                "\n".join(turn.text for turn in example.messages) if example.text is None else example.text
            )

    def finish(self, found: corpus.Corpus) -> Table:
        """The table, with the columns from the rows' tokens."""
        sides = 2 if found.pairs else 1
        truncated: Array = found.truncated.reshape(-1, sides).max(axis=1, initial=False)
        return Table(
            np.frombuffer(self._part, dtype=np.uint8),
            np.frombuffer(self._fired, dtype=np.uint32),
            self._prompts.finish(),
            np.frombuffer(self._answer, dtype=np.uint64),
            np.frombuffer(self._rejected, dtype=np.uint64),
            np.frombuffer(self._group, dtype=np.uint64),
            np.frombuffer(self._marks, dtype=np.uint8),
            np.frombuffer(self._characters, dtype=np.uint32),
            np.frombuffer(self._answer_languages, dtype=np.uint8),
            np.frombuffer(self._prompt_languages, dtype=np.uint8),
            None if self._sketcher is None else self._sketcher.finish(),
            found.teaching,
            truncated,
            found.trainable[::sides],
        )


def marks(answer: str) -> int:
    """The marks of an answer."""
    found = 0
    text = answer.strip()
    if text[:1] in ("{", "["):
        found |= JSON if _parses(text) else BROKEN_JSON
    if "<" in text:
        tags = [match[1] for match in _REASONING.finditer(text)]
        if tags:
            found |= REASONING
        # Qwen's templates write the opening tag themselves, so that an answer may begin inside of its block.
        if tags.count("") > tags.count("/"):
            found |= UNCLOSED
    if text and (text[-1] in _CONTINUES or unicodedata.category(text[-1])[0] in "LMN"):
        found |= UNFINISHED
    return found


def _parses(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False
