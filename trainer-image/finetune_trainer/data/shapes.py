"""Rows as people write them, brought into one form: the fields of `dataset.FIELDS`, turns as in OpenAI's chat API.

Each key of a row, a turn, a part and a call is understood here, or harmless (HARMLESS), or named in `Shaped.unused`, which the
data check `unusedFields` reports; keys that change what a row means are refused. A null is an absent field.
docs/guides/what-your-data-may-look-like.md shows every accepted form.
"""

import dataclasses
import json
from typing import Any

from finetune_trainer.data import values

UNLEARNABLE = "unlearnableFields"
"""The data check for fields that change the meaning of a row in a way that cannot be learned."""

TOOLS = "toolCalls"
"""The data check for tools, calls and results that do not match."""

CHATS = ("messages", "conversations", "conversation")
"""Fields that hold a chat; the first one that is present counts."""

SYSTEMS = ("system", "system_prompt")

REASONING = ("reasoning_content", "reasoning", "thinking")

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "ipython": "tool",
    "function_call": "call",
    "tool_call": "call",
}
"""The roles of OpenAI's API and of ShareGPT; "call": a turn of the assistant whose text is a call in JSON."""

TEXTS = frozenset({"text", "input_text", "output_text", "refusal"})
"""Types of content parts that are text."""

HARMLESS = frozenset(
    """
    id _id ids idx index uid uuid guid key hash row_id prompt_id conversation_id conv_id session_id thread_id
    user_id source sources file filename path dataset subset split origin url license author annotator created
    created_at updated_at timestamp date time metadata meta info extra comment comments note notes version
    language lang locale category categories topic topics domain tag tags difficulty quality rating ratings score scores
    score_chosen score_rejected reward rewards margin model model_name generator num_turns num_tokens token_count tokens length
    annotations cache_control parallel_tool_calls __index_level_0__ Unnamed:_0
    """.split()  # noqa: SIM905
) | {""}
"""Keys that describe a row, a turn or a part, and change nothing of what is learned."""

IMAGES = frozenset(["image", "images", "image_url", "video", "videos", "audio", "audios", "pixel_values"])
REJECTED = frozenset(["rejected", "rejected_response", "rejected_answer", "rejected_responses"])
WEIGHTS = frozenset(["weight", "weights", "sample_weight", "loss_weight"])
MASKS = frozenset(["mask", "loss_mask", "masked"])
LEARNED = frozenset(["train", "trainable", "loss", "learn"])
"""Keys of a turn that say whether it is learned: true or false, 1 or 0."""
LABELS = frozenset(
    """
    label kto_label kto_tag desirable accepted is_accepted approved is_good correct is_correct thumbs_up
    """.split()  # noqa: SIM905
)
GOOD = ("true", "desirable", "1", "1.0", "good", "correct", "chosen", "accepted")
BAD = ("false", "undesirable", "0", "0.0", "-1", "-1.0", "bad", "incorrect", "wrong", "rejected")

SHOWN = 10
"""Keys that a message lists."""


class Wrong(ValueError):
    """A row that is not an example; the message says what was found and expected. `rule`: the data check that it breaks."""

    def __init__(self, message: str, rule: str = "schema") -> None:
        super().__init__(message)
        self.rule = rule


@dataclasses.dataclass(frozen=True)
class Shaped:
    """A row in one form."""

    fields: dict[str, Any]
    """The keys of a format, `system`, `tools`, and whatever else the row has."""
    unused: frozenset[str] = frozenset()
    """Keys of turns, parts and calls that nothing reads, as `messages[].mood`."""


