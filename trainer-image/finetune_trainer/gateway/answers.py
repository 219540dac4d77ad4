"""Answers of the engine: the model's name put back, and what the counters need to know of them.

A stream is passed on line by line as it comes. Every `data:` line is a JSON document, of which the field `model` is replaced.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any, Literal

from finetune_trainer.data import patterns, values
from finetune_trainer.process import log

CHECKED_CHARACTERS = 1 << 20
"""Longer answers are not checked with a schema."""

LINE_BYTES = 4 << 20
"""Most bytes of a line of a stream."""

Result = Literal["Answered", "Failed", "Abandoned", "Refused"]
"""What became of a request. Failed: by us, or by the engine. Abandoned: by the client, before the end of its answer. Refused: by
the engine, as the client's mistake (4xx)."""


@dataclasses.dataclass
class Reading:
    """What one answer says. texts: of each choice, in pieces, only where `keep` is set."""

    keep: bool = False
    texts: dict[int, list[str]] = dataclasses.field(default_factory=dict)
    length: int = 0
    spoken: bool = False
    called: bool = False
    cut: bool = False
    failed: bool = False
    prompt_tokens: int = 0
    answer_tokens: int = 0

    def add(self, document: dict[str, Any]) -> None:
        """A whole answer, or a chunk of one."""
        for choice in document.get("choices") or ():
            message = choice.get("message") or choice.get("delta") or {}
            text = message.get("content") or choice.get("text") or ""
            self.called |= bool(message.get("tool_calls"))
            self.cut |= choice.get("finish_reason") == "length"
            if text:
                self.spoken = self.spoken or bool(text.strip())
                if self.keep and self.length <= CHECKED_CHARACTERS:
                    self.length += len(text)
                    self.texts.setdefault(choice.get("index", 0), []).append(text)
        self.failed |= "error" in document
        if usage := document.get("usage"):
            self.prompt_tokens = usage.get("prompt_tokens") or 0
            self.answer_tokens = usage.get("completion_tokens") or 0

    @property
    def empty(self) -> bool:
        return not self.spoken and not self.called

    def fits(self, schema: str) -> bool | None:
        """Whether every choice is JSON of this schema; None where that is not checked: calls of tools, no text, or too much."""
        valid = validator(schema)
        if valid is None or self.called or not self.texts or self.length > CHECKED_CHARACTERS:
            return None
        return all(valid("".join(pieces)) for pieces in self.texts.values())


@functools.lru_cache(maxsize=256)
def validator(schema: str) -> Callable[[str], bool] | None:
    """For texts; None where the schema cannot be used, which is logged once."""
    try:
        fits = values.fits(json.loads(schema))
    except (ValueError, RecursionError) as error:
        log.warning("answers are not checked: the JSON schema cannot be used", problem=str(error)[:300])
        return None

    def valid(text: str) -> bool:
        try:
            return fits(values.parsed(text))
        except patterns.TooSlow as slow:
            log.warning("an answer counts as invalid, since its check takes too long", problem=str(slow)[:300])
        except ValueError:
            pass
        return False

    return valid


def dump(document: Any) -> bytes:
    """JSON without spaces. Halves of characters, which no encoding can write, become escapes, as they were."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def whole(body: bytes, name: str, reading: Reading) -> bytes:
    """An answer in one piece, under the name that the client knows. Raises ValueError where it is not JSON."""
    document = json.loads(body)
    if not isinstance(document, dict):
        raise ValueError("not an object")
    document["model"] = name
    reading.add(document)
    return dump(document)


class Rewriter:
    """A stream of server-sent events, under the name that the client knows. `usage`: the client has requested the last chunk,
    with the numbers of tokens; otherwise only the gateway has, and it is left out."""

    def __init__(self, name: str, reading: Reading, *, usage: bool) -> None:
        self._name, self.reading, self._usage = name, reading, usage
        self._rest = b""
        self._skipping = False
        self.done = False

    def feed(self, piece: bytes) -> bytes:
        """What of the stream is complete now. Raises ValueError for a line without an end."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > LINE_BYTES:
            raise ValueError(f"a line of more than {LINE_BYTES} bytes")
        return b"".join(line + b"\n" for line in map(self._line, lines) if line is not None)

    def _line(self, line: bytes) -> bytes | None:
        if not line.strip():
            skipped, self._skipping = self._skipping, False
            return None if skipped else line
        if not line.startswith(b"data:"):
            return line
        data = line[5:].strip()
        if data == b"[DONE]":
            self.done = True
            return line
        document = json.loads(data)
        if not isinstance(document, dict):
            return line
        self.reading.add(document)
        if not self._usage:
            if "usage" in document and not document.get("choices"):
                self._skipping = True
                return None
            document.pop("usage", None)
        if "model" in document:
            document["model"] = self._name
        return b"data: " + dump(document)
