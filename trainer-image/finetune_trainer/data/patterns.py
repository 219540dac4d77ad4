"""Regular expressions of JSON Schemas, in bounded time: schemas are of users, texts of models, and some pairs of them take ages.

`values` checks schemas with the keywords from here in place of the library's own.
"""

import collections
import functools
import re
from collections.abc import Iterator
from typing import Any

SECONDS = 0.5
"""For one text."""

PATIENCE = 3
"""Texts on which a pattern may take longer, before it is given up."""

LARGEST = 100_000
"""Parts of a pattern with its repetitions written out, which is how it is compiled."""

_slow: collections.Counter[str] = collections.Counter()


class TooSlow(ValueError):
    """A pattern that takes too long on a text."""


def found(pattern: str, text: str) -> bool:
    """Whether the pattern is somewhere in the text. Raises TooSlow."""
    import regex

    if (size := _size(pattern)) > LARGEST:
        raise TooSlow(
            f"the pattern {pattern!r} repeats {size:,} parts, at most {LARGEST:,} are possible; lower its counts"
        )
    if _slow[pattern] < PATIENCE:
        try:
            return regex.search(pattern, text, timeout=SECONDS) is not None
        except TimeoutError:
            _slow[pattern] += 1
    raise TooSlow(
        f"the pattern {pattern!r} takes more than {SECONDS:g} s on a text of {len(text)} characters; write it without a "
        "repetition inside of another one"
    )


_PART = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]])*\]|\{(\d+)(?:,\d*)?\}|.", re.DOTALL)


@functools.lru_cache(maxsize=256)
def _size(pattern: str) -> int:
    """About how many parts a pattern has when each repetition is written out as often as it must match."""
    open_groups, last = [0], 0
    for part in _PART.finditer(pattern):
        if part[0] == "(":
            open_groups.append(0)
            continue
        if part[1] is not None:
            added = last * (int(part[1][:12]) - 1)
            last = last + added
        else:
            added = last = open_groups.pop() if part[0] == ")" and len(open_groups) > 1 else 1
        open_groups[-1] += max(0, added)
    return sum(open_groups)


_LISTS_OF_SCHEMAS = frozenset({"properties", "dependentSchemas", "$defs", "definitions"})
_DATA = frozenset({"enum", "const", "default", "examples"})


def named(schema: Any, value: Any) -> Any:
    """The schema with each of its patterns of keys as a plain list of those keys of the value, at any depth, that it matches.

    For `unevaluatedProperties`, which searches by them where no keyword of ours reaches. Raises TooSlow."""
    return _named(schema, sorted(set(_keys(value))))


def _named(schema: Any, names: list[str]) -> Any:
    if isinstance(schema, list):
        return [_named(one, names) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {}
    for key, one in schema.items():
        if key in _LISTS_OF_SCHEMAS and isinstance(one, dict):
            made[key] = {name: _named(inner, names) for name, inner in one.items()}
        elif key == "patternProperties" and isinstance(one, dict):
            made[key] = {
                _any_of([name for name in names if found(pattern, name)], number): _named(inner, names)
                for number, (pattern, inner) in enumerate(one.items())
            }
        else:
            made[key] = one if key in _DATA else _named(one, names)
    return made


def _any_of(names: list[str], number: int) -> str:
    """A pattern that matches these names alone, and differs from those of other numbers."""
    return f"(?#{number})^(?:{'|'.join(map(re.escape, names))})\\Z" if names else f"(?#{number})(?!)"


def _keys(value: Any) -> Iterator[str]:
    level = [value]
    while level:
        for one in level:
            if isinstance(one, dict):
                yield from one
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [one for some in inner for one in some]


def keywords(library: dict[str, Any]) -> dict[str, Any]:
    """The keywords of jsonschema that search by a pattern, as functions that are bounded in time. `library`: its own ones."""
    from jsonschema import exceptions

    def pattern(validator: Any, wanted: str, value: Any, _: Any) -> Iterator[Any]:
        if validator.is_type(value, "string") and not found(wanted, value):
            yield exceptions.ValidationError(f"{value!r} does not match {wanted!r}")

    def pattern_properties(validator: Any, wanted: dict[str, Any], value: Any, _: Any) -> Iterator[Any]:
        for name in value if validator.is_type(value, "object") else ():
            for one, inner in wanted.items():
                if found(one, name):
                    yield from validator.descend(value[name], inner, path=name, schema_path=one)

    def additional(validator: Any, wanted: Any, value: Any, schema: dict[str, Any]) -> Iterator[Any]:
        if not validator.is_type(value, "object"):
            return
        known, others = schema.get("properties", {}), schema.get("patternProperties", {})
        names = [name for name in value if name not in known and not any(found(one, name) for one in others)]
        # The library's own words, with what is left: nothing of it is known, and no pattern matches.
        rest = {name: value[name] for name in names}
        yield from library["additionalProperties"](validator, wanted, rest, {})

    made = {"pattern": pattern, "patternProperties": pattern_properties, "additionalProperties": additional}
    return {name: function for name, function in made.items() if name in library}
