"""Regular expressions of JSON Schemas, in bounded time: schemas are of users, texts of models, and some pairs of them take ages.

`values` checks schemas with the keywords from here in place of the library's own.
"""

import collections
from collections.abc import Iterator
from typing import Any

SECONDS = 0.5
"""For one text."""

PATIENCE = 3
"""Texts on which a pattern may take longer, before it is given up."""

_slow: collections.Counter[str] = collections.Counter()


class TooSlow(ValueError):
    """A pattern that takes too long on a text."""


def found(pattern: str, text: str) -> bool:
    """Whether the pattern is somewhere in the text. Raises TooSlow."""
    import regex

    if _slow[pattern] < PATIENCE:
        try:
            return regex.search(pattern, text, timeout=SECONDS) is not None
        except TimeoutError:
            _slow[pattern] += 1
    raise TooSlow(
        f"the pattern {pattern!r} takes more than {SECONDS:g} s on a text of {len(text)} characters; write it without a "
        "repetition inside of another one"
    )


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
