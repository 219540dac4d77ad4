"""The structural OpenAPI v3 schemas of all kinds, from the pydantic models: what the API server checks and defaults.

The models are the single source. Types, ranges, enumerations, defaults and CEL rules are written into the schema here; nothing
else states them a second time. `finetune validate` checks manifests by the same schemas; hack/generate makes the CRDs of them.
"""

from collections.abc import Mapping
from typing import Any

import pydantic
from pydantic import json_schema

from finetune_api import basemodel, job, servingpool, status

Schema = dict[str, Any]

# Keywords of JSON Schema that a structural schema has no use for: names are in the keys, $refs are inlined, and whether
# unknown fields are refused is the client's choice (strict field validation) in Kubernetes.
_DROPPED = frozenset({"title", "$defs"})


class _Generator(json_schema.GenerateJsonSchema):
    """JSON Schema with the non-empty defaults of default factories."""

    def get_default_value(self, schema: Any) -> Any:
        factory = schema.get("default_factory")
        if factory is None or schema.get("default_factory_takes_data"):
            return super().get_default_value(schema)
        value = factory()
        # Only what the factory sets: the rest is filled by the defaults of the nested fields.
        return (
            value.model_dump(mode="json", by_alias=True, exclude_unset=True)
            if isinstance(value, pydantic.BaseModel)
            else value
        )


def schema_of(model: type[pydantic.BaseModel]) -> Schema:
    """The structural OpenAPI v3 schema of a model: every $ref inlined, defaults only where they have an effect."""
    generated = model.model_json_schema(by_alias=True, schema_generator=_Generator)
    return _structural(generated, generated.get("$defs", {}))


def _structural(node: Mapping[str, Any], definitions: Mapping[str, Schema]) -> Schema:
    """A JSON Schema node as a structural schema node; `definitions` are the targets of its $refs."""
    node = _worded(_merged(node, definitions))
    schema: Schema = {}
    for key, value in node.items():
        match key:
            case _ if key in _DROPPED:
                pass
            case "properties":
                schema[key] = {name: _structural(child, definitions) for name, child in value.items()}
            case "items":
                schema[key] = _structural(value, definitions)
            case "additionalProperties":
                if isinstance(value, dict):
                    schema[key] = _structural(value, definitions)
            case "exclusiveMinimum" | "exclusiveMaximum":
                # OpenAPI v3 has the bound and a flag where newer JSON Schema has a second bound.
                schema[key[len("exclusive") :].lower()] = value
                schema[key] = True
            case "const":
                schema["enum"] = [value]
            case "type" if node.get("x-kubernetes-int-or-string"):
                pass
            case _:
                schema[key] = value
    if "default" in schema and not _fills(schema):
        del schema["default"]
    return {key: schema[key] for key in sorted(schema, key=_position)}


def _merged(node: Mapping[str, Any], definitions: Mapping[str, Schema]) -> Schema:
    """The node with its $ref resolved and `X | None` reduced to X: keys beside the reference win."""
    beside = {key: value for key, value in node.items() if key not in ("$ref", "anyOf")}
    if "$ref" in node:
        inner = _merged(definitions[node["$ref"].rsplit("/", 1)[1]], definitions)
    elif "anyOf" in node:
        choices = [choice for choice in node["anyOf"] if choice.get("type") != "null"]
        if len(choices) != 1:
            raise ValueError(f"a structural schema has one type for each node, not {choices}")
        inner = _merged(choices[0], definitions)
        if beside.get("default", 0) is None:
            del beside["default"]
    else:
        return beside
    rules = [*inner.get("x-kubernetes-validations", []), *beside.get("x-kubernetes-validations", [])]
    return inner | beside | ({"x-kubernetes-validations": rules} if rules else {})