def shape(row: dict[str, Any]) -> Shaped:
    """The row without nulls, with its chats as lists of turns. Raises Wrong."""
    fields = {str(key): one for key, one in row.items() if one is not None}
    unused: set[str] = set()
    _one_chat(fields)
    if "chosen" in fields and "rejected" in fields:
        _one_prompt(fields)
    for name in ("messages", "prompt", "completion", "chosen", "rejected"):
        if name in fields:
            fields[name] = _chat(fields[name], name, unused)
    for name in ("tools", "functions"):
        if name in fields:
            fields[name] = _tools(fields[name], name)
    if functions := fields.pop("functions", None):
        fields.setdefault("tools", functions)
    return Shaped(fields, frozenset(unused))


def _one_chat(fields: dict[str, Any]) -> None:
    for name in CHATS[1:]:
        if name in fields and "messages" not in fields:
            fields["messages"] = fields.pop(name)
    for name in SYSTEMS[1:]:
        if name in fields and "system" not in fields:
            fields["system"] = fields.pop(name)


def _one_prompt(fields: dict[str, Any]) -> None:
    """The prompt of a preference pair, where it has another name."""
    for name in ("messages", "question"):
        if name in fields and "prompt" not in fields:
            fields["prompt"] = fields.pop(name)
    if "instruction" in fields and "prompt" not in fields:
        fields["prompt"] = request(fields.pop("instruction"), fields.pop("input", None))


def request(instruction: Any, extra: Any) -> Any:
    """An instruction with its input; numbers and structures become text in JSON."""
    if not isinstance(instruction, str) or extra is None:
        return instruction
    written = as_text(extra)
    return f"{instruction}\n\n{written}" if written.strip() else instruction


def as_text(value: Any) -> str:
    """A text as it is, everything else in JSON."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError as error:
        raise Wrong(f"a number that is not finite stands where text is expected: {error}") from None


def listed(value: Any) -> Any:
    """A list as a struct of lists, as Parquet's writers have it, as a list of structs; everything else as it is."""
    if not isinstance(value, dict) or not value:
        return value
    columns = {key: one for key, one in value.items() if one is not None}
    if not columns or not all(isinstance(one, list) for one in columns.values()):
        return value
    if len({len(one) for one in columns.values()}) > 1:
        lengths = ", ".join(f"{key}: {len(one)}" for key, one in list(columns.items())[:SHOWN])
        raise Wrong(f"lists that belong together have different lengths ({lengths})")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def present(value: dict[str, Any]) -> dict[str, Any]:
    return {str(key): one for key, one in value.items() if one is not None}


def stripped(value: Any) -> Any:
    """Without the nulls of a unified schema, at any depth; lists keep theirs."""
    if isinstance(value, dict):
        return {key: stripped(one) for key, one in value.items() if one is not None}
    return [stripped(one) for one in value] if isinstance(value, list) else value


# --- Turns ---


def _chat(value: Any, field: str, unused: set[str]) -> Any:
    if isinstance(value, str) and field == "messages":  # CSV carries the list as JSON text
        try:
            value = values.strict(value)
        except ValueError as error:
            raise Wrong(f"'{field}' is text that is not a JSON list: {error}") from None
    value = listed(value)
    if isinstance(value, dict) and ("role" in value or "from" in value):
        value = [value]
    if not isinstance(value, list):
        return value
    return [_turn(one, f"{field}[{index}]", f"{field}[]", unused) for index, one in enumerate(value) if one is not None]


def _turn(value: Any, place: str, path: str, unused: set[str]) -> Any:
    if not isinstance(value, dict):
        return value
    turn = present(value)
    for ours, theirs in (("role", "from"), ("content", "value")):
        if theirs in turn and ours not in turn:
            turn[ours] = turn.pop(theirs)
    known = turn.get("role")
    role = ROLES.get(known.lower()) if isinstance(known, str) else None
    if role is None:
        return turn  # refused where turns are read
    made: dict[str, Any] = {"role": "assistant" if role == "call" else role}
    content = _content(turn.pop("content", None), role, place, path, unused)
    calls = _calls(turn, role, content, place, path, unused)
    if role == "call":
        content = None
    refusal = turn.pop("refusal", "")
    if refusal and not content:
        content = refusal
    elif refusal:
        unused.add(f"{path}.refusal")
    made |= {"content": content, "tool_calls": calls}
    made["weight"] = _weight(turn, place)
    for name in ("name", "tool_call_id"):
        if name in turn:
            made[name] = turn.pop(name)
    for name in REASONING:
        if turn.get(name) and role == "assistant":
            made.setdefault("reasoning_content", turn.pop(name))
    turn.pop("role")
    _leftover(turn, place, path, unused)
    return present(made)


