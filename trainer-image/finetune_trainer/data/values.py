"""JSON values: parsed strictly, compared by JSON's rules, checked against JSON Schemas. Pure."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any


def parsed(text: str | None) -> Any:
    """The value of a text that is JSON as a whole. Raises ValueError, also for NaN and the like, which JSON does not have."""
    try:
        return json.loads(text or "", parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def value_at(text: str, place: int) -> tuple[Any, int]:
    """The JSON value that begins at `place`, and where it ends. Raises ValueError."""
    try:
        found: tuple[Any, int] = _DECODER.raw_decode(text, place)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return found


def _refuse(name: str) -> Any:
    raise ValueError(name)


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def canonical(value: Any) -> str:
    """The same text for all values that are equal in JSON: keys in any order, 1.0 and 1 alike, true and 1 not.

    Raises ValueError for values nested too deeply.
    """
    try:
        return json.dumps(_integral(value), ensure_ascii=False, sort_keys=True)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _integral(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _integral(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_integral(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def fits(schema: dict[str, Any]) -> Callable[[Any], bool]:
    """Whether a value fits the schema. References to other documents are not followed.

    Raises ValueError where the schema is invalid or has a reference to nothing; the text says where.
    """
    import jsonschema
    import referencing
    import referencing.exceptions

    try:
        made = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        made.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"{error.json_path}: {error.message}") from None
    for reference in _references(schema):
        if not reference.startswith("#"):
            raise ValueError(f"$ref {reference!r} refers to another document; copy it into the schema")
    ready = made(schema, registry=referencing.Registry())
    try:
        ready.is_valid(None)
    except referencing.exceptions.Unresolvable as error:
        raise ValueError(f"$ref {error.ref!r} refers to nothing") from None

    def valid(value: Any) -> bool:
        try:
            return bool(ready.is_valid(value))
        except (RecursionError, re.error, referencing.exceptions.Unresolvable):
            return False

    return valid


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, one in value.items():
            if key in {"$ref", "$dynamicRef"} and isinstance(one, str):
                yield one
            yield from _references(one)
    elif isinstance(value, list):
        for one in value:
            yield from _references(one)
