"""YAML files as documents that know the line of each field: problems have file, line and path.

Parsed as by kubectl: booleans as in YAML 1.1, numbers such as 2e-4, no dates or times, no duplicate keys; a null is an absent
field.
"""

import codecs
import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import pydantic
import yaml

import finetune_api
from finetune_api import schema as schemas
from finetune_cli import answer, rules

Path = tuple[str | int, ...]
Spec = TypeVar("Spec", bound=pydantic.BaseModel)

OPAQUE = ("spec", "evaluation", "outputSchema")
"""The field is a JSON Schema, which may contain null."""

LARGEST = 4 * 2**20
"""Bytes of a file of manifests; the API server takes no larger object."""

DEEPEST, MOST = 100, 200_000
"""Levels of a manifest, and its fields and items when every alias is replaced by what it stands for."""

SERVER = ("status",)
"""Fields that the API server adds when it prints an object."""


class Invalid(Exception):
    """The problems of the input, each with its place."""

    def __init__(self, problems: Sequence[answer.Problem]) -> None:
        super().__init__("; ".join(problem.text for problem in problems))
        self.problems = tuple(problems)


class _Loader(yaml.SafeLoader):
    """YAML as the Kubernetes tools read it."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if tag.rpartition(":")[2] not in ("timestamp", "float", "int")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)
# Without YAML 1.1's numbers to the base of 60, such as 1:30.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?(?:0b[01_]+|0[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"),
    list("-+0123456789"),
)


@dataclasses.dataclass(frozen=True)
class Document:
    """One manifest of a file."""

    file: pathlib.Path
    node: Any
    data: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.data.get("kind", ""))

    @property
    def name(self) -> str:
        metadata = self.data.get("metadata")
        return str(metadata.get("name", "")) if isinstance(metadata, dict) else ""

    def line(self, path: Path) -> int:
        """The line of a field, from 1; of a missing one, the line of its object."""
        node, line = self.node, self.node.start_mark.line
        for key in path:
            found = _child(node, key)
            if found is None:
                break
            node, line = found
        return int(line) + 1

    def at(self, path: Path) -> Any:
        """The YAML node of an existing field."""
        node = self.node
        for key in path:
            found = _child(node, key)
            assert found is not None
            node = found[0]
        return node

    def problem(self, path: Path, message: str) -> answer.Problem:
        return answer.Problem(file=str(self.file), line=self.line(path), path=dotted(path), message=message)


def _child(node: Any, key: str | int) -> tuple[Any, int] | None:
    """The node of a key or an index, and its line."""
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.value == key:
                return value, name.start_mark.line
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        return node.value[key], node.value[key].start_mark.line
    return None


def dotted(path: Path) -> str:
    """As text: spec.dataset.train[0]."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def read(file: pathlib.Path, only: str = "") -> list[Document]:
    """The manifests of a file; none for a text without the word `only`, which is not parsed. Raises Invalid."""
    found: list[Document] = []
    text = _text(file)
    if only not in text:
        return found
    loader = _Loader(text)
    try:
        while loader.check_node():
            node: Any = loader.get_node()
            _size(node, (), {})
            data = loader.construct_document(node)
            if data is None:
                continue
            if not isinstance(data, dict):
                raise _Unusable(node, (), "is not a manifest: expected an object")
            if duplicates := list(_duplicates(node)):
                message = "is a duplicate key; keep one"
                places = [(dotted(path), line) for path, line in duplicates]
                raise Invalid(
                    [answer.Problem(file=str(file), line=at, path=path, message=message) for path, at in places]
                )
            found.append(Document(file, node, _without_nulls(json.loads(json.dumps(data)))))
    except _Unusable as error:
        line = error.node.start_mark.line + 1
        problem = answer.Problem(file=str(file), line=line, path=dotted(error.path) or None, message=error.message)
        raise Invalid([problem]) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        message = f"is not valid YAML: {error.problem or error.context}"
        raise Invalid([answer.Problem(file=str(file), line=line, message=message)]) from error
    except RecursionError:
        message = f"is nested too deeply; a manifest has at most {DEEPEST} levels"
        raise Invalid([answer.Problem(file=str(file), line=loader.line + 1, message=message)]) from None
    except (yaml.YAMLError, TypeError, ValueError) as error:
        message = f"is not valid YAML: {' '.join(str(error).split())[:300]}"
        raise Invalid([answer.Problem(file=str(file), message=message)]) from error
    return found


