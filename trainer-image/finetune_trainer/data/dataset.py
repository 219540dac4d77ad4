"""Examples: the rows of the data files by meaning, the split that they belong to, and the frozen split in storage.

preflight reads the users' files, checks every row and freezes the split; train and evaluate read only the frozen files,
so that all attempts and stages see the same examples, even if the users' files change meanwhile.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from finetune_api import job
from finetune_trainer.data import chats, rows, shapes, toolcalls, values

SPLITS = ("train", "validation", "test")

ORDER = chats.ORDER
TOOLS = shapes.TOOLS

Wrong = shapes.Wrong
"""A row, or an example, that cannot be learned."""

Message = chats.Message

EXPECTED = {
    job.Format.PREFERENCE: '{"prompt": "...", "chosen": "...", "rejected": "..."} (texts or lists of messages)',
    job.Format.CHAT: '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    job.Format.PROMPT_COMPLETION: '{"prompt": "...", "completion": "..."}',
    job.Format.INSTRUCTION: '{"instruction": "...", "input": "...", "output": "..."} (input is optional)',
    job.Format.TEXT: '{"text": "..."}',
}

FIELDS = {
    job.Format.PREFERENCE: ("chosen", "rejected"),
    job.Format.CHAT: ("messages",),
    job.Format.PROMPT_COMPLETION: ("prompt", "completion"),
    job.Format.INSTRUCTION: ("instruction", "output"),
    job.Format.TEXT: ("text",),
}

READ = {
    job.Format.PREFERENCE: ("prompt", "chosen", "rejected", "system", "tools"),
    job.Format.CHAT: ("messages", "system", "tools"),
    job.Format.PROMPT_COMPLETION: ("prompt", "completion", "system", "tools"),
    job.Format.INSTRUCTION: ("instruction", "input", "output", "system", "history", "tools"),
    job.Format.TEXT: ("text",),
}
"""The fields that are read of a row, in the names of `shapes`."""


@dataclasses.dataclass(frozen=True)
class Example:
    """Either a chat that ends with an answer, or plain text. `source` is the place it came from, `uri:line`.

    Of a preference pair the chat ends with the chosen answer; `rejected` is the worse answer to the same prompt.
    """

    source: str
    messages: tuple[Message, ...] = ()
    text: str | None = None
    rejected: str | None = None
    tools: str | None = None
    """What the assistant may call, as `toolcalls.tools` writes it; None: it has no tools."""
    group: str | None = None
    """Of dataset.groupBy: what rows that belong together have in common."""
    unused: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)
    """Fields of the row that nothing reads; not stored with the example."""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns before the last answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str | None:
        """The last answer, its calls in JSON; None for plain text, and for a question that a teacher will answer."""
        return (self.messages[-1].text or None) if self.messages else None

    @property
    def size(self) -> int:
        """Characters of all texts."""
        others = (self.text, self.rejected, self.tools)
        turns = sum(len(turn.text) + len(turn.reasoning) for turn in self.messages)
        return turns + sum(len(one or "") for one in others)

    def sides(self) -> tuple["Example", ...]:
        """The example as chats that end with one answer each: itself, or a preference pair's chosen and rejected chat."""
        if self.rejected is None:
            return (self,)
        chosen = dataclasses.replace(self, rejected=None)
        worse = dataclasses.replace(self.messages[-1], content=self.rejected)
        return chosen, dataclasses.replace(chosen, messages=(*self.prompt, worse))

    def key(self) -> int:
        """A hash of the prompt, tools included (of the whole text for plain text): equal prompts belong to one split."""
        if self.text is not None:
            return digest(["text", self.text.strip()])
        return self._key(self.prompt)

    def keys(self) -> Iterator[int]:
        """The prompts of every answer in the chat, the last one's included."""
        if self.text is not None:
            yield self.key()
        for index, turn in enumerate(self.messages):
            if turn.role == "assistant":
                yield self._key(self.messages[:index])

    def _key(self, turns: Sequence[Message]) -> int:
        parts = [turn.key for turn in turns]
        return digest(parts if self.tools is None else ["tools", self.tools, parts])

    def line(self) -> str:
        """The example as a line of the frozen split."""
        return json.dumps({"source": self.source, **self._record()}, ensure_ascii=False) + "\n"

    def content(self) -> str:
        """The same without its place: equal for examples that were moved within their files."""
        return json.dumps(self._record(), ensure_ascii=False) + "\n"

    def _record(self) -> dict[str, Any]:
        record: dict[str, Any] = {}
        if self.text is not None:
            record["text"] = self.text
        else:
            record["messages"] = [turn.wire() | ({} if turn.learned else {"weight": 0}) for turn in self.messages]
        if self.tools is not None:
            record["tools"] = json.loads(self.tools)
        if self.rejected is not None:
            record["rejected"] = self.rejected
        if self.group is not None:
            record["group"] = self.group
        return record


