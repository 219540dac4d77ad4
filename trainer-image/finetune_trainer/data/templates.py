"""Chat templates as model folders have them: one of several, without what clients should not receive, and what they can render.

What a template does is found out with a chat of our own. `tokens` renders examples with it; adapter and server get the same one.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from typing import Any

from finetune_trainer.data import dataset, dialects, toolcalls

_OPEN_BLOCK = re.compile(r"<think>\s*$")
_CLOSED = "{% set rendered %}"
"""How a template of `closed` begins."""


def applied(tokenizer: Any, turns: Sequence[dataset.Message], answer: bool, tools: str | None) -> str:
    """The turns as the template renders them; with `answer`, up to where the assistant begins. Raises whatever it raises."""
    text: str = tokenizer.apply_chat_template(
        [turn.wire(opened=True) for turn in turns],
        tools=None if tools is None else json.loads(tools),
        tokenize=False,
        add_generation_prompt=answer,
    )
    return text


def one(found: str | dict[str, str] | None) -> str | None:
    """The chat template, of several named ones one that chooses as transformers does: `tool_use` where there are tools, else
    `default`. Training, adapter and server then have the same single template. Raises ValueError."""
    if not isinstance(found, dict):
        return found
    default, tools = found.get("default"), found.get("tool_use")
    if default is None or tools is None:
        chosen = default or tools or (next(iter(found.values())) if len(found) == 1 else None)
        if chosen is None:
            raise ValueError(f"of the chat templates {', '.join(found)} none is named default; name one so")
        return chosen
    return f"{{% if tools %}}{_inside(tools)}{{% else %}}{_inside(default)}{{% endif %}}"


def _inside(template: str) -> str:
    """A template between two tags. The empty texts keep the white space at its edges, which the tags would cut."""
    return "{{ '' }}" + template.removesuffix("\n") + "{{ '' }}"


def closed(tokenizer: Any) -> str | None:
    """The chat template; of one that opens a reasoning block in the prompt, one that leaves the block to the answer.

    Training, evaluation, adapter and server then have this template: an answer is learned, compared and received as the data have
    it. See docs/adr/0042-reasoning-is-the-answers.md."""
    template: str | None = tokenizer.chat_template
    if not template:
        return template
    try:
        asked = applied(tokenizer, _PROBE[:1], True, None)
    except Exception:  # this chat is ours; the user's own chats get the template's errors
        return template
    opened = _OPEN_BLOCK.search(asked)
    if opened is None:
        return template
    block = json.dumps(opened.group())
    return (
        f"{_CLOSED}{_inside(template)}{{% endset %}}"
        f"{{{{ rendered.removesuffix({block}) if add_generation_prompt else rendered }}}}"
    )


def is_closed(template: str | None) -> bool:
    """Whether a template is one that `closed` changed."""
    return template is not None and template.startswith(_CLOSED)


# --- What a template renders ---


@dataclasses.dataclass(frozen=True)
class ToolSupport:
    """What a chat template does with tools, found out with a chat of our own."""

    problem: str | None = None
    """Why examples with tools cannot be learned; None: nothing known against it."""
    dialect: str | None = None
    """How the model writes calls, a name of dialects.READERS; None: in no known one."""


_TOOL = toolcalls.tools(
    [{"type": "function", "function": {"name": "probe_tool", "description": "probe", "parameters": {"type": "object"}}}]
)
_CALL = toolcalls.Call("probe_tool", '{"probe": [1, "two"]}', "call00000")
_PROBE = (
    dataset.Message("user", "probe question"),
    dataset.Message("assistant", "", calls=(_CALL,)),
    dataset.Message("tool", "probe result", call=_CALL.id),
)


@functools.lru_cache(maxsize=8)
def tool_support(tokenizer: Any, template: str, stops: tuple[str, ...]) -> ToolSupport:
    """`template` is the tokenizer's as text, since a tokenizer may get another one; `stops`: the tokens that end an answer."""
    try:
        asked = applied(tokenizer, _PROBE[:1], True, _TOOL)
        called = applied(tokenizer, _PROBE[:2], False, _TOOL)
        with_result = applied(tokenizer, _PROBE, True, _TOOL)
    except Exception:  # this chat is ours; the user's own chats get the template's errors
        return ToolSupport()
    answer = called.removeprefix(asked)
    rendered = {
        "tools": _CALL.name in asked,
        "tool calls": _CALL.name in answer,
        "tool results": "probe result" in with_result,
    }
    for what, there in rendered.items():
        if not there:
            return ToolSupport(
                f"the model's chat template does not render {what}; choose a base model that was trained to call "
                "tools, or remove `tools` and calls from the examples"
            )
    ends = [answer.find(text) for text in stops if text in answer]
    return ToolSupport(dialect=dialects.of(answer[: min(ends, default=len(answer))], _CALL))


@functools.lru_cache(maxsize=8)
def turn_end(tokenizer: Any, template: str, stops: tuple[str, ...]) -> str:
    """See `tokens.Encoder.turn_end`; the arguments are as those of `tool_support`."""
    reply = "probe answer"
    try:
        rendered = applied(tokenizer, [*_PROBE[:1], dataset.Message("assistant", reply)], False, None)
    except Exception:  # this chat is ours; the user's own chats get the template's errors
        return ""
    _, found, end = rendered.rpartition(reply)
    before = min((end.partition(text)[0] for text in stops), key=len, default=end)
    return end if found and (before.strip() or before == end) else ""


def renamed(turns: Sequence[dataset.Message]) -> list[dataset.Message]:
    """The turns with call ids that every template accepts; see `toolcalls.SHORT`."""
    names: dict[str, str] = {}
    made, count = [], 0
    for turn in turns:
        calls = []
        for call in turn.calls:
            names[call.id] = toolcalls.short(call.id, count)
            calls.append(dataclasses.replace(call, id=names[call.id]))
            count += 1
        made.append(dataclasses.replace(turn, calls=tuple(calls), call=names.get(turn.call, turn.call)))
    return made