def _text(file: pathlib.Path) -> str:
    """Raises Invalid."""
    try:
        with file.open("rb") as opened:
            data = opened.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise Invalid(
                [answer.Problem(file=str(file), message=f"has more than {LARGEST >> 20} MiB; is it a manifest?")]
            )
        # As some shells of Windows write.
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return data.decode("utf-16" if wide else "utf-8-sig")
    except OSError as error:
        raise Invalid([answer.Problem(file=str(file), message=f"cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        message = f"is not {error.encoding.upper()}: {error.reason} at byte {error.start + 1}; save it as UTF-8"
        raise Invalid([answer.Problem(file=str(file), message=message)]) from error


class _Unusable(Exception):
    """A node that cannot be a manifest's."""

    def __init__(self, node: Any, path: Path, message: str) -> None:
        super().__init__(message)
        self.node, self.path, self.message = node, path, message


def _size(node: Any, path: Path, known: dict[int, int | None]) -> int:
    """Fields and items below a node, and itself. `known`: the sizes of nodes seen before; None: of one that is not complete."""
    if len(path) > DEEPEST:
        raise _Unusable(node, path[:3], f"is nested too deeply; a manifest has at most {DEEPEST} levels")
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise _Unusable(node, path, "is an alias of an object that contains it, which has no end")
        return size
    known[id(node)] = None
    children: list[tuple[Any, Any]] = []
    if isinstance(node, yaml.MappingNode):
        children = [(key.value if isinstance(key.value, str) else "?", value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = list(enumerate(node.value))
    size = 1
    for key, child in children:
        size += _size(child, (*path, key), known)
        if size > MOST:
            message = f"has more than {MOST:,} fields and items, all aliases replaced; write fewer aliases"
            raise _Unusable(node, path, message)
    known[id(node)] = size
    return size


def _duplicates(node: Any, path: Path = ()) -> Iterator[tuple[Path, int]]:
    """Duplicate keys of objects: their paths, and the lines of the repetitions."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for name, value in node.value:
            if name.value in seen:
                yield (*path, name.value), name.start_mark.line + 1
            seen.add(name.value)
            yield from _duplicates(value, (*path, name.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _duplicates(value, (*path, index))


def _without_nulls(value: Any, path: Path = ()) -> Any:
    """Drops nulls, as the API server does before it fills in defaults."""
    if path == OPAQUE:
        return value
    if isinstance(value, dict):
        return {key: _without_nulls(child, (*path, key)) for key, child in value.items() if child is not None}
    if isinstance(value, list):
        return [_without_nulls(child, (*path, index)) for index, child in enumerate(value)]
    return value


# -- what is wrong with a document --


@functools.cache
def schema(kind: str) -> dict[str, Any]:
    """The schema of a kind, as its CustomResourceDefinition has it, without the status."""
    full = {"FineTuneJob": schemas.finetunejob, "BaseModel": schemas.base_model}[kind]()
    return full | {"properties": {key: value for key, value in full["properties"].items() if key not in SERVER}}


def check(document: Document, model: type[Spec]) -> Spec:
    """The spec of a document, after all checks of the API server. Raises Invalid."""
    problems = list(_metadata_problems(document))
    problems += [
        document.problem(path, message) for path, message in _unknown(schema(document.kind), document.data, ())
    ]
    spec: Spec | None = None
    try:
        # From JSON, so that "5" is not a number; enumerations and quantities may be text.
        spec = model.model_validate_json(json.dumps(document.data.get("spec", {})), strict=True)
    except pydantic.ValidationError as error:
        problems += [_problem(document, found) for found in error.errors() if found["type"] != "extra_forbidden"]
    if problems or spec is None:
        raise Invalid(sorted(problems, key=lambda problem: problem.line or 0))
    # With the defaults that the API server would have filled in.
    filled = document.data | {"spec": spec.model_dump(mode="json", by_alias=True, exclude_none=True)}
    broken = rules.broken(schema(document.kind), filled)
    if broken:
        raise Invalid([document.problem(path, message) for path, message in broken])
    return spec


def _metadata_problems(document: Document) -> Iterator[answer.Problem]:
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


def _name_problems(document: Document, metadata: dict[str, Any]) -> Iterator[answer.Problem]:
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
    quoted = f": write '{found}'" if isinstance(value, bool | int | float) else f"; found {found}"
    return f"must be text{quoted}"


def _unknown(node: dict[str, Any], value: Any, path: Path) -> Iterator[tuple[Path, str]]:
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


def _problem(document: Document, found: Any) -> answer.Problem:
    """A finding of pydantic in our words: for patterns and bounds the schema has its own messages."""
    path: Path = ("spec", *(key for key in found["loc"] if not str(key).startswith("function-")))
    node = _subschema(schema(document.kind), path)
    messages = [rule["message"] for rule in node.get("x-kubernetes-validations", [])] if node else []
    kind = found["type"]
    message = str(found["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    if kind == "missing":
        message = "is required"
    elif kind == "string_type":
        return document.problem(path, _not_text(found["input"]))
    elif kind == "string_pattern_mismatch" or kind.startswith(("greater_than", "less_than")):
        message = messages[0] if messages else message
    if kind != "missing":
        message = f"{message[:1].lower()}{message[1:]}; found {json.dumps(found['input'])[:100]}"
    return document.problem(path, message)


def _subschema(node: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """The schema of a field; None where there is none."""
    for key in path:
        inner = node.get("items") if isinstance(key, int) else node.get("properties", {}).get(key)
        if inner is None:
            inner = node.get("additionalProperties")
        if not isinstance(inner, dict):
            return None
        node = inner
    return node