def digest(value: Any) -> int:
    """64 bits that depend only on the value, not on the process or on the order of the rows."""
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def detect(value: Any) -> job.Format:
    """The format, by a row's fields. Raises Wrong."""
    if not isinstance(value, dict):
        raise Wrong(f"expected a JSON object, found {chats.kind_of(value)}")
    fields = shapes.shape(value).fields
    for kind, wanted in FIELDS.items():
        if all(field in fields for field in wanted):
            return kind
    raise Wrong(f"no format has these fields ({shapes.keys(value)}); expected one of " + " or ".join(EXPECTED.values()))


def example(value: Any, kind: job.Format, source: str) -> Example:
    """A row of a known format as an example. Raises Wrong."""
    if not isinstance(value, dict):
        raise Wrong(f"expected a JSON object, found {chats.kind_of(value)}")
    shaped = shapes.shape(value)
    fields = shaped.fields
    missing = [field for field in FIELDS[kind] if field not in fields]
    if missing:
        raise Wrong(f"the field {missing[0]!r} is missing (found: {shapes.keys(value)}); expected {EXPECTED[kind]}")
    made = _example(fields, kind, source)
    used = READ[kind]
    prefix = tuple(f"{name}[]" for name in used)
    turns = {name for name in shaped.unused if name.startswith(prefix)}
    return dataclasses.replace(made, unused=frozenset(shapes.unused(fields, used) | turns))


def _example(fields: dict[str, Any], kind: job.Format, source: str) -> Example:
    if kind is job.Format.TEXT:
        return Example(source, text=chats.text_of(fields["text"], "text"))
    if kind is job.Format.PREFERENCE:
        return _preference(fields, source)
    if kind is job.Format.CHAT:
        turns = chats.turns(fields["messages"], "messages")
    elif kind is job.Format.INSTRUCTION:
        asked = shapes.request(chats.text_of(fields["instruction"], "instruction"), fields.get("input"))
        turns = (
            *_history(fields.get("history")),
            Message("user", asked),
            Message("assistant", chats.text_of(fields["output"], "output")),
        )
    else:
        turns = _prompt(fields["prompt"]) + _completion(fields["completion"])
    turns = _with_system(turns, fields.get("system"))
    chats.check(turns)
    try:
        tools = toolcalls.tools(fields.get("tools"))
    except toolcalls.Unusable as wrong:
        raise Wrong(str(wrong), TOOLS) from None
    return Example(source, messages=chats.linked(turns, tools), tools=tools)


def _with_system(turns: tuple[Message, ...], value: Any) -> tuple[Message, ...]:
    """The turns after the system prompt of the row's field `system`."""
    if value is None or value == "":
        return turns
    text = chats.text_of(value, "system", empty=True)
    if not text.strip():
        return turns
    if turns and turns[0].role == "system":
        if turns[0].content.strip() == text.strip():
            return turns
        raise Wrong("the field 'system' differs from the chat's own system turn; write one of them")
    return (Message("system", text, learned=all(turn.learned for turn in turns[:1])), *turns)


def _history(value: Any) -> tuple[Message, ...]:
    """Alpaca's earlier rounds: pairs of a question and its answer."""
    if isinstance(value, str) and value.strip():
        try:
            value = values.strict(value)
        except ValueError as error:
            raise Wrong(f"'history' is text that is not a JSON list: {error}") from None
    if value in (None, "", []):
        return ()
    pairs = value if isinstance(value, list) else [value]
    turns: list[Message] = []
    for index, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise Wrong(f"history[{index}] must be a pair of question and answer, found {chats.kind_of(pair)}")
        question, reply = (chats.text_of(one, f"history[{index}]") for one in pair)
        turns += [Message("user", question), Message("assistant", reply)]
    return tuple(turns)


def _preference(value: dict[str, Any], source: str) -> Example:
    """A preference pair in any of the forms that TRL documents: texts, messages, or whole chats that differ at their end."""
    chosen, rejected, prompt = (_side(value.get(field), field) for field in ("chosen", "rejected", "prompt"))
    all_turns = [turn for side in (chosen, rejected, prompt) if isinstance(side, tuple) for turn in side]
    if value.get("tools") or any(turn.calls or turn.role == "tool" for turn in all_turns):
        raise Wrong("tools are not supported in preference pairs; write the chosen chat as a row of messages", TOOLS)
    if isinstance(chosen, tuple) and isinstance(rejected, tuple):
        prompt_turns = _prompt_turns(prompt, chosen, rejected)
        better, worse = _ending(prompt_turns, chosen, "chosen"), _ending(prompt_turns, rejected, "rejected")
    elif isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            raise Wrong(
                "'chosen' and 'rejected' are texts without a prompt; expected " + EXPECTED[job.Format.PREFERENCE]
            )
        prompt_turns = (Message("user", prompt, learned=False),) if isinstance(prompt, str) else prompt
        better, worse = chosen, rejected
    else:
        raise Wrong("'chosen' and 'rejected' must be of the same kind: both texts, or both lists of messages")
    turns = _with_system((*prompt_turns, Message("assistant", better)), value.get("system"))
    chats.check(turns)
    if better == worse:
        raise Wrong("'chosen' and 'rejected' are the same answer, so that there is nothing to prefer")
    return Example(source, turns, rejected=worse)


