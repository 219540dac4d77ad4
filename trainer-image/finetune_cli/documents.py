"""YAML files as documents that know the line of each field: problems have file, line and path.

Parsed as by kubectl: booleans as in YAML 1.1, numbers such as 2e-4, no dates or times, no duplicate keys; a null is an absent
field.
"""

import codecs
import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from finetune_cli import answer

Path = tuple[str | int, ...]

OPAQUE = ("spec", "evaluation", "outputSchema")
"""The field is a JSON Schema, which may contain null."""

LARGEST = 4 * 2**20
"""Bytes of a file of manifests; the API server takes no larger object."""

TAGS = frozenset(
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge", "value")
)
"""What a manifest is made of."""

DEEPEST, MOST = 100, 200_000
"""Levels of a manifest, and its fields and items when every alias is replaced by what it stands for."""


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
        message = message.removeprefix(f"{dotted(path)} ").removeprefix(
            f"{dotted(path[1:])} "
        )  # some rules name their field
        return answer.Problem(file=str(self.file), line=self.line(path), path=dotted(path), message=message)

    def contradiction(self, path: Path, message: str) -> answer.Problem:
        """Of the fields of an object: with the line of the first one that the message names and the document has."""
        named = (("spec", *name.split(".")) for name in re.findall(r"[a-z]\w*(?:\.\w+)+", message))
        present = (found for found in named if self.line(found) != self.line(found[:-1]))
        return self.problem(path, message).model_copy(update={"line": self.line(next(present, path))})


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
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        before, character = text[: error.position], text[error.position]
        message = f"is not valid YAML: the character U+{ord(character):04X} must not occur; remove it"
        raise Invalid([answer.Problem(file=str(file), line=before.count("\n") + 1, message=message)]) from error
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
    if node.tag not in TAGS:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise _Unusable(
            node, path, f"has the tag {tag}; a manifest has only text, numbers, true, false, lists and objects"
        )
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