def _worded(node: Schema) -> Schema:
    """The node with its pattern or bounds as a CEL rule with the model's own message, if it has one.

    The API server's own message would quote the pattern, or round the bound 0.5 to 0.
    """
    compared = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = {key: node[key] for key in compared if key in node}
    if "x-message" not in node:
        if any(bound != int(bound) for bound in bounds.values()):
            raise ValueError(
                f"field {node.get('title')!r}: the API server's message would round the bounds {bounds}; write them out with "
                'json_schema_extra={"x-message": "must be from 0.5 to 2"}'
            )
        return node
    tests = [f"self {compared[key]} {float(bound)}" for key, bound in bounds.items()]
    if "pattern" in node:
        text = "string(self)" if node.get("x-kubernetes-int-or-string") else "self"
        tests.append(f"{text}.matches(r'{node['pattern']}')")
    if not tests:
        raise ValueError(f"the message {node['x-message']!r} needs a pattern or a bound")
    rest = {key: value for key, value in node.items() if key not in (*compared, "pattern", "x-message")}
    rule = {"rule": " && ".join(tests), "message": node["x-message"]}
    return rest | {"x-kubernetes-validations": [rule, *node.get("x-kubernetes-validations", [])]}


def _fills(schema: Schema) -> bool:
    """Whether a default changes what is stored: an empty list does not, an empty object only by defaults below it."""
    if schema["default"] not in ({}, []):
        return True
    return any("default" in child for child in schema.get("properties", {}).values())


_ORDER = ("description", "type", "x-kubernetes-int-or-string", "enum", "default", "required", "properties", "items")


def _position(key: str) -> tuple[int, str]:
    """Keys in a readable order."""
    late = {"properties": 2, "items": 2, "additionalProperties": 2, "x-kubernetes-validations": 3}
    return (late.get(key, 0 if key in _ORDER else 1), f"{_ORDER.index(key):02d}" if key in _ORDER else key)


def _open_enumerations(schema: Schema) -> Schema:
    """The schema without enumerations and patterns.

    Only the operator writes the status, and Helm does not upgrade CRDs: a new reason of a newer operator must not make an
    older CRD refuse the whole status.
    """
    opened = {key: value for key, value in schema.items() if key not in ("enum", "pattern")}
    if "properties" in opened:
        opened["properties"] = {name: _open_enumerations(child) for name, child in opened["properties"].items()}
    if "items" in opened:
        opened["items"] = _open_enumerations(opened["items"])
    return opened


UNSEEN = -1
"""The observedGeneration of an object that the operator has not seen yet."""


def _status(model: type[pydantic.BaseModel]) -> Schema:
    """The status, which a new object has from its creation: kstatus considers an object without one finished."""
    schema = _open_enumerations(schema_of(model)) | {"default": {}}
    seen = schema["properties"]["observedGeneration"]
    schema["properties"]["observedGeneration"] = {**seen, "default": UNSEEN}
    return {key: schema[key] for key in sorted(schema, key=_position)}


_METADATA: dict[str, Schema] = {
    "apiVersion": {"type": "string"},
    "kind": {"type": "string"},
    # The name is listed so that a rule can refer to it.
    "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
}


def finetunejob() -> Schema:
    """The schema of a FineTuneJob."""
    return {
        "description": "FineTuneJob fine-tunes one base model on data in S3, evaluates the result and serves it.",
        "type": "object",
        "required": ["spec"],
        "properties": _METADATA | {"spec": schema_of(job.FineTuneJobSpec), "status": _status(status.Status)},
        "x-kubernetes-validations": [
            rule | {"fieldPath": ".metadata.name"} for rule in job.NAME_RULES["x-kubernetes-validations"]
        ],
    }


def base_model() -> Schema:
    """The schema of a BaseModel."""
    return {
        "description": "BaseModel is an entry of the platform team's catalogue, which jobs reference by name.",
        "type": "object",
        "required": ["spec"],
        "properties": _METADATA | {"spec": schema_of(basemodel.BaseModelSpec)},
    }


def serving_pool() -> Schema:
    """The schema of a ServingPool."""
    return {
        "description": "ServingPool serves the adapters of many FineTuneJobs from the same servers.",
        "type": "object",
        "required": ["spec"],
        "properties": _METADATA
        | {"spec": schema_of(servingpool.ServingPoolSpec), "status": _status(servingpool.Status)},
        "x-kubernetes-validations": [
            rule | {"fieldPath": ".metadata.name"} for rule in servingpool.NAME_RULES["x-kubernetes-validations"]
        ],
    }
