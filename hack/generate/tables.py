"""Tables of the fields of a schema, one for each object, in the order of the spec."""

import json
from collections.abc import Iterator
from typing import Any

from finetune_api import schema
from generate import page


def objects(path: str, node: schema.Schema, seen: dict[str, str] | None = None) -> Iterator[str]:
    """The sections of an object: its own table, then those of the objects below it.

    `seen` maps the fields of the objects so far to their path, so that a type's table stands once.
    """
    seen = {} if seen is None else seen
    yield f"### `{path}`"
    first = seen.setdefault(json.dumps(node["properties"]), path)
    if first != path:
        yield f"The same fields as `{first}`."
        return
    if "description" in node:
        yield node["description"]
    required = node.get("required", [])
    yield page.table(
        ("Field", "Type", "Default", "Description"),
        [
            (f"`{name}`", _type(child), _default(child, required=name in required), _text(child))
            for name, child in node["properties"].items()
        ],
    )
    if rules := node.get("x-kubernetes-validations"):
        yield "Rules:"
        yield "\n".join(f"- {_sentence(rule['message'])}" for rule in rules)
    for name, child in node["properties"].items():
        inner, suffix = (child.get("items", {}), "[]") if child.get("type") == "array" else (child, "")
        if "properties" in inner:
            # The table above has the field's own description already.
            yield from objects(f"{path}.{name}{suffix}", {k: v for k, v in inner.items() if k != "description"}, seen)


def _type(node: schema.Schema) -> str:
    if node.get("x-kubernetes-int-or-string"):
        return "quantity"
    match node["type"]:
        case "array":
            return f"list of {_type(node['items'])}"
        case "object" if "additionalProperties" in node:
            return f"map of {_type(node['additionalProperties'])}"
        case "string" if node.get("format") == "date-time":
            return "time"
        case name:
            return str(name)


def _default(node: schema.Schema, *, required: bool) -> str:
    if required:
        return "*required*"
    default = node.get("default")
    if default is None or default == {}:
        return ""
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def _text(node: schema.Schema) -> str:
    """The description, with the limits that a table's reader would miss and the rules of the field."""
    inner = node.get("items", node)
    parts = [node.get("description", "")]
    if "enum" in inner:
        parts.append("One of " + ", ".join(f"`{value}`" for value in inner["enum"]) + ".")
    if limits := _limits(node):
        parts.append(f"Allowed: {limits}.")
    parts += [_sentence(rule["message"]) for rule in [*_rules(node), *_rules(node.get("items", {}))]]
    return page.cell(" ".join(part for part in parts if part))


def _sentence(message: str) -> str:
    return f"{message[0].upper()}{message[1:]}."


def _rules(node: schema.Schema) -> list[dict[str, Any]]:
    """Rules of a single value; those of an object stand below its own table."""
    return [] if "properties" in node else node.get("x-kubernetes-validations", [])


def _limits(node: schema.Schema) -> str:
    words = []
    for bound, strict, loose in (("minimum", "above", "from"), ("maximum", "below", "to")):
        if bound in node:
            word = strict if node.get(f"exclusive{bound.capitalize()}") else loose
            words.append(f"{word} {node[bound]}")
    if "minItems" in node or "maxItems" in node:
        words.append(f"{node.get('minItems', 0)} to {node['maxItems']} items")
    return " ".join(words)
