"""JSON values: parsed strictly, compared by JSON's rules, checked against JSON Schemas. Pure."""

import collections
import json
from collections.abc import Callable, Iterator
from typing import Any

from finetune_trainer.data import patterns


def parsed(text: str | None) -> Any:
    """The value of a text that is JSON as a whole. Raises ValueError, also for NaN and the like, which JSON does not have."""
    try:
        return json.loads(text or "", parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


DEEPEST = 200
"""Levels of a row's value; Python's own limit is near 1,000."""


class Refused(ValueError):
    """Valid or nearly valid JSON that a row must not have; the message says what was found."""


def strict(text: str) -> Any:
    """The value of a text of a row, which must be JSON as a whole. Raises ValueError, also for what readers of JSON treat
    differently or lose in silence: keys that stand twice, numbers that are not finite or have thousands of digits, halves of
    characters, hundreds of levels."""
    try:
        value = STRICT.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    checked(value, text)
    return value


def checked(value: Any, text: str) -> None:
    """Raises Refused for a value of STRICT, read from `text`, that is nested too deeply or has halves of characters."""
    if text.count("[") + text.count("{") > DEEPEST and _depth(value) > DEEPEST:
        raise Refused(f"nested too deeply: more than {DEEPEST} levels")
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])[1:-1]
            raise Refused(
                f"{half} is half of a character (a lone surrogate); write both halves, or remove it"
            ) from None


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [one for some in inner for one in some]
    return depth


def _integer(text: str) -> int:
    if len(text) > 1000:
        raise Refused(f"an integer of {len(text)} digits ({text[:9]}…); write it as text")
    return int(text)


def _finite(text: str) -> float:
    if (number := float(text)) in (float("inf"), float("-inf")):
        raise Refused(f"{text[:20]} is larger than any number that can be read; write it as text")
    return number


def _named(name: str) -> Any:
    raise Refused(f"{name} is not a JSON value; write null, or a number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(key for key, count in collections.Counter(key for key, _ in pairs).items() if count > 1)
        raise Refused(f"the key {twice[:60]!r} occurs twice in one object, so that one of its values would be lost")
    return made


STRICT = json.JSONDecoder(
    parse_constant=_named, parse_int=_integer, parse_float=_finite, object_pairs_hook=_once, strict=True
)


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
    """Whether a value fits the schema; raises patterns.TooSlow where that takes too long. References to other documents are not
    followed.

    Raises ValueError where the schema is invalid or has a reference to nothing; the text says where.
    """
    import referencing.exceptions

    ready = _checker(schema)

    def valid(value: Any) -> bool:
        try:
            return bool(_for(ready, value).is_valid(value))
        except (RecursionError, referencing.exceptions.Unresolvable):
            return False

    return valid


def misfit(schema: dict[str, Any], value: Any) -> str:
    """Why a value does not fit a schema that `fits` accepts."""
    import jsonschema

    try:
        error = jsonschema.exceptions.best_match(_for(_checker(schema), value).iter_errors(value))
    except patterns.TooSlow as slow:
        return str(slow)
    except RecursionError:
        return "nested too deeply"
    return "" if error is None else f"{error.json_path}: {error.message[:200]}"


def _for(ready: Any, value: Any) -> Any:
    """The validator for this value. Raises patterns.TooSlow."""
    import referencing

    text = json.dumps(ready.schema)
    if "unevaluatedProperties" not in text or "patternProperties" not in text:
        return ready
    return type(ready)(patterns.named(ready.schema, value), registry=referencing.Registry())


def _checker(schema: dict[str, Any]) -> Any:
    """A validator of jsonschema for the schema. Raises ValueError, see `fits`."""
    import jsonschema
    import referencing
    import referencing.exceptions

    try:
        made = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        made.check_schema(schema)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except jsonschema.SchemaError as error:
        raise ValueError(f"{error.json_path}: {error.message}") from None
    for reference in _references(schema):
        if not reference.startswith("#"):
            raise ValueError(f"$ref {reference!r} refers to another document; copy it into the schema")
    extend: Any = jsonschema.validators.extend
    bounded = extend(made, patterns.keywords(dict(made.VALIDATORS)))
    ready = bounded(schema, registry=referencing.Registry())
    try:
        ready.is_valid(None)
    except referencing.exceptions.Unresolvable as error:
        raise ValueError(f"$ref {error.ref!r} refers to nothing") from None
    except RecursionError:
        raise ValueError("a $ref refers to itself without an end; let it describe a part of its value") from None
    return ready


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, one in value.items():
            if key in {"$ref", "$dynamicRef"} and isinstance(one, str):
                yield one
            yield from _references(one)
    elif isinstance(value, list):
        for one in value:
            yield from _references(one)