def _content(value: Any, role: str, place: str, path: str, unused: set[str]) -> Any:
    if role == "tool" and not _parts_only(value):
        return "" if value is None else as_text(value)  # a result as the tool gave it
    value = listed(value)
    if not isinstance(value, list):
        return value
    if value and all(part is None for part in value):
        return None
    return _joined([part for part in value if part is not None], place, path, unused)


def _parts_only(value: Any) -> bool:
    value = listed(value)
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in value)
    )


def _joined(parts: list[Any], place: str, path: str, unused: set[str]) -> Any:
    """The text of content parts; a part whose text is null is no part."""
    texts = []
    for index, one in enumerate(parts):
        if isinstance(one, str):
            texts.append(one)
            continue
        where = f"{place}.content[{index}]"
        if not isinstance(one, dict):
            raise Wrong(f"{where} is not a content part: expected {{type: text, text: ...}}")
        part = present(one)
        kind = part.pop("type", "text")
        if kind not in TEXTS:
            what = f"{where} is a part of the type {kind!r}"
            raise Wrong(f"{what}; only text can be learned here", UNLEARNABLE)
        text = part.pop("refusal" if kind == "refusal" else "text", "")
        if not isinstance(text, str):
            raise Wrong(f"{where}.text must be text")
        texts.append(text)
        _leftover(part, where, f"{path}.content[]", unused)
    return "".join(texts)


def _calls(turn: dict[str, Any], role: str, content: Any, place: str, path: str, unused: set[str]) -> Any:
    """The calls of a turn in the form of `tool_calls`, whatever their form in the data."""
    found = listed(turn.pop("tool_calls", None))
    older = turn.pop("function_call", None)
    if older and not found:
        found = [older]
    if role == "call":
        try:
            found = values.strict(content) if isinstance(content, str) else content
        except ValueError as error:
            raise Wrong(f"{place} is a call that is not JSON: {error}", TOOLS) from None
        found = found if isinstance(found, list) else [found]
    if not isinstance(found, list):
        return found
    return [_call(one, f"{place}.tool_calls[{i}]", f"{path}.tool_calls[]", unused) for i, one in enumerate(found)]


def _call(value: Any, place: str, path: str, unused: set[str]) -> Any:
    if not isinstance(value, dict):
        return value
    call = present(value)
    if "function" not in call and "name" in call:  # bare, as in `function_call` and in ShareGPT
        function: Any = {key: call.pop(key) for key in ("name", "arguments", "parameters") if key in call}
        if "parameters" in function:
            function.setdefault("arguments", function.pop("parameters"))
    else:
        function = call.pop("function", None)
    made: dict[str, Any] = {key: call.pop(key) for key in ("id", "type") if key in call}
    if not isinstance(function, dict):
        return made | {"function": function}
    function = present(function)
    made["function"] = {key: stripped(function.pop(key)) for key in ("name", "arguments") if key in function}
    _leftover(call, place, path, unused)
    _leftover(function, place, f"{path}.function", unused)
    return made


def _weight(turn: dict[str, Any], place: str) -> Any:
    """1: learned, 0: context only; None: the turn does not say."""
    weight = turn.pop("weight", None)
    for name in LEARNED & turn.keys():
        flag = turn.pop(name)
        if flag not in (0, 1):
            raise Wrong(f"{place}.{name} is {flag!r}; it must be true (learned) or false (context only)", UNLEARNABLE)
        weight = int(flag) if weight is None else weight
    if weight is not None and (isinstance(weight, str | list | dict) or weight not in (0, 1)):
        raise Wrong(
            f"{place} has the weight {weight!r}; it must be 0 (context only) or 1 (learned)",
            UNLEARNABLE,
        )
    return weight


