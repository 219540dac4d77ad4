"""Chats: their turns as rows and stored examples have them, their order, and the links between tool calls and results."""

import dataclasses
from typing import Any

from finetune_trainer.data import shapes, toolcalls

ROLES = ("system", "user", "assistant", "tool")

MOST_TURNS = 2000
"""Turns of a chat: every answer is learned after a prompt of its own, so that the work grows with their square."""

ORDER = "roleOrder"
"""The data check for turns in the wrong order."""

TOOLS = shapes.TOOLS
Wrong = shapes.Wrong


@dataclasses.dataclass(frozen=True)
class Message:
    """A turn of a chat. `learned` is False for answers that only give context."""

    role: str
    content: str
    learned: bool = True
    calls: tuple[toolcalls.Call, ...] = ()
    """Of the assistant: the tools that it calls after its text."""
    call: str = ""
    """Of a tool: the id of the call that this is the result of."""
    name: str = ""
    """Of a tool, or of who speaks, where the data have it."""
    reasoning: str = ""
    """Of the assistant: what it thinks before it answers, for the template to render; no part of the answer."""

    @property
    def text(self) -> str:
        """Content and calls as one text."""
        return toolcalls.written(self.content, self.calls)

    @property
    def key(self) -> list[Any]:
        """Equal for turns of the same content and calls; the calls' ids do not count."""
        parts: list[Any] = [self.role, self.content.strip()]
        if self.reasoning:
            parts.append(self.reasoning.strip())
        return [*parts, [call.key for call in self.calls]] if self.calls else parts

    def wire(self, *, opened: bool = False) -> dict[str, Any]:
        """As OpenAI's API has it; `opened`: as chat templates need it, see `toolcalls.Call.wire`."""
        made: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.calls:
            made["tool_calls"] = [call.wire(opened=opened) for call in self.calls]
        if self.reasoning:
            made["reasoning_content"] = self.reasoning
        if self.role == "tool":
            made["tool_call_id"] = self.call
        if self.name:
            made["name"] = self.name
        return made


def turns(value: Any, field: str) -> tuple[Message, ...]:
    """The turns of a row's field. Raises Wrong."""
    if not isinstance(value, list) or not value:
        raise Wrong(f"'{field}' must be a list of {{role, content}}, found {kind_of(value)}")
    return tuple(_turn(turn, f"{field}[{index}]") for index, turn in enumerate(value))


def _turn(value: Any, place: str) -> Message:
    if not isinstance(value, dict) or "role" not in value:
        raise Wrong(f"{place} must be an object with role and content, found {kind_of(value)}")
    role = value["role"]
    if role not in ROLES:
        raise Wrong(f"{place} has the role {role!r}; supported are the roles {', '.join(ROLES[:-1])} and {ROLES[-1]}")
    try:
        calls = toolcalls.calls(value.get("tool_calls"), f"{place}.tool_calls")
    except toolcalls.Unusable as wrong:
        raise Wrong(str(wrong), TOOLS) from None
    if calls and role != "assistant":
        raise Wrong(f"{place} has the role {role} and calls tools; only the assistant may", TOOLS)
    content = value.get("content")
    if content is None and calls:
        content = ""
    text = text_of(content, f"{place}.content", empty=role != "assistant" or bool(calls))
    reasoning = text_of(value.get("reasoning_content", ""), f"{place}.reasoning_content", empty=True)
    call = _word(value, "tool_call_id") if role == "tool" else ""
    return Message(role, text, value.get("weight") != 0, calls, call, _word(value, "name"), reasoning)


def _word(value: dict[str, Any], field: str) -> str:
    return value[field] if isinstance(value.get(field), str) else ""


