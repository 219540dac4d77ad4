"""The CEL rules of the schema, which in a cluster the API server applies: fields that contradict each other.

Evaluated by the package `common-expression-language`, with the functions of Kubernetes' libraries that our rules use. Without
the package the rules are not checked, and `missing` says so; in a cluster the API server checks them.
"""

import importlib.util
from collections.abc import Iterator
from typing import Any

from finetune_api import resources

Path = tuple[str | int, ...]
Broken = list[tuple[Path, str]]

PACKAGE = "common-expression-language"


def missing() -> str | None:
    """A sentence where the rules cannot be evaluated; None where they can."""
    if importlib.util.find_spec("cel") is not None:
        return None
    return f"contradictions between fields were not checked: install {PACKAGE} to check them"


def broken(schema: dict[str, Any], value: Any) -> Broken:
    """The rules that a value breaks, each with the path of its object and its own message."""
    if missing():
        return []
    return list(_broken(schema, value, ()))


def _broken(schema: dict[str, Any], value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    for rule in schema.get("x-kubernetes-validations", ()):
        # A rule with oldSelf is about updates, and there is none.
        typed = _typed(schema, value)
        if "oldSelf" not in rule["rule"] and not _evaluated(rule["rule"], typed):
            place = tuple(str(rule.get("fieldPath", "")).split("."))[1:]
            expression = rule.get("messageExpression")
            yield (*path, *place), str(_evaluated(expression, typed)) if expression else rule["message"]
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        for key, child in value.items():
            inner = known.get(key, others)
            if isinstance(inner, dict):
                yield from _broken(inner, child, (*path, key))
    elif isinstance(value, list) and "items" in schema:
        for index, child in enumerate(value):
            yield from _broken(schema["items"], child, (*path, index))


def _typed(schema: dict[str, Any], value: Any) -> Any:
    """The value with `type: number` as double, as the API server declares it: there 1 is not an integer."""
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        return {key: _typed(known.get(key, others) or {}, child) for key, child in value.items()}
    if isinstance(value, list):
        return [_typed(schema.get("items", {}), child) for child in value]
    return float(value) if schema.get("type") == "number" else value


def _evaluated(rule: str, value: Any) -> Any:
    import cel

    context = cel.Context({"self": value})
    context.add_function("replace", lambda text, old, new: text.replace(old, new))
    context.add_function("split", lambda text, by: text.split(by))
    context.add_function("isSorted", lambda values: list(values) == sorted(values))
    context.add_function("isQuantity", lambda text: resources.amount(text) is not None)
    context.add_function("quantity", lambda text: float(resources.amount(text) or 0))
    context.add_function("isGreaterThan", lambda one, other: one > other)
    context.add_function("isLessThan", lambda one, other: one < other)
    return cel.evaluate(rule, context)