def _tools(value: Any, name: str) -> Any:
    if isinstance(value, str) and value.strip():
        try:
            value = values.strict(value)
        except ValueError as error:
            raise Wrong(f"'{name}' is text that is not a JSON list: {error}", TOOLS) from None
    value = listed(value)
    if not isinstance(value, list):
        return value
    return [_tool(stripped(one)) for one in value if one is not None]


def _tool(value: Any) -> Any:
    """A bare function, as in `functions` and in ShareGPT, in the form of `tools`."""
    bare = isinstance(value, dict) and "function" not in value and "name" in value
    if not bare or value.get("type", "function") != "function":
        return value
    return {"type": "function", "function": {key: one for key, one in value.items() if key != "type"}}


# --- What is left ---


def _leftover(left: dict[str, Any], place: str, path: str, unused: set[str]) -> None:
    """Names the keys of a turn, part or call that nothing read. Raises Wrong for those that change its meaning."""
    for key, value in left.items():
        if key in IMAGES and value:
            raise Wrong(f"{place} has the field {key!r}; only text can be learned here", UNLEARNABLE)
        if key in MASKS or (key in WEIGHTS and value != 1):
            raise Wrong(
                f"{place} has the field {key!r}, which is not understood; write weight: 0 (context only) or 1 (learned)",
                UNLEARNABLE,
            )
        if key not in HARMLESS and value not in ("", [], {}):
            unused.add(f"{path}.{key}")


def unused(fields: dict[str, Any], read: tuple[str, ...]) -> set[str]:
    """The keys of a row beside those that were read. Raises Wrong for those that change what the row means."""
    names = set()
    answers = {str(fields[name]).strip().lower() for name in ("completion", "output") if name in fields}
    for key, value in fields.items():
        if key in read or value in ("", [], {}):
            continue
        # A label that is the answer itself is the class to learn, not what somebody thinks of the answer.
        rates = key in LABELS and "text" not in read and str(value).strip().lower() not in answers
        rated = _rated(value) if rates else None
        if rated is False:
            raise Wrong(
                f"{key}: {value!r} marks the answer as a bad one, which a model must not learn; leave such rows out "
                f"(dataset.checks: {{{UNLEARNABLE}: Drop}}), or write pairs for DPO (chosen and rejected); if it means "
                "something else, rename the field",
                UNLEARNABLE,
            )
        if rated:
            continue
        if key in IMAGES:
            raise Wrong(f"the field {key!r} cannot be learned: only text can", UNLEARNABLE)
        if key in REJECTED:
            raise Wrong(f"the field {key!r} needs 'chosen' beside it, and training.objective DPO", UNLEARNABLE)
        if key in MASKS or (key in WEIGHTS and value not in (1, "1", "1.0")):
            raise Wrong(f"{key}: {short(value)} is no weight of a row that can be honoured; leave it out", UNLEARNABLE)
        if key not in HARMLESS | WEIGHTS and key.replace(" ", "_") not in HARMLESS:
            names.add(key)
    return names


def _rated(value: Any) -> bool | None:
    """Whether a label says that the answer is a good one or a bad one; None: it says something else."""
    text = str(value).strip().lower()
    return True if text in GOOD else False if text in BAD else None


def short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:59] + "…"


def keys(value: dict[str, Any]) -> str:
    """The keys of a row for a message."""
    names = [short(str(key)) + (" (null)" if one is None else "") for key, one in list(value.items())[:SHOWN]]
    more = len(value) - len(names)
    return (", ".join(names) or "none") + (f" and {more} more" if more else "")
