"""Tools and tool calls, pure: as rows of data and requests have them (OpenAI's chat format), and the score of a reply.

rows -> `dataset` (which turn may call what) -> `tokens` (the model's template writes them); a reply -> `dialects` -> `score`
"""

import collections
import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

from finetune_trainer.data import patterns, values

SHORT = 9
"""Letters and digits of a call's id, exactly: Mistral's templates refuse any other id, and the other families write none."""


class Unusable(ValueError):
    """Not a tool, or not a call; the message says what was found and expected."""


@dataclasses.dataclass(frozen=True)
class Call:
    """A function that the assistant calls."""

    name: str
    arguments: str
    """A JSON object as text."""
    id: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Equal for calls that do the same."""
        return self.name, values.canonical(json.loads(self.arguments))

    def wire(self, *, opened: bool = False) -> dict[str, Any]:
        """As OpenAI's API has it. `opened`: with the arguments as an object, which chat templates need."""
        arguments = json.loads(self.arguments) if opened else self.arguments
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": arguments}}


# --- From rows ---


def tools(value: Any) -> str | None:
    """The field `tools` as JSON text, each tool as vLLM hands it to the chat template: type and function, of which name,
    description and parameters come first, null where absent. None for no tools. Raises Unusable.
    """
    if isinstance(value, str) and value.strip():  # CSV and Parquet carry the list as JSON text
        try:
            value = values.strict(value)
        except ValueError as error:
            raise Unusable(f"'tools' is text that is not a JSON list: {error}") from None
    if value in (None, "", []):
        return None
    if not isinstance(value, list):
        raise Unusable("'tools' must be a list of {type: function, function: {name, description, parameters}}")
    made = [_tool(one, f"tools[{index}]") for index, one in enumerate(value)]
    names = [one["function"]["name"] for one in made]
    for name, count in collections.Counter(names).items():
        if count > 1:
            raise Unusable(f"'tools' has {count} functions of the name {name!r}")
    return json.dumps(made, ensure_ascii=False)


def _tool(value: Any, place: str) -> dict[str, Any]:
    function = _function(value)
    if function is None:
        raise Unusable(
            f"{place} is not a function of OpenAI's API; expected "
            '{"type": "function", "function": {"name": "...", "description": "...", "parameters": {...}}}'
        )
    if not isinstance(function.get("parameters") or {}, dict):
        raise Unusable(f"{place}.function.parameters must be a JSON Schema, an object")
    first = {
        "name": function["name"],
        "description": function.get("description"),
        "parameters": function.get("parameters"),
    }
    return {"type": "function", "function": first | {key: one for key, one in function.items() if key not in first}}


def _function(value: Any) -> dict[str, Any] | None:
    """The function of a tool or of a call; None where there is none with a name."""
    found = value.get("function") if isinstance(value, dict) and value.get("type", "function") == "function" else None
    named = isinstance(found, dict) and isinstance(found.get("name"), str) and found["name"].strip()
    return found if named else None


def calls(value: Any, place: str) -> tuple[Call, ...]:
    """The field `tool_calls` of a turn; the arguments may be JSON text or an object. Raises Unusable."""
    if not value:
        return ()
    if not isinstance(value, list):
        raise Unusable(f"{place} must be a list of calls")
    return tuple(_call(one, f"{place}[{index}]") for index, one in enumerate(value))


def _call(value: Any, place: str) -> Call:
    function = _function(value)
    if function is None:
        raise Unusable(
            f'{place} is not a call; expected {{"id", "type": "function", "function": {{"name", "arguments"}}}}'
        )
    name, arguments = function["name"], function.get("arguments")
    try:
        if isinstance(arguments, str) and arguments.strip():
            arguments = values.strict(arguments)
        values.canonical(arguments)
    except ValueError as error:
        raise Unusable(f"{place} calls {name!r} with arguments that are not JSON: {error}") from None
    if arguments in (None, ""):
        arguments = {}
    if not isinstance(arguments, dict):
        raise Unusable(f"{place} calls {name!r} with arguments that are not a JSON object")
    id = value.get("id")
    if id is not None and not isinstance(id, str):
        raise Unusable(f"{place} has an id that is not text")
    return Call(name, json.dumps(arguments, ensure_ascii=False), id or "")


def numbered(made: Sequence[Call], before: int) -> tuple[Call, ...]:
    """The calls, those without an id with one; `before`: how many calls the chat has before them."""
    return tuple(dataclasses.replace(call, id=call.id or short("", before + index)) for index, call in enumerate(made))


def short(id: str, number: int) -> str:
    """The id, if it has SHORT letters and digits, else one by its number in the chat."""
    return id if len(id) == SHORT and id.isascii() and id.isalnum() else f"call{number:05d}"


# --- Against the tools ---


@functools.lru_cache(maxsize=256)
def functions(tools: str) -> dict[str, Callable[[Any], bool] | None]:
    """Each tool's name, and whether arguments fit its parameters; None where these are not a usable JSON Schema."""
    return {one["function"]["name"]: _fits(one["function"]["parameters"]) for one in json.loads(tools)}


def _fits(schema: dict[str, Any] | None) -> Callable[[Any], bool] | None:
    try:
        return values.fits(schema) if schema else None
    except ValueError:
        return None


@functools.lru_cache(maxsize=256)
def unusable(tools: str) -> dict[str, str]:
    """Each tool whose parameters are not a usable JSON Schema, and why."""
    found = {}
    for one in json.loads(tools):
        try:
            values.fits(one["function"]["parameters"] or {})
        except ValueError as error:
            found[one["function"]["name"]] = str(error)
    return found


def problem(call: Call, tools: str) -> str | None:
    """What is wrong with a call, in words: an unknown tool, or arguments that do not fit; None where nothing is wrong."""
    known = functions(tools)
    if call.name not in known:
        return f"calls {call.name!r}, which is not one of the tools ({', '.join(known)})"
    fits = known[call.name]
    try:
        fitting = fits is None or fits(json.loads(call.arguments))
    except patterns.TooSlow as slow:
        return f"calls {call.name!r}, in whose parameters {slow}"
    return None if fitting else f"calls {call.name!r} with arguments that do not fit its parameters"


# --- As text, and the score of a reply ---


def written(content: str, made: Sequence[Call]) -> str:
    """A turn as one text in a neutral form: the content, then the calls in JSON, one as an object, several as a list."""
    if not made:
        return content
    texts = [f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {call.key[1]}}}' for call in made]
    called = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    return f"{content}\n{called}" if content.strip() else called


@dataclasses.dataclass(frozen=True)
class Reply:
    """A model's answer, as the server's parser would pass it to the client."""

    content: str
    calls: tuple[Call, ...] = ()
    broken: bool = False
    """Whether something begins like a call but is not a valid one."""


@dataclasses.dataclass(frozen=True)
class CallScore:
    """The score of a reply to an example with tools."""

    match: bool
    """The calls are the expected ones, in any order; where none is expected, none is made."""
    valid: bool | None
    """There is a call, and all calls are of known tools with arguments that fit; None where none is expected."""


def score(reply: Reply, expected: Sequence[Call], tools: str) -> CallScore:
    match = not reply.broken and (
        collections.Counter(call.key for call in reply.calls) == collections.Counter(call.key for call in expected)
    )
    valid = bool(reply.calls) and not reply.broken and all(problem(call, tools) is None for call in reply.calls)
    return CallScore(match, valid if expected else None)