def check(turns: tuple[Message, ...]) -> None:
    """Raises Wrong for turns in an order that no chat has, and for too many."""
    if len(turns) > MOST_TURNS:
        raise Wrong(f"a chat of {len(turns)} turns, at most {MOST_TURNS} are possible; cut it into several rows")
    if turns[-1].role != "assistant":
        raise Wrong(f"the last turn has the role {turns[-1].role}; an example ends with the assistant's answer", ORDER)
    if not any(turn.role == "user" for turn in turns):
        raise Wrong("there is no turn of the user before the answer", ORDER)
    if any(turn.role == "system" for turn in turns[1:]):
        raise Wrong("a system turn comes after the first turn; only the first may be one", ORDER)
    chat = turns[1:] if turns[0].role == "system" else turns
    expected: tuple[str, ...] = ("user",)
    for index, turn in enumerate(chat):
        seen = f"turn {index + 1} of the chat has the role {turn.role}"
        if turn.role == "tool" and "tool" not in expected:
            raise Wrong(f"{seen}, but there is no call before it", TOOLS)
        if turn.role not in expected:
            why = "a call is followed by its result" if "tool" in expected else "they alternate"
            raise Wrong(f"{seen}, expected {' or '.join(expected)}: {why}", ORDER)
        if turn.role == "assistant":
            expected = ("tool",) if turn.calls else ("user",)
        else:
            expected = ("tool", "assistant") if turn.role == "tool" else ("assistant",)


def linked(turns: tuple[Message, ...], tools: str | None) -> tuple[Message, ...]:
    """The turns, each call with an id and each result with the id of its call. Raises Wrong for a call or result without the
    other."""
    made: list[Message] = []
    waiting: list[toolcalls.Call] = []
    count = 0
    for index, turn in enumerate(turns):
        place = f"messages[{index}]"
        if turn.role == "tool":
            made.append(_result_of(turn, waiting, place))
            continue
        if waiting:
            names = ", ".join(f"{call.name!r}" for call in waiting)
            raise Wrong(f"{place} comes before the result of {names}; each call needs its result", TOOLS)
        waiting = list(toolcalls.numbered(turn.calls, count))
        count += len(waiting)
        for call in waiting:
            if tools is None:
                raise Wrong(f"{place} calls {call.name!r}, but the row has no 'tools'", TOOLS)
            if call.name not in toolcalls.functions(tools):
                raise Wrong(f"{place} {toolcalls.problem(call, tools)}", TOOLS)
        if len({call.id for call in waiting}) < len(waiting):
            raise Wrong(f"{place} has two calls with the same id", TOOLS)
        made.append(dataclasses.replace(turn, calls=tuple(waiting)))
    return tuple(made)


def _result_of(turn: Message, waiting: list[toolcalls.Call], place: str) -> Message:
    """A result with the id of its call, which is no longer pending; without an id in the data it is the first call of that
    name."""
    for call in waiting:
        if call.id == turn.call if turn.call else turn.name in ("", call.name):
            waiting.remove(call)
            return dataclasses.replace(turn, call=call.id)
    parts = f"with the tool_call_id {turn.call!r}" if turn.call else f"of {turn.name!r}" if turn.name else "more"
    raise Wrong(f"{place} is a result {parts}, which matches no call before it", TOOLS)


def text_of(value: Any, field: str, *, empty: bool = False) -> str:
    """The text of a row's field, which may be empty only if `empty`. Raises Wrong."""
    if not isinstance(value, str):
        raise Wrong(f"'{field}' must be text, found {kind_of(value)}")
    if not value.strip() and not empty:
        raise Wrong(f"'{field}' is empty", "emptyAnswers")
    return value


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        type(None): "null",
        bytes: "binary data",
    }
    if value == []:
        return "an empty list"
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def from_record(turn: dict[str, Any]) -> Message:
    """The turn of a line of the frozen split."""
    calls = tuple(
        toolcalls.Call(call["function"]["name"], call["function"]["arguments"], call["id"])
        for call in turn.get("tool_calls", ())
    )
    learned, result = turn.get("weight", 1) != 0, turn.get("tool_call_id", "")
    reasoning = turn.get("reasoning_content", "")
    return Message(turn["role"], turn["content"], learned, calls, result, turn.get("name", ""), reasoning)