def _side(value: Any, field: str) -> str | tuple[Message, ...] | None:
    """A text or turns as context; None for a field that is absent."""
    if value is None or (field == "prompt" and value in ("", [])):
        return None
    if isinstance(value, str):
        return chats.text_of(value, field)
    return tuple(dataclasses.replace(turn, learned=False) for turn in chats.turns(value, field))


def _ending(prompt_turns: tuple[Message, ...], side: tuple[Message, ...], field: str) -> str:
    """The one answer that follows the prompt, which the side may repeat."""
    rest = side[len(prompt_turns) :] if side[: len(prompt_turns)] == prompt_turns else side
    if len(rest) != 1 or rest[0].role != "assistant":
        roles = ", ".join(turn.role for turn in rest) or "nothing"
        raise Wrong(f"after the shared prompt '{field}' must be one answer of the assistant, found {roles}")
    return rest[0].content


def _prompt_turns(
    prompt: str | tuple[Message, ...] | None, chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[Message, ...]:
    """The turns of the prompt: the field's own, or its text before single answers, or the turns that both chats begin with."""
    if isinstance(prompt, tuple):
        return prompt
    if isinstance(prompt, str) and len(chosen) == len(rejected) == 1:
        return (Message("user", prompt, learned=False),)
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared:
        raise Wrong("'chosen' and 'rejected' do not begin with a common turn; add the field 'prompt'")
    if isinstance(prompt, str) and all(turn.content.strip() != prompt.strip() for turn in chosen[:shared]):
        raise Wrong(
            "the text 'prompt' is not one of the turns that 'chosen' and 'rejected' begin with; remove or correct it"
        )
    return chosen[:shared]


def _prompt(value: Any) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("user", chats.text_of(value, "prompt")),)
    _text_or_turns(value, "prompt")
    return tuple(dataclasses.replace(turn, learned=False) for turn in chats.turns(value, "prompt"))


def _completion(value: Any) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("assistant", chats.text_of(value, "completion")),)
    _text_or_turns(value, "completion")
    return chats.turns(value, "completion")


def _text_or_turns(value: Any, field: str) -> None:
    if not isinstance(value, list):
        raise Wrong(f"'{field}' must be text, or a list of {{role, content}}, found {chats.kind_of(value)}")


def frozen(path: pathlib.Path) -> list[Example]:
    """The examples of one file of the frozen split."""
    return list(stream(path))


def stream(path: pathlib.Path) -> Iterator[Example]:
    """The examples of one file of the frozen split, one at a time."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield from_record(json.loads(line))


def from_record(record: dict[str, Any]) -> Example:
    turns = tuple(chats.from_record(turn) for turn in record.get("messages", ()))
    tools = json.dumps(record["tools"], ensure_ascii=False) if "tools" in record else None
    return Example(record["source"], turns, record.get("text"), record.get("rejected"), tools, record.get("group"))


def parse(
    found: Iterator[rows.Row | rows.Bad],
    kind: job.Format,
    group_by: str | None = None,
    read: Callable[[Any, job.Format, str], Example] | None = None,
) -> Iterator[Example | rows.Bad]:
    """Examples of one file; Auto decides the format by the first row. group_by: the field with a row's group. read: instead of
    `example`, for every format."""
    for row in found:
        if isinstance(row, rows.Bad):
            yield row
            continue
        try:
            if kind is job.Format.AUTO and read is None:
                kind = detect(row.value)
            made = (read or example)(row.value, kind, row.source)
            yield made if group_by is None else grouped(made, row.value, group_by)
        except Wrong as wrong:
            yield rows.Bad(row.source, str(wrong), wrong.rule)


def grouped(made: Example, value: dict[str, Any], group_by: str) -> Example:
    """The example with its group, which is read from the row. Raises Wrong where the row has none."""
    found: Any = value.get(group_by)
    if found is None and "." in group_by:
        found = value
        for name in group_by.split("."):
            found = found.get(name) if isinstance(found, dict) else None
    usable = isinstance(found, str | int | float) and not isinstance(found, bool)
    text = str(found).strip() if usable else ""
    if text in ("", "nan"):
        seen = "is missing" if found is None else "is empty" if usable else f"is {chats.kind_of(found)}"
        raise Wrong(
            f"the field {group_by!r} {seen} (found: {shapes.keys(value)}); dataset.groupBy needs text or a number in every row"
        )
    return dataclasses.replace(made, group=text, unused=made.unused - {group_by, group_by.split(".")[0]})


def of_one_kind(found: Iterable[Example | rows.Bad], pairs: bool | None = None) -> Iterator[Example | rows.Bad]:
    """The same examples, with preference pairs among others as Bad, and the reverse. `pairs`: which kind is right; None: the
    first one's."""
    for one in found:
        if isinstance(one, Example):
            kind = one.rejected is not None
            pairs = kind if pairs is None else pairs
            if kind is not pairs:
                seen = "a preference pair among other examples" if kind else "not a preference pair, unlike the others"
                one = rows.Bad(one.source, f"{seen}; a dataset has only pairs, or none", "schema")
        yield one
