"""The dialects in which models write calls of tools, read back from what a model generated. Pure.

Each is named as vLLM names the parser that reads it (--tool-call-parser), and reads no other: a call in another dialect is one
that the server would hand to the client as text. Formats as in the model cards of Hermes 2 Pro, Llama 3.1 and Mistral 7B v0.3,
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
    # What follows the object must be the end of the block; a last block that is cut there is read all the same.
    sound = all(call is not None and rest.strip()[: len(_END)] in ("", _END) for call, rest in found)
    return _reply(content, [call for call, _ in found], sound=sound)


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
    return _reply(content, calls, sound=True)


def llama3_json(text: str) -> toolcalls.Reply:
    """Llama 3.1: the whole reply is {"name": ..., "parameters": {...}}; several are divided by semicolons."""
    rest = text.strip()
    marked = rest.startswith(_PYTHON)
    rest = rest.removeprefix(_PYTHON).strip()
    # Without the mark an answer in JSON is told from a call by what it holds.
    if not marked and not (rest.startswith("{") and any(f'"{key}"' in rest for key in _ARGUMENTS)):
        return toolcalls.Reply(text.strip())
    calls: list[toolcalls.Call | None] = []
    while rest:
        call, rest = _read(rest, _ARGUMENTS)
        calls.append(call)
        rest = rest.lstrip("; \n\t\r")
        if call is None:
            break
    return _reply("", calls, sound=True)


READERS: dict[str, Reader] = {"hermes": hermes, "mistral": mistral, "llama3_json": llama3_json}
"""Key: vLLM's name of the parser."""


def of(written: str, call: toolcalls.Call) -> str | None:
    """The dialect in which a template wrote this one call; None for one that is not known here."""
    for name, reader in READERS.items():
        reply = reader(written)
        if not reply.broken and [found.key for found in reply.calls] == [call.key]:
            return name
    return None


# --- Parts of a reply ---


def _blocks(text: str, mark: str) -> list[str]:
    """What stands before the first mark, and what follows each. Marks within the JSON of a call are part of it."""
    place = text.find(mark)
    if place < 0:
        return [text]
    found, begin = [text[:place]], place + len(mark)
    while True:
        place = text.find(mark, _behind(text, begin))
        found.append(text[begin : place if place >= 0 else len(text)])
        if place < 0:
            return found
        begin = place + len(mark)


def _behind(text: str, begin: int) -> int:
    """Where the JSON of a block ends; the block's beginning where there is none."""
    starts = [place for place in (text.find("{", begin), text.find("[{", begin)) if place >= 0]
    try:
        return values.begun(text, min(starts))[1] if starts else begin
    except ValueError:
        return begin


def _read(text: str, keys: tuple[str, ...]) -> tuple[toolcalls.Call | None, str]:
    """The call that a text begins with, and the rest of it; None: it begins with none."""
    start = len(text) - len(text.lstrip())
    try:
        value, end = values.begun(text, start)
    except ValueError:
        return None, ""
    return _call(value, keys), text[end:]


def _listed(text: str) -> list[toolcalls.Call | None]:
    try:
        value, _ = values.begun(text, 0)
    except ValueError:
        return [None]
    return [_call(one, ("arguments",)) for one in value] or [None]


def _named(name: str, text: str, place: int) -> toolcalls.Call | None:
    try:
        return _call({"name": name, "arguments": values.begun(text, place)[0]}, ("arguments",))
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


def _reply(content: str, calls: list[toolcalls.Call | None], *, sound: bool) -> toolcalls.Reply:
    made = tuple(call for call in calls if call is not None)
    return toolcalls.Reply(content.strip(), made, broken=not sound or len(made) < len(calls))
