"""The dialects in which models write tool calls, and their parsers. Pure.

Each has the name of vLLM's parser (--tool-call-parser) and reads no other dialect: the server would pass a call in another
one to the client as text. Formats as in the model cards of Hermes 2 Pro, Llama 3.1 and Mistral 7B v0.3,
and in vLLM's documentation of tool calling.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from finetune_trainer.data import toolcalls, values

Reader = Callable[[str], toolcalls.Reply]

_HERMES, _END = "<tool_call>", "</tool_call>"
_MISTRAL = "[TOOL_CALLS]"
_PYTHON = "<|python_tag|>"

_NAMED = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\]\s*)?(?=\{)")
"""A call of Mistral's later templates, up to its arguments: name{...}, or name[CALL_ID]id[ARGS]{...}."""

_ARGUMENTS = ("parameters", "arguments")


def hermes(text: str) -> toolcalls.Reply:
    """Hermes 2 Pro, Qwen 2.5 and 3: <tool_call>{"name": ..., "arguments": {...}}</tool_call>, once or more."""
    content, *blocks = _blocks(text, _HERMES)
    found = [_read(block, ("arguments",)) for block in blocks]
    # Only the end of the block may follow the object; a last block that is cut off there is accepted.
    complete = all(call is not None and rest.strip()[: len(_END)] in ("", _END) for call, rest in found)
    return _reply(content, [call for call, _ in found], complete=complete)


def mistral(text: str) -> toolcalls.Reply:
    """Mistral: [TOOL_CALLS] and a list of {"name": ..., "arguments": {...}}, or [TOOL_CALLS]name{...} once for each call."""
    content, *blocks = _blocks(text, _MISTRAL)
    calls: list[toolcalls.Call | None] = []
    for block in blocks:
        if block.lstrip().startswith("["):
            calls += _listed(block.lstrip())
        else:
            head = _NAMED.match(block)
            calls.append(_named(head[1], block, head.end()) if head else None)
    return _reply(content, calls, complete=True)


def llama3_json(text: str) -> toolcalls.Reply:
    """Llama 3.1: the whole reply is {"name": ..., "parameters": {...}}; several are separated by semicolons."""
    rest = text.strip()
    marked = rest.startswith(_PYTHON)
    rest = rest.removeprefix(_PYTHON).strip()
    # Without the mark, its fields distinguish a call from an answer in JSON.
    if not marked and not (rest.startswith("{") and any(f'"{key}"' in rest for key in _ARGUMENTS)):
        return toolcalls.Reply(text.strip())
    calls: list[toolcalls.Call | None] = []
    while rest:
        call, rest = _read(rest, _ARGUMENTS)
        calls.append(call)
        rest = rest.lstrip("; \n\t\r")
        if call is None:
            break
    return _reply("", calls, complete=True)


READERS: dict[str, Reader] = {"hermes": hermes, "mistral": mistral, "llama3_json": llama3_json}
"""Key: vLLM's name of the parser."""


def of(written: str, call: toolcalls.Call) -> str | None:
    """The dialect in which a template wrote this one call; None where it is unknown."""
    for name, reader in READERS.items():
        reply = reader(written)
        if not reply.broken and [found.key for found in reply.calls] == [call.key]:
            return name
    return None


# --- Parts of a reply ---


def _blocks(text: str, mark: str) -> list[str]:
    """The text before the first mark, and the text after each. Marks within the JSON of a call are part of it."""
    place = text.find(mark)
    if place < 0:
        return [text]
    found, begin = [text[:place]], place + len(mark)
    while True:
        place = text.find(mark, _after_json(text, begin))
        found.append(text[begin : place if place >= 0 else len(text)])
        if place < 0:
            return found
        begin = place + len(mark)


def _after_json(text: str, begin: int) -> int:
    """Where the JSON of a block ends; the block's beginning where there is none."""
    starts = [place for place in (text.find("{", begin), text.find("[{", begin)) if place >= 0]
    try:
        return values.value_at(text, min(starts))[1] if starts else begin
    except ValueError:
        return begin


def _read(text: str, keys: tuple[str, ...]) -> tuple[toolcalls.Call | None, str]:
    """The call at the beginning of a text, and the rest; None where there is no call."""
    start = len(text) - len(text.lstrip())
    try:
        value, end = values.value_at(text, start)
    except ValueError:
        return None, ""
    return _call(value, keys), text[end:]


def _listed(text: str) -> list[toolcalls.Call | None]:
    try:
        value, _ = values.value_at(text, 0)
    except ValueError:
        return [None]
    return [_call(one, ("arguments",)) for one in value] or [None]


def _named(name: str, text: str, place: int) -> toolcalls.Call | None:
    try:
        return _call({"name": name, "arguments": values.value_at(text, place)[0]}, ("arguments",))
    except ValueError:
        return None


def _call(value: Any, keys: tuple[str, ...]) -> toolcalls.Call | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments = next((value[key] for key in keys if key in value), None)
    if not isinstance(arguments, dict):
        return None
    try:
        values.canonical(arguments)
    except ValueError:
        return None
    return toolcalls.Call(value["name"], json.dumps(arguments, ensure_ascii=False))


def _reply(content: str, calls: list[toolcalls.Call | None], *, complete: bool) -> toolcalls.Reply:
    made = tuple(call for call in calls if call is not None)
    return toolcalls.Reply(content.strip(), made, broken=not complete or len(made) < len(calls))
