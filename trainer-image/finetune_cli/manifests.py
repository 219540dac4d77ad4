"""What is wrong with a manifest: every check that the API server makes, with file, line and path of each problem."""

import functools
import json
import re
from collections.abc import Iterator
from typing import Any, TypeVar

import pydantic

import finetune_api
from finetune_api import schema as schemas
from finetune_cli import answer, documents, rules

Spec = TypeVar("Spec", bound=pydantic.BaseModel)

SERVER = ("status",)
"""Fields that the API server adds when it prints an object."""


@functools.cache
def schema(kind: str) -> dict[str, Any]:
    """The schema of a kind, as its CustomResourceDefinition has it, without the status."""
    made = {"FineTuneJob": schemas.finetunejob, "BaseModel": schemas.base_model, "ServingPool": schemas.serving_pool}
    full = made[kind]()
    return full | {"properties": {key: value for key, value in full["properties"].items() if key not in SERVER}}


def check(document: documents.Document, model: type[Spec]) -> Spec:
    """The spec of a document, after all checks of the API server. Raises documents.Invalid."""
    problems = list(_metadata_problems(document))
    problems += [
        document.problem(path, message) for path, message in _unknown(schema(document.kind), document.data, ())
    ]
    spec: Spec | None = None
    try:
        # From JSON, so that "5" is not a number; enumerations and quantities may be text.
        spec = model.model_validate_json(json.dumps(document.data.get("spec", {})), strict=True)
    except pydantic.ValidationError as error:
        known = [_problem(document, found) for found in error.errors() if found["type"] != "extra_forbidden"]
        problems += {one.text: one for one in known}.values()  # one for each branch of a union
    if problems or spec is None:
        raise documents.Invalid(sorted(problems, key=lambda problem: problem.line or 0))
    broken = rules.broken(schema(document.kind), _filled(schema(document.kind), document.data))
    if broken:
        raise documents.Invalid([document.contradiction(path, message) for path, message in broken])
    return spec


def _filled(node: dict[str, Any], value: Any) -> Any:
    """A value with the defaults that the API server fills in, and no others: rules ask which fields are set."""
    if isinstance(value, list):
        return [_filled(node.get("items", {}), child) for child in value]
    if not isinstance(value, dict):
        return value
    known, others = node.get("properties", {}), node.get("additionalProperties")
    defaults = {key: child["default"] for key, child in known.items() if "default" in child}
    given = {key: child for key, child in value.items() if child is not None}
    return {key: _filled(known.get(key, others) or {}, child) for key, child in (defaults | given).items()}


def _metadata_problems(document: documents.Document) -> Iterator[answer.Problem]:
    """Problems outside of the spec."""
    version = document.data.get("apiVersion")
    if version != finetune_api.API_VERSION:
        yield document.problem(("apiVersion",), f"is {version!r}; expected {finetune_api.API_VERSION}")
    metadata = document.data.get("metadata", {})
    if not isinstance(metadata, dict):
        yield document.problem(("metadata",), f"must be an object with a name; found {json.dumps(metadata)[:100]}")
        metadata = {"name": "unknown"}
    yield from _name_problems(document, metadata)
    for field in ("annotations", "labels"):
        values = metadata.get(field, {})
        if not isinstance(values, dict):
            yield document.problem(("metadata", field), f"must be an object of texts; found {json.dumps(values)[:100]}")
            continue
        for key, value in values.items():
            if not isinstance(value, str):
                yield document.problem(("metadata", field, key), _not_text(value))
    if not isinstance(document.data.get("spec"), dict):
        yield document.problem(("spec",), "is missing, or is not an object")


def _name_problems(document: documents.Document, metadata: dict[str, Any]) -> Iterator[answer.Problem]:
    name, namespace = metadata.get("name"), metadata.get("namespace", "default")
    if name is None:
        yield document.problem(("metadata", "name"), "is missing: give the object a name")
    elif not isinstance(name, str):
        yield document.problem(("metadata", "name"), _not_text(name))
    elif not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", name):
        message = "must be lower-case letters, digits and '-', a letter or digit at both ends, at most 253"
        yield document.problem(("metadata", "name"), message)
    if not isinstance(namespace, str):
        yield document.problem(("metadata", "namespace"), _not_text(namespace))
    elif not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", namespace):
        yield document.problem(("metadata", "namespace"), "must be lower-case letters, digits and '-', at most 63")


def _not_text(value: Any) -> str:
    found = json.dumps(value)[:100]
    if isinstance(value, bool):
        return f"must be text; YAML reads it as {found}, as it does yes, no, on and off: write it in quotes"
    quoted = f": write '{found}'" if isinstance(value, int | float) else f"; found {found}"
    return f"must be text{quoted}"


def _unknown(node: dict[str, Any], value: Any, path: documents.Path) -> Iterator[tuple[documents.Path, str]]:
    """Unknown fields, and duplicate items of a set or a map."""
    if isinstance(value, dict) and "properties" in node:
        for key, child in value.items():
            if not path and key in SERVER:
                continue
            # For metadata the schema has only the fields that its rules use.
            if path != ("metadata",) and key not in node["properties"]:
                yield (*path, key), f"is an unknown field; known are {', '.join(sorted(node['properties']))}"
            else:
                yield from _unknown(node["properties"].get(key, {}), child, (*path, key))
    elif isinstance(value, list):
        keys = [_key(node, child) for child in value]
        for index, child in enumerate(value):
            if node.get("x-kubernetes-list-type") in ("set", "map") and keys[index] in keys[:index]:
                yield (*path, index), f"is a duplicate: {json.dumps(keys[index])}"
            yield from _unknown(node.get("items", {}), child, (*path, index))


def _key(node: dict[str, Any], item: Any) -> Any:
    """The identity of a list item: the item itself, or the key fields of a map."""
    names = node.get("x-kubernetes-list-map-keys")
    return {name: item.get(name) for name in names} if names and isinstance(item, dict) else item


BRANCHES = ("function-", "literal[", "str-enum[")
"""Parts of pydantic's places that are no fields."""


def _problem(document: documents.Document, found: Any) -> answer.Problem:
    """A finding of pydantic in our words: for patterns and bounds the schema has its own messages."""
    path: documents.Path = ("spec", *(key for key in found["loc"] if not str(key).startswith(BRANCHES)))
    node = _subschema(schema(document.kind), path)
    messages = [rule["message"] for rule in node.get("x-kubernetes-validations", [])] if node else []
    kind = found["type"]
    message = str(found["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    if kind == "missing":
        message = "is required"
    elif kind == "list_type":
        message = "must be a list"
    elif kind in ("too_short", "too_long"):
        words, limit = ("at least", "min_length") if kind == "too_short" else ("at most", "max_length")
        count = found["ctx"][limit]
        message = f"must have {words} {count} item{'s' if count > 1 else ''}"
    elif kind == "string_type":
        return document.problem(path, _not_text(found["input"]))
    elif (
        kind == "string_pattern_mismatch"
        or kind.startswith(("greater_than", "less_than"))
        or len(path) <= len(found["loc"])
    ):
        message = messages[0] if messages else message
    if kind != "missing":
        message = f"{message[:1].lower()}{message[1:]}; found {json.dumps(found['input'])[:100]}"
    return document.problem(path, message)


def _subschema(node: dict[str, Any], path: documents.Path) -> dict[str, Any] | None:
    """The schema of a field; None where there is none."""
    for key in path:
        inner = node.get("items") if isinstance(key, int) else node.get("properties", {}).get(key)
        if inner is None:
            inner = node.get("additionalProperties")
        if not isinstance(inner, dict):
            return None
        node = inner
    return node
